"""Where memory runs out a batch is worked through in pieces, with the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.subjects import largest_difference, state_of
from kingpost.errors import TrainingError
from kingpost.run import Run
from kingpost.train.train import resume, train
from train.parts import cut_back, different, model_state, recipe

# Eight samples summed in another order, six steps, numbers around 1 in 64 bits.
TOLERANCE = 1e-14


def of(limit: int) -> dict[str, Any]:
    return {"name": "train.parts:net", "limit": limit}


@pytest.mark.parametrize(("limit", "pieces"), [(7, 2), (4, 2), (3, 4), (1, 8)])
def test_the_batch_is_split_until_it_fits(limit: int, pieces: int, tmp_path: Path) -> None:
    run = train(recipe(model=of(limit)), root=tmp_path, quiet=True)
    assert run.status == "finished"
    assert state_of(run)["techniques"]["backward"] == {"pieces": pieces}
    whole = train(recipe(model=of(10**9)), root=tmp_path / "whole", quiet=True)
    assert largest_difference(model_state(run), model_state(whole)) < TOLERANCE
    for row, other in zip(run.steps, whole.steps, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=TOLERANCE * 10)  # a loss of about 0.1
    raised = [finding.evidence["pieces"] for finding in run.findings]
    assert raised == [pieces], "one note, with what came out in the end"
    finding = run.findings[0]
    assert finding.severity == "note"
    assert finding.place == "step 0"
    assert f"memory ran out; from here on each batch is worked through in {pieces} pieces" in finding.symptom


@pytest.mark.parametrize("technique", ["sam", "accumulate", "ema"])
def test_inside_other_techniques(technique: str, tmp_path: Path) -> None:
    run = train(recipe(model=of(2), techniques=[technique]), root=tmp_path, quiet=True)
    whole = train(recipe(model=of(10**9), techniques=[technique]), root=tmp_path / "whole", quiet=True)
    # SAM divides by the norm and takes a second gradient, so a rounding counts a few times.
    assert largest_difference(model_state(run), model_state(whole)) < 10 * TOLERANCE


def test_resume_keeps_the_pieces(tmp_path: Path) -> None:
    save = {"report": False, "every_steps": 1, "keep": 100}
    whole = train(recipe(model=of(3), save=save), root=tmp_path / "whole", quiet=True)
    for done in (2, 3, 5):
        again = resume(cut_back(whole, done, tmp_path / str(done)).folder, quiet=True)
        assert different(again, whole) == []
        assert len(again.findings) == 1
        assert again.findings[0].place == "step 0"


def test_a_sample_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 0: out of memory; use a smaller model"):
        train(recipe(model=of(0)), root=tmp_path, quiet=True)
    run = Run(tmp_path / "toy")
    assert run.status == "failed"
    untouched = train(recipe(model=of(10**9), optimizer={"name": "sgd", "lr": 1e-300}), root=tmp_path / "x", quiet=True)
    # A rate of 1e-300 moves nothing: these are the starting weights.
    assert largest_difference(model_state(run), model_state(untouched)) == 0


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    """64 features for a model that wants 63."""
    import torch
    from torch import nn

    model = nn.Sequential(nn.Flatten(), nn.Linear(63, 3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(
            recipe().with_(model=recipe().model.with_(target=model, reference="", arguments={})), tmp_path, quiet=True
        )
    assert Run(tmp_path / "toy").status == "failed"
