"""Capsules against the papers' procedures written out, closed forms, and published counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kingpost.assembly import Batch, Loss
from kingpost.build.blocks.capsules import (
    AttentionCapsules,
    Decoder,
    PrimaryCapsules,
    RoutedCapsules,
    log_odds_of_length,
    squash,
    squash_exponential,
)
from kingpost.build.nets.capsule import Capsule, CapsuleNet, grid_after
from kingpost.build.reconstruction import with_reconstruction
from kingpost.errors import RecipeError
from kingpost.net import image_facts


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def length(x: Tensor) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in x))


@pytest.mark.parametrize("norm", [1e-3, 0.5, 1.0, 7.0, 1e4])
def test_squash_keeps_the_direction_and_gives_the_length_of_the_formula(norm: float) -> None:
    direction = torch.tensor([2.0, -3.0, 6.0]) / 7
    for function, wanted in ((squash, norm**2 / (1 + norm**2)), (squash_exponential, 1 - math.exp(-norm))):
        out = function(norm * direction)
        # A square root of norm^2 + 1e-12 stands for the norm: at 1e-3 that is a relative error of 5e-7.
        torch.testing.assert_close(out, wanted * direction, rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", [squash, squash_exponential, log_odds_of_length])
def test_the_gradient_at_zero_is_finite(function: Any) -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    function(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_log_odds_turn_back_into_lengths_and_are_those_of_the_squared_norm() -> None:
    x = numbers(5, 4) * 2
    torch.testing.assert_close(log_odds_of_length(squash(x)).sigmoid(), squash(x).norm(dim=-1))
    torch.testing.assert_close(log_odds_of_length(squash(x)), x.square().sum(-1).log())


def routed_by_hand(u: list[Tensor], w: Tensor, iterations: int) -> list[Tensor]:
    """Procedure 1 of Sabour et al. for one sample: u_i of each capsule below, w[i][j] a matrix."""
    below, above = len(u), w.shape[1]
    said = [[u[i] @ w[i, j] for j in range(above)] for i in range(below)]
    b = [[torch.tensor(0.0) for _ in range(above)] for _ in range(below)]
    v: list[Tensor] = []
    for _ in range(iterations):
        c = []
        for i in range(below):
            e = [x.exp() for x in b[i]]
            c.append([x / sum(e) for x in e])
        v = []
        for j in range(above):
            s = sum((c[i][j] * said[i][j] for i in range(below)), torch.zeros(w.shape[3]))
            n2 = (s * s).sum()
            v.append(n2 / (1 + n2) * s / n2.sqrt())
        for i in range(below):
            for j in range(above):
                b[i][j] = b[i][j] + (said[i][j] * v[j]).sum()
    return v


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_routing_by_agreement_is_the_papers_procedure(iterations: int) -> None:
    layer, u = RoutedCapsules(5, 3, 4, 6, iterations), numbers(2, 5, 3).requires_grad_()
    by_hand = torch.stack([torch.stack(routed_by_hand(list(sample), layer.weight, iterations)) for sample in u])
    # Sums of five numbers near 1 in another order, and 1e-12 under a root.
    torch.testing.assert_close(layer(u), by_hand, rtol=1e-9, atol=1e-11)
    toward = numbers(2, 4, 6, seed=1)
    ours = torch.autograd.grad((layer(u) * toward).sum(), [u, layer.weight])
    theirs = torch.autograd.grad((by_hand * toward).sum(), [u, layer.weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_more_iterations_give_more_to_the_capsule_that_all_agree_on() -> None:
    """Ten of twelve predictions for the first capsule point the same way; for the second they point anywhere."""
    u = torch.ones(1, 12, 1)
    lengths = []
    for iterations in (1, 3):
        layer = RoutedCapsules(12, 1, 2, 4, iterations)
        with torch.no_grad():
            layer.weight[:, 1, 0] = torch.nn.functional.normalize(numbers(12, 4), dim=1)
            layer.weight[:, 0, 0] = torch.tensor([1.0, 0, 0, 0])
            layer.weight[10:, 0, 0] = torch.tensor([-1.0, 0, 0, 0])
        v = layer(u)[0].detach()
        lengths.append(length(v[0]) - length(v[1]))
    assert lengths[1] > lengths[0] > 0


def test_self_attention_routing_is_the_formula_with_the_full_matrix() -> None:
    layer, u = AttentionCapsules(5, 3, 4, 6), numbers(2, 5, 3)
    torch.nn.init.normal_(layer.prior)
    said = torch.stack([torch.stack([u[:, i] @ layer.weight[i, j] for i in range(5)], 1) for j in range(4)], 1)
    matrix = said @ said.transpose(2, 3) / math.sqrt(6)  # of each capsule above, between all below
    share = matrix.sum(-1).softmax(1) + layer.prior
    expected = squash_exponential((share[..., None] * said).sum(2))
    torch.testing.assert_close(layer(u), expected, rtol=1e-10, atol=1e-12)  # sums in another order


def test_primary_capsules_are_the_channels_of_one_place() -> None:
    layer, x = PrimaryCapsules(3, capsules=2, dimension=4, kernel=(3, 3), stride=2), numbers(2, 3, 7, 5)
    raw = layer.convolution(x)
    found = [squash(raw[:, 4 * kind : 4 * kind + 4, r, c]) for kind in range(2) for r in range(3) for c in range(2)]
    torch.testing.assert_close(layer(x), torch.stack(found, 1))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_published_parameters() -> None:
    mnist = image_facts(1, 28, 28, 10)
    with torch.device("meta"):
        capsnet = Capsule(size="capsnet").make(mnist, 10)
        assert count(capsnet) == 6_804_224  # 6.8M in the paper
        capsnet.decoder = Decoder(10, 16, 784)
        assert count(capsnet) == 8_215_568  # 8.2M
        assert count(Capsule(size="efficient-capsnet").make(mnist, 10)) == 161_824  # 161K
    figures = {f.name: f.value for f in Capsule(size="capsnet").derived(mnist)}
    assert figures["primary capsules"] == 32 * 6 * 6  # as the paper says
    assert {f.name: f.value for f in Capsule(size="efficient-capsnet").derived(mnist)}["primary capsules"] == 16


def test_grid_is_what_the_convolutions_give() -> None:
    net = CapsuleNet((2, 15, 13), 3, channels=[4, 8], kernels=[3, 5], stride=2, primary=2, primary_kernel=3)
    x = numbers(2, 2, 15, 13)
    assert net.stem(x).shape[2:] == grid_after((15, 13), (3, 5), 2)
    assert net.capsules(x).shape == (2, 3, 16) and net(x).shape == (2, 3)


def test_the_decoder_reads_the_capsule_of_the_given_class_alone() -> None:
    net = CapsuleNet((1, 8, 8), 3, channels=[4], kernels=[3], primary=2, primary_kernel=3)
    net.decoder = Decoder(3, 16, 64, widths=(5,))
    x, classes = numbers(4, 1, 8, 8), torch.tensor([2, 0, 1, 2])
    both = net(x, classes)
    assert both.shape == (4, 3 + 64) and torch.equal(both[:, :3], net(x))
    capsules = net.capsules(x)
    masked = torch.zeros_like(capsules)
    for row, k in enumerate(classes):
        masked[row, k] = capsules[row, k]
    torch.testing.assert_close(both[:, 3:], net.decoder.layers(masked.flatten(1)))
    shares = torch.nn.functional.one_hot(classes, 3).double()
    assert torch.equal(net(x, shares), both)  # mixed targets are shares of each class


def test_reconstruction_adds_the_squared_error_and_adds_up_over_pieces() -> None:
    net = CapsuleNet((1, 8, 8), 3, channels=[4], kernels=[3], primary=2, primary_kernel=3)
    net.decoder = Decoder(3, 16, 64, widths=(5,))
    batch = Batch((numbers(4, 1, 8, 8),), torch.tensor([2, 0, 1, 2]), 0, 4)

    def plain(model: torch.nn.Module, batch: Batch) -> Loss:
        outputs = model(*batch.inputs)
        assert outputs.shape == (len(batch), 3)
        return Loss(outputs.sum(), len(batch), outputs)

    objective = with_reconstruction(plain, strength=0.25)
    loss = objective(net, batch)
    error = (net(batch.inputs[0], batch.targets)[:, 3:] - batch.inputs[0].flatten(1)).square().sum()
    torch.testing.assert_close(loss.data, net(batch.inputs[0]).sum() + 0.25 * error)
    torch.testing.assert_close(sum(objective(net, piece).data for piece in batch.split(3)), loss.data)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RecipeError, match="kernels: the convolutions leave 2 x 2 of 8 x 8 pixels, too few for a prim"):
        Capsule().make(image_facts(1, 8, 8, 3), 3)
    with pytest.raises(RecipeError, match="size: not given, and there is no size: channels, kernels"):
        Capsule(size=None, stride=1)
    with pytest.raises(RecipeError, match="kernels: got 1 for 2 channels"):
        Capsule(channels=(8, 8))
    with pytest.raises(RecipeError, match="iterations: no effect with routing=self-attention"):
        Capsule(routing="self-attention", iterations=2)
    with pytest.raises(RecipeError, match="channels: the last is 12, which 8 units of a capsule do not divide; use 16"):
        Capsule(primary_kernel=0, channels=(12,))
    with pytest.raises(RuntimeError, match="no decoder; add the technique 'reconstruction'"):
        CapsuleNet((1, 8, 8), 3, [4], [3], primary=2, primary_kernel=3)(numbers(1, 1, 8, 8), torch.tensor([0]))
