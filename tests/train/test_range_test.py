"""The learning-rate range test against a loop written by hand, on curves whose answer is known, and as a command."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kingpost as kp
from kingpost.cli import main
from kingpost.errors import RecipeError, TrainingError
from kingpost.train import range_test
from kingpost.train.range_test import judged, lr_range_test
from reference.plain import batches, net, recipe


@pytest.fixture(autouse=True)
def in_64_bits() -> Any:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def two_groups(params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Biases at a tenth of the rate."""
    weights, biases = [], []
    for p in params:
        (weights if p.ndim > 1 else biases).append(p)
    return torch.optim.SGD([{"params": weights}, {"params": biases, "lr": lr / 10}], lr=lr)


def by_hand(model: nn.Module, low: float, high: float, steps: int, bound: float) -> tuple[list[float], list[float]]:
    """Rates and losses, with the gradient clipped and biases at a tenth of the rate."""
    model, rates, losses = copy.deepcopy(model), [], []
    for index, (x, y) in enumerate(batches(steps)):
        rates.append(low * (high / low) ** (index / (steps - 1)))
        loss = F.cross_entropy(model(x), y)
        losses.append(float(loss.detach()))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), bound)
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p -= rates[-1] * (1.0 if p.ndim > 1 else 0.1) * p.grad
    return rates, losses


def test_equals_a_loop_written_by_hand_and_leaves_objects_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = net()
    before = copy.deepcopy(model.state_dict())
    made = recipe(
        model,
        optimizer=kp.call(two_groups, lr=0.3),
        schedule={"name": "cosine", "warmup": 0.5},
        techniques=[kp.Clip(norm=0.5)],
    )
    found = lr_range_test(made, low=1e-3, high=2.0, steps=20, quiet=True)
    rates, losses = by_hand(net(), 1e-3, 2.0, 20, bound=0.5)
    # The same operations in 64 bits, but for rates: powers in another order.
    assert found.rates == pytest.approx(rates, rel=1e-12)
    assert found.losses == pytest.approx(losses, rel=1e-11)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_twice_the_same() -> None:
    made = recipe(net(), techniques=["mixup", "sam", kp.Dropout(p=0.1)])
    assert lr_range_test(made, steps=20, quiet=True) == lr_range_test(made, steps=20, quiet=True)


def curve(centre: float, rises: float, steps: int = 100, noise: float = 0.0) -> tuple[list[float], list[float]]:
    """A loss that falls from 2 to 1, fastest at ``centre``, and grows without bound from ``rises`` on; up to 10."""
    rates = np.geomspace(1e-6, 10, steps)
    x = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-4 * (x - math.log10(centre)))) + np.where(rates > rises, (rates / rises) ** 2 - 1, 0)
    losses += noise * np.random.default_rng(0).standard_normal(steps)
    return rates.tolist(), losses.tolist()


@pytest.mark.parametrize("centre", [1e-4, 1e-3, 3e-2])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_steepest_fall_is_found(centre: float, noise: float) -> None:
    rates, losses = curve(centre, rises=10.0, noise=noise)
    found = judged("a", "nats", rates, losses, few=5)
    assert found.diverged is None
    assert found.steepest == pytest.approx(centre, rel=0.2 if noise == 0 else 0.8)  # steps are 18 % apart
    assert found.suggestion == pytest.approx(found.steepest, rel=0.05)  # two digits
    assert "the steepest fall" in str(found)


def test_the_smaller_of_the_two_rules_is_suggested() -> None:
    rates, losses = curve(0.03, rises=0.1)
    end = next(i for i in range(5, 100) if range_test.has_risen(losses[: i + 1], 5)) + 1
    found = judged("a", "nats", rates[:end], losses[:end], few=5)
    assert found.diverged == rates[end - 1] and 0.1 < found.diverged < 0.3
    assert found.steepest == pytest.approx(0.03, rel=0.3)
    assert found.suggestion == pytest.approx(found.diverged / 10, rel=0.05)
    assert found.suggestion < found.steepest
    said = {figure.name: figure for figure in found.figures()}
    assert said["suggestion"].reason == "the smaller of the steepest fall and a tenth of the divergence"
    assert said["suggestion"].value == f"optimizer.lr={found.suggestion:g}"
    assert float(str(said["a tenth of the divergence"].value)) == pytest.approx(found.diverged / 10, rel=0.005)


