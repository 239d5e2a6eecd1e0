"""K-FAC, Shampoo, diagonals of curvature and L-BFGS against exact curvature, on problems that are small enough."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from kingpost import seeds
from kingpost.assembly import Batch, Step
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe
from kingpost.train.gradients.accumulate import accumulated
from kingpost.train.gradients.backward import backward
from kingpost.train.optimise.curvature import Estimate, drawn_targets, estimating, hutchinson, random_signs
from kingpost.train.optimise.kfac import KFACRule, damped_inverses, factor_sums, factored_layers
from kingpost.train.optimise.lbfgs import Replay
from kingpost.train.optimise.shampoo import ShampooRule
from kingpost.train.tasks import Classification, LanguageModelling, MultiLabel, Regression
from kingpost.train.train import train
from reference.plain import net, recipe

ROUNDING = 1e-12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flat(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def called(model: nn.Module, vector: Tensor, x: Tensor) -> Tensor:
    """The model's output with the parameters of a vector."""
    named = dict(model.named_parameters())
    parts = vector.split([p.numel() for p in named.values()])
    values = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
    return functional_call(model, values, (x,))  # type: ignore[no-any-return]


def summed_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="sum")


# ---- K-FAC


def drawn_loss(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """The squared error of targets drawn around the model's own outputs, summed."""
    y = model(x)
    return (y - (y.detach() + noise)).square().sum()


def balanced_noise(rows: int, outputs: int) -> Tensor:
    """Noise of variance 1/2 whose sample covariance is exactly so: G is then not an estimate."""
    columns = torch.linalg.qr(draw(rows, outputs, seed=4))[0]
    return columns * (rows / 2) ** 0.5


def test_of_one_linear_layer_the_block_is_the_fisher_matrix() -> None:
    layer, x, rows = nn.Linear(3, 2), draw(11, 3), 11
    sums = factor_sums(factored_layers(layer), lambda: drawn_loss(layer, x, balanced_noise(rows, 2)), rows * 2)
    a = sums[layer.weight].inputs / sums[layer.weight].rows
    g = sums[layer.weight].outputs / sums[layer.weight].items
    # Fisher: mean of J^T (2 I / outputs) J, the curvature of the mean squared error over samples and outputs.
    j = jacobian(lambda w: called(layer, w, x).flatten(), flat(layer))
    fisher = 2 * j.T @ j / (rows * 2)
    order = [*(o * 3 + i for o in range(2) for i in range(3)), 6, 7]  # weight row by row, then bias
    block = torch.kron(g, a)  # rows of (O, I + 1)
    ours = [*(o * 4 + i for o in range(2) for i in range(3)), 3, 7]
    torch.testing.assert_close(block[ours][:, ours], fisher[order][:, order], rtol=0, atol=ROUNDING)
    exact = hessian(lambda w: (called(layer, w, x) - 1.0).square().mean(), flat(layer))
    torch.testing.assert_close(fisher, exact, rtol=0, atol=ROUNDING)  # for a linear model they are the same


def test_one_undamped_step_solves_least_squares() -> None:
    layer, x, y = nn.Linear(3, 2), draw(11, 3), draw(11, 2, seed=1)
    optimizer = KFACRule(layer, lr=1.0, momentum=0.0, damping=1e-16)
    optimizer.curvature = factor_sums(optimizer.layers, lambda: drawn_loss(layer, x, balanced_noise(11, 2)), 22)
    (layer(x) - y).square().mean().backward()
    optimizer.step()
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(11, 1)], 1), y).solution.T
    found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    torch.testing.assert_close(found, solved, rtol=0, atol=1e-7)  # the damping's root is 1e-8


