"""Penalties and constraints on weights against closed forms, term by term."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import kingpost as kp
from kingpost.assembly import Batch, Step
from kingpost.train.gradients.backward import backward
from kingpost.train.regularise.changed_weights import kept, with_factors, with_noise
from kingpost.train.regularise.group_lasso import group_norm
from kingpost.train.regularise.l1 import elastic, l1_norm
from kingpost.train.regularise.max_norm import limit_rows
from kingpost.train.regularise.orthogonal import distance_from_orthogonal
from kingpost.train.regularise.weights import by_output, penalised, weights
from kingpost.train.tasks import Classification

ROUNDING = 1e-13  # sums of at most a few hundred numbers around 1, in 64 bits


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(147, 3)
    )


def batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    return Batch((torch.randn(5, 1, 8, 8, generator=draw),), torch.tensor([0, 2, 1, 1, 0]), 0, 5)


def rows(w: Tensor, axis: int = 0) -> list[list[float]]:
    return [w.select(axis, k).flatten().tolist() for k in range(w.shape[axis])]


def orthogonal_by_hand(w: Tensor) -> float:
    m = w.flatten(1).tolist() if w.flatten(1).shape[0] <= w.flatten(1).shape[1] else w.flatten(1).T.tolist()
    dots = [
        [sum(a * b for a, b in zip(r, s, strict=True)) - (i == j) for j, s in enumerate(m)] for i, r in enumerate(m)
    ]
    return sum(d * d for line in dots for d in line)


VALUES: dict[str, tuple[Callable[[list[Tensor]], Tensor], Callable[[list[Tensor]], float]]] = {
    "l1": (l1_norm, lambda ws: sum(abs(x) for w in ws for x in w.flatten().tolist())),
    "elastic": (
        lambda ws: elastic(ws, 0.3),
        lambda ws: sum(0.3 * abs(x) + 0.35 * x * x for w in ws for x in w.flatten().tolist()),
    ),
    "group": (
        group_norm,
        lambda ws: sum(math.sqrt(len(r)) * math.sqrt(sum(x * x for x in r)) for w in ws for r in rows(w)),
    ),
    "orthogonal": (
        distance_from_orthogonal,
        lambda ws: sum(orthogonal_by_hand(w) for w in ws),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_value_and_gradient(name: str) -> None:
    """The value against loops in Python; the gradient against central differences of those loops."""
    ours, by_hand = VALUES[name]
    draw = torch.Generator().manual_seed(2)
    ws = [torch.randn(*shape, generator=draw).requires_grad_() for shape in ((3, 5), (6, 2), (2, 3, 2, 2))]
    value = ours(ws)
    assert value.item() == pytest.approx(by_hand(ws), rel=ROUNDING)
    for w, g in zip(ws, torch.autograd.grad(value, ws), strict=True):
        flat = w.data.view(-1)
        for index in range(0, len(flat), 5):
            old, h = flat[index].item(), 1e-5
            sides = []
            for sign in (1, -1):
                flat[index] = old + sign * h
                sides.append(by_hand(ws))
            flat[index] = old
            # Central differences: h^2 times a third derivative below 100, and rounding of 1e-14 / h.
            assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(g.view(-1)[index].item(), abs=2e-8)


def test_gradients_at_zero_are_zero_and_finite() -> None:
    w = torch.zeros(2, 3, requires_grad=True)
    for penalty in (l1_norm([w]), group_norm([w])):
        (g,) = torch.autograd.grad(penalty, w)
        assert torch.equal(g, torch.zeros(2, 3))


def test_rows_are_output_channels() -> None:
    """A kernel of a transposed convolution has its inputs first, so its rows are turned."""
    model = net()
    conv, turned, linear = by_output(model)
    assert [w.shape[0] for w in (conv, turned, linear)] == [4, 3, 3]
    assert torch.equal(turned[1], model[3].weight[:, 1])
    assert list(weights(model)) == ["0.weight", "3.weight", "5.weight"]  # neither biases nor the gains of the norm


@pytest.mark.parametrize("pieces", [1, 3])
def test_penalty_counts_once_however_the_batch_is_split(pieces: int) -> None:
    model = net().eval()
    objective = penalised(Classification().objective, lambda m: l1_norm(weights(m).values()), 0.2)
    for piece in batch().split(pieces):
        backward(model, objective, piece, Step(index=0, seed=0, items=5))
    plain = net().eval()
    loss = nn.functional.cross_entropy(plain(*batch().inputs), batch().targets)
    (loss + 0.2 * sum(p.abs().sum() for name, p in plain.named_parameters() if p.ndim > 1)).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=ROUNDING)


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    recipe = kp.Recipe(
        name="a", data="digits", model={"name": "mlp", "widths": [8]}, techniques=[kp.L1(layers="conv*")]
    )
    from kingpost.train.assemble import assemble

    with pytest.raises(kp.RecipeError, match=r"techniques\.l1\.layers: no weight fits 'conv\*'; the model has: layers"):
        assemble(recipe, recipe.data.open(), torch.device("cpu"))


def test_max_norm_shortens_long_rows_alone() -> None:
    draw = torch.Generator().manual_seed(3)
    w = torch.randn(6, 4, generator=draw) * torch.tensor([[0.1], [0.1], [1.0], [5.0], [5.0], [0.0]])
    before = w.clone()
    limit_rows([w], 1.5)
    for old, new in zip(before, w, strict=True):
        expected = old * min(1.0, 1.5 / float(old.norm())) if float(old.norm()) else old
        torch.testing.assert_close(new, expected, rtol=0, atol=1e-15)  # one product below 10
    assert (before.norm(dim=1) > 1.5).any() and (before.norm(dim=1) < 1.5).any()


def test_max_norm_reaches_kernels_through_views() -> None:
    model = net()
    limit_rows(by_output(model), 0.1)
    # The scaled norm is rounded a few times.
    assert model[3].weight.transpose(0, 1).flatten(1).norm(dim=1).max() <= 0.1 * (1 + 1e-14)


def test_dropped_connections_have_the_gradient_of_the_masked_net() -> None:
    """``d loss(w * m) / dw`` by autograd through the product, with the very mask; weights stay as they are."""
    model, step = net().eval(), Step(index=3, seed=5, items=5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with_factors(backward, kept(0.4), "drop-connect")(model, Classification().objective, batch(), step)
    draw = step.generator("drop-connect")
    masks = {name: kept(0.4)(p, draw) for name, p in weights(model).items()}
    assert all(set(m.unique().tolist()) == {0.0, 1 / 0.6} for m in masks.values())
    masked = {name: p * masks.get(name, 1.0) for name, p in model.named_parameters()}
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, masked, batch().inputs), batch().targets)
    for (name, p), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=ROUNDING)
        assert torch.equal(p, before[name])


@pytest.mark.parametrize("relative", [True, False])
def test_noisy_weights_have_the_gradient_of_the_noisy_net(relative: bool) -> None:
    model, step = net().eval(), Step(index=3, seed=5, items=5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with_noise(backward, 0.1, relative)(model, Classification().objective, batch(), step)
    draw, noisy = step.generator("weight-noise"), dict(before)
    for name, p in weights(model).items():
        size = float((before[name] ** 2).mean()) ** 0.5 if relative else 1.0
        noisy[name] = p.detach() + 0.1 * size * torch.empty_like(p).normal_(generator=draw)
    noisy = {name: value.requires_grad_() for name, value in noisy.items()}
    loss = nn.functional.cross_entropy(torch.func.functional_call(model, noisy, batch().inputs), batch().targets)
    for (name, p), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(noisy.values())), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=ROUNDING)
        assert torch.equal(p, before[name])


def test_weights_come_back_when_the_gradient_raises() -> None:
    model = net()
    before = model[0].weight.detach().clone()

    def failing(model: nn.Module, *rest: object) -> kp.Loss:
        assert not torch.equal(model[0].weight, before)  # type: ignore[index]
        raise torch.OutOfMemoryError("pretended")

    for wrapped in (with_noise(failing, 0.1, True), with_factors(failing, kept(0.5), "drop-connect")):
        with pytest.raises(torch.OutOfMemoryError, match="pretended"):
            wrapped(model, Classification().objective, batch(), Step(index=0, seed=0))
        assert torch.equal(model[0].weight, before)
