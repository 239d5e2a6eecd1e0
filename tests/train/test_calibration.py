"""Calibration against torchmetrics and a grid; conformal sets against their stated coverage, on exchangeable data."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kingpost as kp
from kingpost.cli import main
from kingpost.train.calibrate import (
    brier,
    calibration_error,
    fit_temperature,
    reliability,
    scores_of,
)
from kingpost.train.ensemble import conformal


def logits(samples: int = 600, classes: int = 4, seed: int = 0, sharp: float = 3.0) -> tuple[Tensor, Tensor]:
    """Scores that are too sharp by a known factor, and classes drawn from the honest ones."""
    draw = torch.Generator().manual_seed(seed)
    honest = 1.5 * torch.randn(samples, classes, generator=draw)
    return sharp * honest, torch.multinomial(honest.softmax(1), 1, generator=draw)[:, 0]


@pytest.mark.parametrize("bins", [5, 15])
@pytest.mark.parametrize("norm", ["l1", "max"])
def test_calibration_error_is_that_of_torchmetrics(bins: int, norm: str) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    scores, targets = logits()
    probabilities = scores.softmax(1)
    confidence, predicted = probabilities.max(1)
    found = reliability(confidence, predicted == targets, bins)
    ours = calibration_error(found) if norm == "l1" else max(abs(one.confidence - one.right) for one in found)
    theirs = float(multiclass_calibration_error(probabilities, targets, 4, n_bins=bins, norm=norm))
    assert ours == pytest.approx(theirs, abs=1e-6)  # torchmetrics sums 600 numbers in 32 bits


def test_bins_of_equal_mass_are_numpys_split() -> None:
    import numpy as np

    scores, targets = logits(50)
    confidence, predicted = scores.softmax(1).max(1)
    right = (predicted == targets).numpy()
    order = np.argsort(confidence.numpy(), kind="stable")
    edges = [50 * i // 7 for i in range(8)]
    expected = [(confidence.numpy()[order[a:b]].mean(), right[order[a:b]].mean(), b - a)
                for a, b in itertools.pairwise(edges)]  # fmt: skip
    found = [
        (one.confidence, one.right, one.samples) for one in reliability(confidence, predicted == targets, 7, "mass")
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-15)  # one mean of seven numbers


def test_brier_and_likelihood_are_scikit_learns() -> None:
    from sklearn.metrics import brier_score_loss, log_loss

    scores, targets = logits(200)
    probabilities = scores.softmax(1)
    found = scores_of(scores, targets)
    assert found["nll_nats"] == pytest.approx(log_loss(targets, probabilities, labels=range(4)), rel=1e-12)
    assert found["accuracy"] == float((probabilities.argmax(1) == targets).double().mean())
    one_class = torch.stack([probabilities[:, 0], 1 - probabilities[:, 0]], 1)  # scikit-learn's is half of ours
    halves = brier_score_loss(targets == 0, probabilities[:, 0])
    assert brier(one_class, (targets != 0).long()) == pytest.approx(2 * halves, rel=1e-12)


def test_the_temperature_is_the_best_of_a_grid_and_changes_no_decision() -> None:
    scores, targets = logits()
    temperature = fit_temperature(scores, targets)
    losses = {t: float(F.cross_entropy(scores / t, targets)) for t in torch.linspace(0.5, 8, 3001).tolist()}
    best = min(losses, key=losses.__getitem__)
    assert abs(temperature - best) <= 0.0025  # the step of the grid
    assert float(F.cross_entropy(scores / temperature, targets)) <= losses[best] + 1e-12
    assert torch.equal((scores / temperature).argmax(1), scores.argmax(1))
    # The data was drawn at 3; with 600 samples it is found within some 10 %.
    assert temperature == pytest.approx(3, rel=0.15)


def test_the_slope_is_zero_at_the_temperature() -> None:
    scores, targets = logits(seed=1)
    inverse = torch.tensor(1 / fit_temperature(scores, targets), requires_grad=True)
    (slope,) = torch.autograd.grad(F.cross_entropy(scores * inverse, targets), inverse)
    assert abs(float(slope)) < 1e-6  # LBFGS stops where a step gains less than 1e-15


def test_a_loss_without_minimum_ends_near_a_limit() -> None:
    scores = torch.tensor([[1.0, 0.0]] * 4)
    assert 0.01 <= fit_temperature(scores, torch.tensor([0] * 4)) < 0.05  # where the loss is 0 to the last digit
    assert fit_temperature(scores, torch.tensor([1] * 4)) == pytest.approx(100, rel=1e-2)


# ---- conformal


@pytest.mark.parametrize(("n", "alpha", "rank"), [(9, 0.1, 9), (99, 0.1, 90), (10, 0.1, 10), (20, 0.01, 21)])
def test_the_bound_is_the_right_score(n: int, alpha: float, rank: int) -> None:
    assert conformal.rank_of(n, alpha) == rank
    scores = torch.arange(1.0, n + 1)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    assert conformal.bound(scores, alpha) == (rank if rank <= n else math.inf)


@pytest.mark.parametrize("method", ["aps", "raps", "lac"])
def test_sets_cover_as_stated_on_exchangeable_data(method: conformal.SetMethod) -> None:
    """The mean of 60 coverages, each ``Beta(k, n + 1 - k)`` and measured on 400 samples, for a net that is wrong."""
    n, alpha, repeats = 200, 0.2, 60
    scores, targets = logits(repeats * (n + 400), seed=3)
    all_scores = conformal.class_scores(scores.softmax(1), method, seed=7).gather(1, targets[:, None])[:, 0]
    parts = all_scores.view(repeats, -1)
    hits = [int((part[n:] <= conformal.bound(part[:n], alpha)).sum()) for part in parts]
    k = conformal.rank_of(n, alpha)
    a, b = k, n + 1 - k
    mean = a / (a + b)
    variance = mean * (1 - mean) / 400 * (1 + (400 - 1) / (a + b + 1))  # of a beta-binomial's part
    found = sum(hits) / repeats / 400
    assert abs(found - mean) < 4 * math.sqrt(variance / repeats)  # four standard errors
    assert mean >= 1 - alpha
    low, high = conformal.coverage_range(n, 400, alpha)
    inside = sum(low <= hit / 400 <= high for hit in hits)
    assert inside >= 51  # of 60 at 95 % each; fewer than 52 has probability 0.002


def test_the_scores_are_those_of_the_papers_written_out() -> None:
    draw = torch.Generator().manual_seed(5)
    p = torch.randn(6, 8, generator=draw).softmax(1)
    u = torch.rand(6, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for method in ("aps", "raps", "lac"):
        found = conformal.class_scores(p, method, seed=9)
        for i, y in itertools.product(range(6), range(8)):
            own = float(p[i, y])
            likelier = [float(q) for q in p[i] if float(q) > own]
            expected = {
                "lac": 1 - own,
                "aps": sum(likelier) + float(u[i]) * own,
                "raps": sum(likelier) + float(u[i]) * own + 0.01 * max(0, len(likelier) + 1 - 5),
            }[method]
            assert float(found[i, y]) == pytest.approx(expected, abs=1e-14)  # a sum of eight numbers


@pytest.mark.parametrize("quantiles", [False, True])
def test_intervals_cover_as_stated(quantiles: bool) -> None:
    draw = torch.Generator().manual_seed(6)
    x = torch.rand(4000, generator=draw)
    y = x + (0.1 + x) * torch.randn(4000, generator=draw)
    low, high = (x - 0.5 * (0.1 + x), x + 0.5 * (0.1 + x)) if quantiles else (x, x)  # quantiles that are too narrow
    scores = conformal.quantile_scores(low, high, y)
    if not quantiles:
        torch.testing.assert_close(scores, conformal.residual_scores(x, y), rtol=0, atol=0)
    limit = conformal.bound(scores[:1000], 0.1)
    inside = ((y >= low - limit) & (y <= high + limit))[1000:]
    a, b = conformal.coverage_range(1000, 3000, 0.1, level=0.999)
    assert a <= float(inside.double().mean()) <= b


@pytest.mark.parametrize(("hits", "samples"), [(0, 5), (5, 5), (3, 10), (902, 1000)])
def test_the_exact_interval_is_scipys(hits: int, samples: int) -> None:
    from scipy.stats import binomtest

    theirs = binomtest(hits, samples).proportion_ci(0.95, method="exact")
    # Sums of up to a thousand exponentials of logarithms near 1e3, whose rounding is 1e-13 each.
    assert conformal.proportion_interval(hits, samples) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_range_of_coverages_is_scipys() -> None:
    from scipy.stats import betabinom

    k = conformal.rank_of(150, 0.1)
    theirs = [betabinom.ppf(q, 80, k, 151 - k) / 80 for q in (0.025, 0.975)]
    assert conformal.coverage_range(150, 80, 0.1) == pytest.approx(theirs, abs=1e-12)


# ---- the verbs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> kp.Run:
    torch.set_default_dtype(torch.float32)
    recipe = kp.Recipe.from_value(
        {
            "name": "small",
            "data": "digits",
            "model": {"name": "mlp", "widths": [16]},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "budget": {"epochs": 2},
            "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
            "save": {"report": False},
        }
    )
    return kp.train(recipe, root=tmp_path_factory.mktemp("runs"), quiet=True)


@pytest.fixture(autouse=True)
def in_32_bits(in_64_bits: None, request: pytest.FixtureRequest) -> None:
    if "run" in request.fixturenames:
        torch.set_default_dtype(torch.float32)


def test_calibrate_writes_a_temperature_that_predict_uses(run: kp.Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(kp.RunError, match="has no temperature yet; find it with: kingpost calibrate"):
        kp.predict(run, calibrated=True)
    assert main(["calibrate", str(run.folder), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value == json.loads((run.folder / "calibration.json").read_text())
    plain, scaled = kp.predict(run), kp.predict(run, calibrated=True)
    assert torch.equal(plain.values.argmax(1), scaled.values.argmax(1))
    # Probabilities to the power 1/T, normalised, in 32 bits.
    powers = plain.values.double() ** (1 / value["temperature"])
    torch.testing.assert_close(scaled.values.double(), powers / powers.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    figures = value["figures"]["test"]
    assert plain.metrics["loss"] == pytest.approx(figures["before"]["nll_nats"], rel=1e-5)
    assert scaled.metrics["loss"] == pytest.approx(figures["after"]["nll_nats"], rel=1e-5)
    before, after = (value["figures"]["validation"][when]["nll_nats"] for when in ("before", "after"))
    assert after <= before
    page = (run.folder / "report.html").read_text()
    assert "Reliability diagram" in page and f"Temperature {value['temperature']:.4g}" in page
    with pytest.raises(kp.RunError, match="is that of its best weights, not the last"):
        kp.predict(run, calibrated=True, which="last")


def test_predict_writes_sets_and_says_what_they_cover(run: kp.Run, tmp_path: Path) -> None:
    import pandas as pd

    made = kp.predict(run, alpha=0.2, sets="lac")
    made.save_to(tmp_path / "p.csv")
    table = pd.read_csv(tmp_path / "p.csv", dtype={"set": str, "target": str}, keep_default_na=False)
    members = [set(row.split("|")) - {""} for row in table["set"]]
    assert [len(row) for row in members] == table["set_size"].tolist()
    inside = sum(target in row for target, row in zip(table["target"], members, strict=True))
    assert made.metrics["coverage"] == inside / len(table)
    assert made.metrics["set_size"] == pytest.approx(table["set_size"].mean())
    note = made.notes["coverage"]
    assert note.startswith(f"stated 0.8; {inside} of {len(table)}, exact 95 % interval") and "--weights last" in note
    assert "--weights last" not in kp.predict(run, alpha=0.2, which="last").notes["coverage"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": "lac"}, "'lac' has no effect without a stated coverage"),
        ({"alpha": 1.5}, "must lie between 0 and 1, got 1.5"),
        ({"alpha": 0.1, "sets": "cqr"}, "'cqr' is not for classification; use aps or raps or lac"),
        ({"voters": "swag"}, "has kept nothing for 'swag'; train a run with techniques\\+=swag"),
        ({"voters": "dropout"}, "no dropout that could stay on"),
        ({"voters": "dropout", "calibrated": True}, "not of a committee"),
        ({"voters": "dropout", "samples": 0}, "at least 1 net or mask"),
    ],
)
def test_what_has_no_meaning_is_refused(run: kp.Run, options: dict[str, object], message: str) -> None:
    with pytest.raises(kp.KingpostError, match=message):
        kp.predict(run, **options)  # type: ignore[arg-type]