def test_factors_of_a_convolution_are_those_of_its_patches() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    x, slope = draw(4, 2, 5, 5), draw(4, 3, 3, 3, seed=1)
    sums = factor_sums(factored_layers(layer), lambda: (layer(x) * slope).sum(), items=4)[layer.weight]
    padded, a, g = F.pad(x, (1, 1, 1, 1)), torch.zeros(19, 19), torch.zeros(3, 3)
    for n in range(4):
        for i in range(3):
            for j in range(3):
                patch = torch.cat([padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten(), torch.ones(1)])
                a += torch.outer(patch, patch)
                g += torch.outer(slope[n, :, i, j], slope[n, :, i, j])
    torch.testing.assert_close(sums.inputs, a, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(sums.outputs, g, rtol=0, atol=ROUNDING)
    assert float(sums.rows) == 36


def test_kfac_step_as_in_the_paper() -> None:
    """Section 6.3 of arXiv 1503.05671: factored Tikhonov damping; running means as in section 5."""
    model, memory, damping, lr = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), 0.6, 0.3, 0.5
    twin = copy.deepcopy(model)
    optimizer = KFACRule(model, lr=lr, momentum=0.7, damping=damping, memory=memory)
    means: dict[int, tuple[Tensor, Tensor]] = {}
    velocity: dict[int, Tensor] = {}
    for step in range(12):
        x, y = draw(9, 4, seed=step), torch.arange(9) % 3
        optimizer.zero_grad()
        optimizer.curvature = factor_sums(optimizer.layers, lambda x=x, y=y: summed_loss(model, x, y), 9)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

        hidden_in = torch.cat([x, torch.ones(9, 1)], 1)
        z1 = twin[0](x).detach().requires_grad_()
        hidden = torch.tanh(z1)
        z2 = twin[2](hidden)
        g2, g1 = torch.autograd.grad(F.cross_entropy(z2, y, reduction="sum"), (z2, z1))
        with torch.no_grad():
            for index, a, g in ((0, hidden_in, g1), (2, torch.cat([hidden, torch.ones(9, 1)], 1), g2)):
                new = a.T @ a / 9, g.T @ g / 9
                keep = min(1 - 1 / (step + 1), memory)
                old = means.get(index, new)
                means[index] = tuple(keep * o + (1 - keep) * n for o, n in zip(old, new, strict=True))  # type: ignore[assignment]
                big_a, big_g = means[index]
                pi = ((big_a.trace() / len(big_a)) / (big_g.trace() / len(big_g))).sqrt()
                big_a = big_a + pi * damping**0.5 * torch.eye(len(big_a))
                big_g = big_g + damping**0.5 / pi * torch.eye(len(big_g))
                way = torch.linalg.inv(big_g) @ (g.T @ a / 9) @ torch.linalg.inv(big_a)
                velocity[index] = 0.7 * velocity.get(index, 0) + way
                twin[index].weight -= lr * velocity[index][:, :-1]
                twin[index].bias -= lr * velocity[index][:, -1]
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-11)  # two ways to invert matrices of condition 100


def test_kfac_leaves_other_layers_to_adamw() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    optimizer = KFACRule(model, lr=1.0, other_lr=0.01)
    groups = [(g["rule"], len(g["params"]), g["lr"]) for g in optimizer.param_groups]
    assert groups == [("K-FAC", 2, 1.0), ("AdamW", 3, 0.01)]
    twin = [copy.deepcopy(model[i]) for i in (0, 1)]
    tokens = torch.arange(5)
    F.cross_entropy(model(tokens), tokens % 3).backward()
    optimizer.curvature = factor_sums(optimizer.layers, lambda: summed_loss(model, tokens, tokens % 3), 5)
    optimizer.step()
    pairs = [pair for i in (0, 1) for pair in zip(twin[i].parameters(), model[i].parameters(), strict=True)]
    for p, q in pairs:
        p.grad = q.grad
    torch.optim.AdamW([p for p, _ in pairs], lr=0.01, weight_decay=0.0, foreach=False).step()
    for p, q in pairs:
        torch.testing.assert_close(p, q, rtol=0, atol=ROUNDING)


def test_kfac_bounds_the_length_of_a_step_in_the_curvature() -> None:
    def step(longest: float | None) -> Tensor:
        torch.manual_seed(0)
        layer, x, y = nn.Linear(4, 3), draw(9, 4), torch.arange(9) % 3
        start = flat(layer)
        optimizer = KFACRule(layer, lr=0.5, longest=longest)
        optimizer.curvature = factor_sums(optimizer.layers, lambda: summed_loss(layer, x, y), 9)
        F.cross_entropy(layer(x), y).backward()
        optimizer.step()
        slope = torch.cat([p.grad.flatten() for p in layer.parameters()])  # type: ignore[union-attr]
        return 0.5 * torch.dot(start - flat(layer), slope)  # lr^2 * grad . dW, for dW as it was made

    free = float(step(None))
    assert free > 1e-3
    # A step that is scaled by f is f^2 as long in the curvature, and f as long along the gradient.
    assert float(step(1e-4)) == pytest.approx((1e-4 * free) ** 0.5, rel=1e-9)
    assert float(step(10.0)) == free


