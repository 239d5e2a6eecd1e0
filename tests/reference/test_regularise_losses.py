"""Losses against their formulas, written out sample by sample."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kingpost as kp
from kingpost.assembly import Batch
from kingpost.source import DataFacts
from kingpost.train.objectives.class_weights import weighted_cross_entropy
from kingpost.train.objectives.confidence import entropy
from kingpost.train.objectives.focal import binary_focal_loss, focal_loss, poly_term
from kingpost.train.objectives.noisy_labels import bootstrapped, generalised_cross_entropy
from kingpost.train.objectives.of_truth import balanced_weights
from kingpost.train.regularise.gradient_penalty import (
    Now,
    directions,
    squared_jacobian,
    with_gradient_penalty,
    with_jacobian_penalty,
)
from kingpost.train.tasks import Classification

ROUNDING = 1e-13  # sums of at most a hundred numbers around 1, in 64 bits


def scores() -> Tensor:
    return 2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


CLASSES = torch.tensor([0, 3, 2, 2, 1, 0])


def shares() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).softmax(-1)


def by_hand(term: object, soft: bool) -> float:
    """``sum_i sum_c t_ic term(p_ic)`` with plain numbers."""
    total = 0.0
    for row, label, share in zip(scores().tolist(), CLASSES.tolist(), shares().tolist(), strict=True):
        z = sum(math.exp(s) for s in row)
        for c, s in enumerate(row):
            t = share[c] if soft else float(c == label)
            total += t * term(math.exp(s) / z, c)  # type: ignore[operator]
    return total


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
def test_functions_of_the_true_probability(soft: bool, strength: float) -> None:
    targets, x = shares() if soft else CLASSES, scores()
    focal = by_hand(lambda p, c: -((1 - p) ** strength) * math.log(p), soft)
    assert focal_loss(x, targets, strength).item() == pytest.approx(focal, rel=ROUNDING)
    assert poly_term(x, targets, strength).item() == pytest.approx(
        strength * by_hand(lambda p, c: 1 - p, soft), rel=ROUNDING
    )
    q = min(strength, 1.0)
    gce = by_hand(lambda p, c: (1 - p**q) / q, soft)
    assert generalised_cross_entropy(x, targets, q).item() == pytest.approx(gce, rel=ROUNDING)
    w = torch.tensor([0.5, 1.0, 2.0, 3.0])
    weighted = by_hand(lambda p, c: -float(w[c]) * math.log(p), soft)
    assert weighted_cross_entropy(x, targets, w).item() == pytest.approx(weighted, rel=ROUNDING)
    torch.testing.assert_close(
        weighted_cross_entropy(x, targets, w),
        F.cross_entropy(x, targets, weight=w, reduction="sum"),
        rtol=ROUNDING,
        atol=0,
    )


def test_limits_are_cross_entropy_and_the_absolute_error() -> None:
    x = scores()
    plain = F.cross_entropy(x, CLASSES, reduction="sum")
    assert torch.equal(focal_loss(x, CLASSES, 0.0), plain) or torch.allclose(focal_loss(x, CLASSES, 0.0), plain, 1e-14)
    # (1 - p^q) / q = -log p - q log^2 p / 2 + ..., with log^2 p below 40 here
    torch.testing.assert_close(generalised_cross_entropy(x, CLASSES, 1e-8), plain, rtol=1e-6, atol=0)
    one_hot = F.one_hot(CLASSES, 4).to(x.dtype)
    absolute = (x.softmax(-1) - one_hot).abs().sum() / 2
    torch.testing.assert_close(generalised_cross_entropy(x, CLASSES, 1.0), absolute, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_gradient_stays_finite_for_certain_samples(gamma: float) -> None:
    x = torch.tensor([[80.0, 0.0], [0.0, 80.0]], requires_grad=True)
    (g,) = torch.autograd.grad(focal_loss(x, torch.tensor([0, 0]), gamma), x)
    assert g.isfinite().all()
    assert g[0].abs().max() < 1e-12 and g[1].abs().max() > 0.9  # the right one is silent, the wrong one is not


def test_binary_focal_loss_is_the_formula_for_each_label() -> None:
    truth = (shares() > 0.25).to(torch.float64)
    total = 0.0
    for row, labels in zip(scores().tolist(), truth.tolist(), strict=True):
        for s, t in zip(row, labels, strict=True):
            p = 1 / (1 + math.exp(-s))
            p_t = p if t else 1 - p
            total += -((1 - p_t) ** 2) * math.log(p_t)
    assert binary_focal_loss(scores(), truth, 2.0).item() == pytest.approx(total, rel=ROUNDING)
    plain = F.binary_cross_entropy_with_logits(scores(), truth, reduction="sum")
    torch.testing.assert_close(binary_focal_loss(scores(), truth, 0.0), plain, rtol=ROUNDING, atol=0)


def test_entropy_is_that_of_torchs_distribution() -> None:
    expected = torch.distributions.Categorical(logits=scores()).entropy()
    torch.testing.assert_close(entropy(scores(), CLASSES), expected.sum(), rtol=ROUNDING, atol=0)
    hidden = CLASSES.clone()
    hidden[2:4] = -100
    torch.testing.assert_close(entropy(scores(), hidden), expected[[0, 1, 4, 5]].sum(), rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_bootstrapping_mixes_label_and_guess(kind: str) -> None:
    x = scores()
    p = x.softmax(-1)
    guess = p if kind == "soft" else F.one_hot(p.argmax(-1), 4)
    mixed = 0.7 * F.one_hot(CLASSES, 4) + 0.3 * guess
    expected = -(mixed * x.log_softmax(-1)).sum()
    torch.testing.assert_close(bootstrapped(x, CLASSES, 0.7, kind), expected, rtol=ROUNDING, atol=0)  # type: ignore[arg-type]
    soft = -((0.7 * shares() + 0.3 * guess) * x.log_softmax(-1)).sum()
    torch.testing.assert_close(bootstrapped(x, shares(), 0.7, kind), soft, rtol=ROUNDING, atol=0)  # type: ignore[arg-type]


def test_hidden_positions_count_for_nothing() -> None:
    x, hidden = scores().view(2, 3, 4).requires_grad_(), CLASSES.view(2, 3).clone()
    hidden[0, 1] = -100
    for loss in (
        focal_loss(x, hidden, 2.0),
        poly_term(x, hidden, 1.0),
        generalised_cross_entropy(x, hidden, 0.7),
        bootstrapped(x, hidden, 0.8, "soft"),
        bootstrapped(x, hidden, 0.8, "hard"),
    ):
        (g,) = torch.autograd.grad(loss, x)
        assert torch.equal(g[0, 1], torch.zeros(4)) and (g[1].abs().sum(-1) > 0).all()


def facts(counts: tuple[int, ...]) -> DataFacts:
    return DataFacts(
        task="classification", inputs=(((2,), torch.float64),), classes=tuple("abc")[: len(counts)], class_counts=counts
    )


def test_balanced_weights_give_each_class_the_same_sum() -> None:
    counts = (50, 30, 20)
    weights = balanced_weights(facts(counts))
    for count, weight in zip(counts, weights.tolist(), strict=True):
        assert weight == pytest.approx(100 / (3 * count), rel=1e-14)  # N / (C n_c), as scikit-learn's "balanced"
    half = balanced_weights(facts(counts), power=0.5)
    assert sum(c * w for c, w in zip(counts, half.tolist(), strict=True)) == pytest.approx(100, rel=1e-14)
    assert float(half[2] / half[0]) == pytest.approx((50 / 20) ** 0.5, rel=1e-14)


def test_weights_equal_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0] * 7 + [1] * 2 + [2] * 4)
    theirs = compute_class_weight("balanced", classes=numpy.arange(3), y=labels.numpy())
    ours = balanced_weights(facts(tuple(labels.bincount().tolist())))
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-14, atol=0)


def test_a_class_without_samples_is_refused() -> None:
    with pytest.raises(kp.RecipeError, match="no sample of class 'b'"):
        balanced_weights(facts((3, 0, 2)))
    with pytest.raises(kp.RecipeError, match="does not say how many"):
        balanced_weights(DataFacts(task="classification", inputs=(((2,), torch.float64),), classes=("a", "b")))


# ---- penalties on derivatives


def smooth_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))


def batch() -> Batch:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
    return Batch((x,), CLASSES, 0, 6)


def test_gradient_penalty_is_that_of_each_sample_alone() -> None:
    model = smooth_net()
    ours = with_gradient_penalty(Classification().objective, 0.3)(model, batch())
    total = F.cross_entropy(model(*batch().inputs), CLASSES, reduction="sum")
    for x, y in zip(batch().inputs[0], CLASSES, strict=True):
        one = torch.func.grad(lambda z, y=y: F.cross_entropy(model(z), y))(x)
        total = total + 0.3 * one.square().sum()
    torch.testing.assert_close(ours.data, total, rtol=ROUNDING, atol=0)
    (g,) = torch.autograd.grad(ours.data, model[0].weight)  # type: ignore[index]
    h = 1e-5
    with torch.no_grad():
        weight = model[0].weight  # type: ignore[index]
        old = float(weight[2, 1])
        sides = []
        for sign in (1, -1):
            weight[2, 1] = old + sign * h
            sides.append(float(with_gradient_penalty(Classification().objective, 0.3)(model, batch()).data))
        weight[2, 1] = old
    # Central differences: h^2 times a third derivative, and rounding of 1e-14 / h.
    assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(float(g[2, 1]), abs=1e-7)


def test_projected_jacobian_is_the_product() -> None:
    model, (x,) = smooth_net(), batch().inputs
    x = x.detach().requires_grad_()
    v = directions(torch.zeros(6, 4), batch(), kp.Step(index=0, seed=0), 0)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(6), rtol=1e-15, atol=0)
    jacobians = torch.func.vmap(torch.func.jacrev(model))(x)
    expected = torch.einsum("bk,bkf->bf", v, jacobians).square().sum()
    torch.testing.assert_close(squared_jacobian(model(x), [x], v), expected, rtol=ROUNDING, atol=0)


def test_estimate_of_the_jacobian_has_no_bias() -> None:
    model = smooth_net()
    jacobians = torch.func.vmap(torch.func.jacrev(model))(*batch().inputs)
    exact = float(jacobians.detach().square().sum()) / 2  # summed over samples, as `data` is
    plain = float(Classification().objective(model, batch()).data.detach())
    found = []
    for index in range(400):
        now = Now(seed=0)
        now.step = kp.Step(index=index, seed=0)
        found.append(
            float(with_jacobian_penalty(Classification().objective, 1.0, 1, now)(model, batch()).data.detach()) - plain
        )
    sample = torch.tensor(found)
    error = float(sample.std()) / len(found) ** 0.5
    assert abs(float(sample.mean()) - exact) < 4 * error  # seeded, so it either always holds or never
    assert error < 0.05 * exact, "too few draws to prove anything"


def test_directions_of_a_sample_do_not_depend_on_the_piece() -> None:
    step, whole = kp.Step(index=1, seed=2), directions(torch.zeros(6, 4), batch(), kp.Step(index=1, seed=2), 0)
    parts = [directions(torch.zeros(len(piece), 4), piece, step, 0) for piece in batch().split(4)]
    assert torch.equal(torch.cat(parts), whole)
