"""What happens at the end of an epoch, and when a run ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from contract.subjects import differences, state_of
from contract.toys import Toy
from kingpost.run import Run
from kingpost.train.train import train
from train.parts import model_state, net, recipe

WILD = {"name": "sgd", "lr": 6.0, "momentum": 0.0}  # scores go up and down


def weights_after(epochs: int, folder: Path, **fields: Any) -> dict[str, torch.Tensor]:
    run = train(recipe(budget={"epochs": epochs}, **fields), root=folder, quiet=True)
    return model_state(run)


def accuracy(weights: dict[str, torch.Tensor]) -> float:
    model = net().eval()
    model.load_state_dict(weights)
    split = Toy().open().splits["validation"]
    with torch.no_grad():
        right = model(split.inputs[0]).argmax(1) == split.targets  # type: ignore[attr-defined]
    return int(right.sum()) / len(right)


def test_best_and_last_weights_are_those_of_their_epochs(tmp_path: Path) -> None:
    run = train(recipe(budget={"epochs": 5}, optimizer=WILD), root=tmp_path, quiet=True)
    after = [weights_after(n, tmp_path / str(n), optimizer=WILD) for n in range(1, 6)]
    scores = [accuracy(weights) for weights in after]
    # torchmetrics divides in 32 bits.
    assert [row["validation_accuracy"] for row in run.results] == pytest.approx(scores, rel=1e-6)
    best = scores.index(max(scores))
    assert best < 4, "with the best epoch last, this would prove nothing"
    assert run.summary["best"]["epoch"] == best + 1
    assert differences(load_file(run.weights("best")), after[best]) == []
    assert differences(load_file(run.weights("last")), after[-1]) == []


def test_early_stopping_stops_and_keeps_the_best(tmp_path: Path) -> None:
    stopping = [{"name": "early-stopping", "patience": 2}]
    run = train(recipe(budget={"epochs": 30}, optimizer=WILD, techniques=stopping), root=tmp_path, quiet=True)
    scores = [row["validation_accuracy"] for row in run.results]
    best = scores.index(max(scores))
    assert len(scores) == best + 3 < 30
    assert run.summary["message"] == "early stopping ended the run"
    assert run.status == "finished"
    expected = weights_after(best + 1, tmp_path / "x", optimizer=WILD)
    assert differences(load_file(run.weights("best")), expected) == []


def test_evaluates_every_so_many_epochs_and_after_the_last(tmp_path: Path) -> None:
    save = {"report": False, "evaluate_every_epochs": 3}
    run = train(recipe(budget={"epochs": 8}, save=save), root=tmp_path, quiet=True)
    judged = [row["epoch"] for row in run.results if "validation_accuracy" in row]
    assert judged == [3, 6, 8]
    assert [row["epoch"] for row in run.results] == list(range(1, 9))
    assert len(state_of(run)["position"]["scores"]) == 3
    often = train(recipe(budget={"epochs": 8}), root=tmp_path, quiet=True)
    assert differences(model_state(run), model_state(often)) == []  # judging leaves no trace in the training


def test_without_a_validation_part_the_last_weights_are_the_best(tmp_path: Path) -> None:
    data = {"name": "train.parts:Odd", "parts": ["train"]}
    run = train(recipe(data=data, optimizer=WILD), root=tmp_path, quiet=True)
    assert run.status == "finished"
    assert not [key for row in run.results for key in row if key.startswith("validation")]
    assert differences(load_file(run.weights("best")), load_file(run.weights("last"))) == []
    assert differences(load_file(run.weights("best")), model_state(run)) == []
    with_one = train(recipe(optimizer=WILD), root=tmp_path, quiet=True)
    assert differences(model_state(run), model_state(with_one)) == []


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_a_budget_in_steps_is_kept_to_the_step(steps: int, tmp_path: Path) -> None:
    run = train(recipe(budget={"steps": steps}), root=tmp_path, quiet=True)
    assert [row["step"] for row in run.steps] == list(range(1, steps + 1))
    assert len(run.results) == -(-steps // 3)
    assert run.results[-1]["step"] == steps
    assert "validation_accuracy" in run.results[-1]


def test_a_budget_in_seconds_ends(tmp_path: Path) -> None:
    """Not a timed test: only that it ends by itself, and that the schedule was followed to its end."""
    from kingpost.train import loop

    seen: list[float] = []
    whole = loop.Job._progress
    try:
        loop.Job._progress = lambda self: seen.append(whole(self)) or seen[-1]  # type: ignore[func-returns-value,method-assign]
        run = train(recipe(budget={"seconds": 0.4}, schedule="cosine"), root=tmp_path, quiet=True)
    finally:
        loop.Job._progress = whole  # type: ignore[method-assign]
    assert run.status == "finished"
    assert min(seen) >= 0
    assert max(seen) == 1.0
    assert seen == sorted(seen)
    rates = [row["learning_rate"] for row in run.steps]
    assert all(0 <= rate <= 0.1 for rate in rates)
    assert rates[0] == 0.1
    assert rates[-1] < 0.05, "near the end of its time half a cosine has fallen below the middle"


@pytest.mark.parametrize("schedule", ["one-cycle", {"name": "cosine", "warmup": 0.3}])
def test_schedules_with_a_budget_in_seconds_stay_in_range(schedule: Any, tmp_path: Path) -> None:
    run = train(recipe(budget={"seconds": 0.2}, schedule=schedule), root=tmp_path, quiet=True)
    assert run.status == "finished"
    assert all(0 <= row["learning_rate"] <= 0.1 * (1 + 1e-12) for row in run.steps)  # one rounding at the peak


def test_the_test_part_is_judged_with_the_best_weights(tmp_path: Path) -> None:
    data = {"name": "digits"}
    model = {"name": "mlp", "widths": [16]}
    torch.set_default_dtype(torch.float32)  # the digits are
    run = train(recipe(data=data, model=model, batch_size=256, optimizer="adamw"), root=tmp_path, quiet=True)
    from kingpost.data.bundled import Digits
    from kingpost.train.predict import load_model

    split = Digits().open().splits["test"]
    model_ = load_model(run, "best", "cpu")
    with torch.no_grad():
        scores = model_(split.inputs[0])  # type: ignore[attr-defined]
    targets = split.targets  # type: ignore[attr-defined]
    test = json.loads((run.folder / "run.json").read_text())["test"]
    # 32 bits, a mean of 360 losses.
    assert test["loss"] == pytest.approx(float(F.cross_entropy(scores, targets)), rel=1e-5)
    assert test["accuracy"] == pytest.approx(float((scores.argmax(1) == targets).double().mean()), rel=1e-6)
    judged = load_file(run.folder / "judged.safetensors")
    losses = F.cross_entropy(scores, targets, reduction="none")
    torch.testing.assert_close(judged["losses"], losses, rtol=1e-4, atol=1e-6)  # 32 bits, one by one against a batch
    assert torch.equal(judged["targets"], targets)


def test_runs_listed_by_age(tmp_path: Path) -> None:
    for name in ("b", "a"):
        train(recipe(name=name, budget={"steps": 1}), root=tmp_path, quiet=True)
    assert {run.name for run in Run.all_in(tmp_path)} == {"a", "b"}
