"""What every network must survive, for the tests of single architectures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kingpost.train import checkpoint


def survives(make: Callable[[], nn.Module], inputs: tuple[Tensor, ...], folder: Path) -> None:
    """Compile, export, fake tensors, half precision, copies, weights on disk, a batch of one, one step downhill.

    Everything runs in 64 bits; 1e-10 allows for another order of sums.
    """
    torch.manual_seed(0)
    net = make().eval()
    expected = net(*inputs)
    target = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))

    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(net, backend="aot_eager")(*inputs), expected, rtol=0, atol=1e-10)
    exported = torch.export.export(net, inputs, strict=False).module()
    torch.testing.assert_close(exported(*inputs), expected, rtol=0, atol=1e-10)
    with FakeTensorMode() as mode:
        fake = make().train()
        scores = fake(*(mode.from_tensor(x) for x in inputs))
        scores.sum().backward()
        assert scores.shape == expected.shape
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = copy.deepcopy(net).float()
        half = single(*(x.float() if x.is_floating_point() else x for x in inputs))
    assert half.isfinite().all() and half.shape == expected.shape

    checkpoint.save_weights(folder / "w.safetensors", net)
    other = make().eval()
    checkpoint.load_weights(folder / "w.safetensors", other)
    assert torch.equal(other(*inputs), expected)
    alone = net(*(x[:1] for x in inputs))
    torch.testing.assert_close(alone, expected[:1], rtol=0, atol=1e-10)

    net.train()
    before = (net(*inputs) - target).square().mean()
    gradients = torch.autograd.grad(before, list(net.parameters()), allow_unused=True)
    unused = [name for (name, _), g in zip(net.named_parameters(), gradients, strict=True) if g is None]
    assert unused == []
    copied = copy.deepcopy(net)  # also after a step, when a net may hold on to what it computed
    length = sum(float(g.square().sum()) for g in gradients if g is not None)
    with torch.no_grad():
        for p, g in zip(net.parameters(), gradients, strict=True):
            p -= 1e-3 / length * g  # type: ignore[operator]  # a small step: the loss falls by about 1e-3
        after = (net(*inputs) - target).square().mean()
    assert float(after) < float(before.detach())
    assert torch.equal(copied.eval()(*inputs), expected)


def as_state(net: nn.Module) -> dict[str, Tensor]:
    """All parameters by name, detached."""
    return {name: p.detach().clone() for name, p in net.named_parameters()}
