"""The dials of ``cnn`` against the same net written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kingpost.build.nets.cnn import CNN, CNNNet
from kingpost.net import image_facts


def written_out(net: CNNNet) -> nn.Sequential:
    """Two stages of two convolutions, the second of which takes every other pixel; all pixels to the head."""
    first, second = (list(stage.children()) for stage in net.stages.children())  # type: ignore[union-attr]
    layers: list[nn.Module] = []
    for (inputs, outputs), parts in zip(((1, 4), (4, 6)), (first, second), strict=True):
        for stride, wide, (conv, norm) in (
            (1, inputs, (parts[0], parts[1])),
            (2, outputs, (parts[3], parts[4])),
        ):
            own = nn.Conv2d(wide, outputs, 3, stride, 1, bias=False, dtype=torch.float64)
            own.load_state_dict(conv.state_dict())
            batch_norm = nn.BatchNorm2d(outputs, dtype=torch.float64)
            batch_norm.load_state_dict(norm.state_dict())
            layers += [own, batch_norm, nn.ReLU()]
    head = nn.Linear(6 * 2 * 3, 5, dtype=torch.float64)
    head.load_state_dict(net.head.state_dict())
    return nn.Sequential(*layers, nn.Flatten(), head)


def test_strides_and_a_flat_head_are_what_they_say() -> None:
    """An odd grid, 7 x 9: outputs and gradients."""
    torch.manual_seed(0)
    net = CNN(widths=(4, 6), convolutions=2, pool="stride", head="flat").make(image_facts(1, 7, 9, 5), 5).double()
    twin, x = written_out(net), torch.randn(3, 1, 7, 9, dtype=torch.float64)

    def gradient(model: nn.Module) -> tuple[Tensor, Tensor]:
        images = x.clone().requires_grad_()
        scores = model(images)
        return scores.detach(), torch.autograd.grad(scores.square().sum(), images)[0]

    for ours, theirs in zip(gradient(net), gradient(twin), strict=True):
        assert torch.equal(ours, theirs)  # the same kernels in the same order


@pytest.mark.parametrize("pool", ["max", "average", "stride"])
@pytest.mark.parametrize("side", [8, 13, 28])
def test_a_flat_head_fits_every_grid(pool: str, side: int) -> None:
    """Of even and odd sides."""
    net = CNN.from_value({"depth": 3, "width": 4, "pool": pool, "head": "flat"}).make(image_facts(2, side, 9, 3), 3)
    assert net(torch.zeros(2, 2, side, 9)).shape == (2, 3)