def test_damped_inverses_of_nothing_are_finite() -> None:
    assert all(x.isfinite().all() for x in damped_inverses(torch.zeros(3, 3), torch.zeros(2, 2), 1e-3))


# ---- the diagonal


def small_net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))


def batch_of(rows: int = 10) -> Batch:
    return Batch((draw(rows, 4),), torch.arange(rows) % 3, 0, rows)


def test_the_mean_over_all_signs_is_the_diagonal_of_the_hessian() -> None:
    model, at = nn.Linear(2, 2), batch_of()
    x = at.inputs[0][:, :2]
    y = at.targets % 2
    params = list(model.parameters())
    total = [torch.zeros_like(p) for p in params]
    for code in range(64):  # all sets of six signs
        signs = torch.tensor([1.0 - 2 * (code >> bit & 1) for bit in range(6)])
        split = [signs[:4].view(2, 2), signs[4:]]
        found = hutchinson(F.cross_entropy(model(x), y), params, split)
        total = [a + b / 64 for a, b in zip(total, found, strict=True)]
    exact = hessian(lambda w: F.cross_entropy(called(model, w, x), y), flat(model)).diagonal()
    torch.testing.assert_close(torch.cat([t.flatten() for t in total]), exact, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("drawn", [False, True])
def test_the_estimate_of_a_batch_does_not_hang_on_its_pieces(drawn: bool, pieces: int) -> None:
    model, at, step = small_net(), batch_of(), Step(index=0, seed=3, items=10)
    estimate = Estimate(Classification(), drawn, 2, lambda: 1)
    taken = accumulated(estimating(backward, estimate, every=1), pieces)
    taken(model, Classification().objective, at, step)
    found, params = estimate.take(), list(model.parameters())
    if drawn:
        targets = drawn_targets(Classification(), model(at.inputs[0]), at, step.generator("drawn targets", "cpu"))
        grads = torch.autograd.grad(F.cross_entropy(model(at.inputs[0]), targets), params)
        expected = [10 * g.square() for g in grads]
    else:
        generator = step.generator("hutchinson", "cpu")
        expected = [torch.zeros_like(p) for p in params]
        for _ in range(2):
            signs = random_signs(params, generator)
            long = torch.cat([s.flatten() for s in signs])
            whole = hessian(lambda w: F.cross_entropy(called(model, w, at.inputs[0]), at.targets), flat(model))
            product = (whole @ long).split([p.numel() for p in params])
            expected = [e + s * h.view_as(s) / 2 for e, s, h in zip(expected, signs, product, strict=True)]
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(found[p], e, rtol=0, atol=ROUNDING)
    grads = torch.autograd.grad(F.cross_entropy(model(at.inputs[0]), at.targets), params)
    for p, g in zip(params, grads, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=ROUNDING)  # the gradient itself is as it was


def test_drawn_targets_follow_the_models_predictions() -> None:
    n = 40_000
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(n, 3)
    at = Batch((logits,), torch.zeros(n, dtype=torch.int64), 0, n)
    counts = drawn_targets(Classification(), logits, at, generator).bincount(minlength=3) / n
    # Four standard deviations of a mean of 40,000 draws of variance at most 1/4, or of squares of variance 1/2.
    torch.testing.assert_close(counts, logits[0].softmax(0), rtol=0, atol=0.01)
    ones = drawn_targets(MultiLabel(), logits, at, generator).mean(0)
    torch.testing.assert_close(ones, logits[0].sigmoid(), rtol=0, atol=0.01)
    values = drawn_targets(Regression(), logits, at, generator) - logits
    torch.testing.assert_close(values.square().mean(0), torch.full((3,), 0.5), rtol=0, atol=0.015)
    tokens = Batch((logits,), torch.tensor([[0, -100], [1, 2]]), 0, 2)
    hidden = drawn_targets(LanguageModelling(), draw(2, 2, 5), tokens, generator)
    assert (hidden == -100).tolist() == [[False, True], [False, False]]


def test_pieces_draw_their_own_rows() -> None:
    logits, at = draw(10, 3), batch_of()
    step = Step(index=5, seed=1)
    whole = drawn_targets(Classification(), logits, at, step.generator("drawn targets"))
    parts = [
        drawn_targets(Classification(), logits[p.first : p.first + len(p)], p, step.generator("drawn targets"))
        for p in at.split(3)
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(("name", "field"), [("kfac", "fisher"), ("sophia", "estimator")])
def test_a_task_without_a_distribution_is_refused(name: str, field: str) -> None:
    from contract.subjects import make, recipe_with
    from kingpost.train.assemble import assemble

    gradnorm = make("technique", "gradnorm")
    plain = recipe_with("technique", gradnorm).with_(optimizer=make("optimizer", name), techniques=())
    with pytest.raises(RecipeError, match=rf"optimizer\.{field}: draws targets .* task 'multi-task'"):
        assemble(plain, plain.data.open(), torch.device("cpu"))


# ---- Shampoo


def test_shampoo_is_the_root_of_full_matrix_adagrad_where_that_factors() -> None:
    """For a vector it is full-matrix AdaGrad; for a matrix, (L (x) R)^(-1/4) times the flattened gradient."""
    vector, grads = nn.Parameter(torch.zeros(4)), [draw(4, seed=s) for s in range(12)]
    matrix, slopes = nn.Parameter(torch.zeros(3, 2)), [draw(3, 2, seed=s) for s in range(12)]
    optimizer = ShampooRule([vector, matrix], lr=0.1, eps=1e-3)
    full, left, right = (1e-3 * torch.eye(n) for n in (4, 3, 2))
    expected, wide = torch.zeros(4), torch.zeros(6)
    for g, s in zip(grads, slopes, strict=True):
        vector.grad, matrix.grad = g, s
        optimizer.step()
        full, left, right = full + torch.outer(g, g), left + s @ s.T, right + s.T @ s
        values, vectors = torch.linalg.eigh(full)
        expected = expected - 0.1 * vectors @ torch.diag(values**-0.5) @ vectors.T @ g
        values, vectors = torch.linalg.eigh(torch.kron(left, right))
        wide = wide - 0.1 * vectors @ torch.diag(values**-0.25) @ vectors.T @ s.flatten()
    torch.testing.assert_close(vector.detach(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(matrix.detach().flatten(), wide, rtol=0, atol=1e-10)


def test_shampoos_long_axes_keep_the_diagonal() -> None:
    p, g = nn.Parameter(torch.zeros(3, 2)), draw(3, 2)
    p.grad = g
    ShampooRule([p], lr=1.0, eps=1e-3, largest=2).step()
    rows = (g.square().sum(1) + 1e-3) ** -0.25
    values, vectors = torch.linalg.eigh(g.T @ g + 1e-3 * torch.eye(2))
    expected = -(rows[:, None] * g) @ (vectors @ torch.diag(values**-0.25) @ vectors.T)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=ROUNDING)


# ---- L-BFGS


def searched(folder: Path, **fields: Any) -> Any:
    return train(recipe(net(), optimizer={"name": "lbfgs"}, budget={"steps": 3}, **fields), root=folder, quiet=True)


def test_lbfgs_refuses_a_gradient_that_is_changed_behind_its_back(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the line search cannot follow that; remove clipping"):
        searched(tmp_path, techniques=[{"name": "clip", "norm": 0.01}])


def test_lbfgs_refuses_what_has_another_loss() -> None:
    with pytest.raises(RecipeError, match="'lbfgs' and 'sam' exclude each other: the line search"):
        Recipe(name="x", data="digits", model="mlp", optimizer="lbfgs", techniques=["sam"])


def test_lbfgs_sees_the_same_dropout_and_leaves_the_statistics_in_each_trial() -> None:
    """With other masks in each evaluation, the search would not find that the loss of its batch falls."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 3))
    replay, at, step = Replay(backward, lambda number: number), batch_of(), Step(index=4, seed=1, items=10)
    seeds.seed_default_generators(seeds.derive(1, "forward", 4, 0), torch.device("cpu"))  # as the loop does
    taken = accumulated(replay.take, 3)
    taken(model, Classification().objective, at, step)
    first, grads = replay.loss(), [p.grad for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    assert replay.again(model) == first
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
