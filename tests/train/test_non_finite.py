"""A NaN or Inf ends the run before it reaches a weight, and the message says where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from contract.subjects import differences
from kingpost.errors import NonFiniteError
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.train.train import resume, train
from train.parts import different, model_state, recipe

SAFE = 4  # steps that go well: one epoch and a step


def failed(recipe: Recipe, folder: Path) -> tuple[str, Run]:
    """The message, and the run that failed."""
    with pytest.raises(NonFiniteError) as caught:
        train(recipe, root=folder, quiet=True)
    run = Run(folder / recipe.name)
    assert run.status == "failed"
    assert run.summary["message"] == f"NonFiniteError: {caught.value}"
    return str(caught.value), run


def of(fault: str, **more: Any) -> dict[str, Any]:
    return {"name": "train.parts:net", "fault": fault, "at": SAFE, **more}


MESSAGES = {
    "output": r"step 4: the first NaN came out of module 'faulty' \(Faulty\)\. The weights were not changed",
    "loss": r"step 4: all modules gave finite outputs, but the loss is inf\.",
    "gradient": r"step 4: the outputs are finite, but the gradient of 'last.\w+' holds NaN \(operation: .*Sqrt",
}


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("fault", MESSAGES)
def test_the_place_is_named_and_the_state_before_is_kept(fault: str, norm: bool, tmp_path: Path) -> None:
    import re

    fields: dict[str, Any] = {"data": {"name": "contract.toys:Toy", "task": "regression"}} if fault == "loss" else {}
    message, run = failed(recipe(model=of(fault, norm=norm), **fields), tmp_path / "failed")
    assert re.search(MESSAGES[fault], message), message
    assert "Lower optimizer.lr" in message
    whole = recipe(
        model=of("none", norm=norm), budget={"steps": SAFE}, save={"report": False, "every_steps": 1}, **fields
    )
    before = train(whole, root=tmp_path / "before", quiet=True)
    assert differences(model_state(run), model_state(before)) == []
    assert (run.folder / "steps.csv").read_bytes() == (before.folder / "steps.csv").read_bytes()


@pytest.mark.parametrize("technique", ["sam", "accumulate", "ema", "clip"])
def test_inside_other_techniques(technique: str, tmp_path: Path) -> None:
    """A technique may call the module several times a step, so the fault comes in an earlier step."""
    message, run = failed(recipe(model=of("output"), techniques=[technique]), tmp_path / "failed")
    assert "came out of module 'faulty'" in message
    done = len(run.steps)
    assert message.startswith(f"step {done}:")
    fields: dict[str, Any] = {"save": {"report": False, "every_steps": 1}, "budget": {"steps": max(1, done)}}
    before = train(recipe(model=of("none"), techniques=[technique], **fields), root=tmp_path, quiet=True)
    assert done > 0
    assert differences(model_state(run), model_state(before)) == []


def test_a_bad_sample_is_named(tmp_path: Path) -> None:
    data = {"name": "train.parts:Odd", "bad_sample": 7}
    message, run = failed(recipe(data=data, batch_size=24), tmp_path)
    order = torch.randperm(24, generator=_order(seed=0))
    row = order.tolist().index(7)
    assert message.startswith(f"step 0: input 0 of the batch holds Inf, first in sample {row} of the batch.")
    assert run.steps == []


def _order(seed: int) -> torch.Generator:
    from kingpost import seeds

    return seeds.generator(seed, "order", 0, 0)


def test_a_bad_target_is_named(tmp_path: Path) -> None:
    data = {"name": "train.parts:Odd", "task": "regression", "bad_target": 7}
    message, _ = failed(recipe(data=data, batch_size=24), tmp_path)
    assert message.startswith("step 0: the targets of the batch hold NaN.")


def test_a_bad_weight_is_named(tmp_path: Path) -> None:
    message, _ = failed(recipe(model={"name": "train.parts:with_a_bad_weight"}), tmp_path)
    assert message.startswith("step 0: 'last.weight' itself holds NaN.")


def test_a_run_that_failed_can_go_on(tmp_path: Path) -> None:
    """The fault counts its calls anew in a new process, so the second try gets through, to the bits of a whole run."""
    _, run = failed(recipe(model=of("output")), tmp_path / "failed")
    again = resume(run.folder, quiet=True)
    assert again.status == "finished"
    whole = train(recipe(model=of("none")), root=tmp_path / "whole", quiet=True)
    assert different(again, whole) == []