def test_noise_is_no_fall() -> None:
    losses = (2 + 0.1 * np.random.default_rng(1).standard_normal(100)).tolist()
    found = judged("a", "nats", np.geomspace(1e-6, 1, 100).tolist(), losses, few=5)
    assert (found.steepest, found.diverged, found.suggestion) == (None, None, None)
    assert "try more steps, or another range" in str(found) and found.marks() == {}


def test_it_ends_where_the_loss_is_not_finite() -> None:
    found = lr_range_test(recipe(nn.Sequential(nn.Flatten(), Breaks(), nn.Linear(64, 3))), low=1e-3, quiet=True)
    assert found.diverged is not None and len(found.losses) == 30
    assert all(map(math.isfinite, [*found.losses, *found.smoothed]))
    assert len(found.rates) == len(found.smoothed) == 30
    assert found.diverged == pytest.approx(1e-3 * 1000 ** (30 / 99), rel=1e-12)  # that of the step after
    json.dumps(found.to_value(), allow_nan=False)


class Breaks(nn.Module):
    """Gives NaN from the thirty-first batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x if self.passes <= 30 else x * math.nan


def test_a_loss_that_is_never_finite_is_an_error() -> None:
    made = recipe(nn.Sequential(nn.Flatten(), Root(), nn.Linear(64, 3)))
    with pytest.raises(TrainingError, match=r"the loss was out of bounds after 0 steps, at a rate of 1e-06; begin"):
        lr_range_test(made, steps=20, quiet=True)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (-x.abs() - 1).sqrt()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"low": 1.0, "high": 0.1}, "got a range from 1 to 0.1; from must be above 0, and to above from"),
        ({"low": 0.0}, "got a range from 0 to 1; from must be above 0"),
        ({"steps": 19}, "got 19 steps; at least 20, or no slope can be seen"),
    ],
)
def test_ranges_that_are_none_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        lr_range_test(recipe(net()), quiet=True, **fields)
    assert str(caught.value).startswith(said)


def test_under_torchrun_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="runs on one process; start it without torchrun"):
        lr_range_test(recipe(net()), quiet=True)


SMALL = ["lr", "digits", "layout.threads=1", "layout.device=cpu", "--steps", "40", "--quiet"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    return tmp_path


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_command_draws_and_leaves_nothing_else(ending: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--output", f"curve.{ending}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("learning-rate range test of 'digits'\n") and out.endswith(f"written: curve.{ending}\n")
    assert [path.name for path in here.iterdir()] == [f"curve.{ending}"]
    begin = (here / f"curve.{ending}").read_bytes()[:200]
    assert begin.startswith(b"\x89PNG") if ending == "png" else b"<svg" in (here / "curve.svg").read_bytes()


def test_command_gives_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--from", "1e-5", "--to", "0.5", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["rates"][0] == pytest.approx(1e-5) and len(value["rates"]) == len(value["losses"])
    assert 1e-4 < value["suggestion"] < 0.1  # AdamW on a small net
    assert list(here.iterdir()) == []


def test_without_matplotlib_one_line_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*SMALL, "--output", "curve.png"]) == 0
    out = capsys.readouterr().out.splitlines()
    said = "drawing the range test needs 'matplotlib', which is not installed: pip install 'kingpost[report]'"
    assert out[-1] == f"no plot: {said}" and "suggestion" in out[-2]
    assert list(here.iterdir()) == []


def test_an_ending_that_cannot_be_drawn_is_refused_before_anything_is_done(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr", "no such recipe", "--output", "curve.txt"]) == 2
    assert capsys.readouterr().err == "error: --output: cannot draw 'curve.txt'; known endings: .png, .svg, .pdf\n"


def test_ctrl_c_ends_it_and_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = range_test.take_gradient

    def interrupted(assembly: Any, model: Any, batch: Any, step: Any, statistics: Any) -> Any:
        if step.index == 5:
            raise KeyboardInterrupt
        return taken(assembly, model, batch, step, statistics)

    monkeypatch.setattr(range_test, "take_gradient", interrupted)
    assert main([*SMALL, "--output", "curve.png"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert list(here.iterdir()) == []
