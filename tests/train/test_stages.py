"""Stages: one run after another, each from the best weights of the one before; interrupted ones go on to the bit."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import kingpost as kp
from contract.subjects import differences, state_of, without_times
from contract.toys import Toy
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe

STAGES: tuple[dict[str, Any], ...] = (
    {"task": "denoise"},
    {"task": None, "techniques+": "linear-probe"},
    {"techniques-": "linear-probe", "optimizer.lr": 0.002},
)


def recipe(**changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "staged",
        "data": Toy(),
        "model": {"name": "mlp", "widths": [6]},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 8,
        "budget": {"epochs": 2},
        "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
        "save": {"report": False, "every_steps": 1, "keep": 100},
        "stages": STAGES,
    }
    return Recipe.from_value({**base, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> kp.Run:
    return kp.train(recipe(), root=tmp_path_factory.mktemp("stages"), quiet=True)


def test_stages_are_changes_on_top_of_one_another() -> None:
    first, second, third = recipe().staged()
    assert first.task is not None and first.task.name == "denoise" and second.task is None
    assert [t.name for t in second.techniques] == ["linear-probe"] and not third.techniques
    assert [stage.optimizer.lr for stage in (first, second, third)] == [0.01, 0.01, 0.002]  # type: ignore[attr-defined]
    assert recipe(stages=[]).staged() == []
    again = Recipe.from_yaml(recipe().to_yaml())
    assert again == recipe() and again.to_yaml() == recipe().to_yaml()


def test_a_wrong_stage_is_an_error_that_names_it() -> None:
    with pytest.raises(RecipeError, match=r"stages.1.optimizer.lrr: unknown key; did you mean 'lr'"):
        recipe(stages=[{}, {"optimizer.lrr": 1.0}])
    with pytest.raises(RecipeError, match=r"stages.0.name: cannot be changed by a stage"):
        recipe(stages=[{"name": "x"}])


def test_each_stage_is_a_run_from_the_one_before(whole: kp.Run) -> None:
    assert whole.status == "finished" and [stage.name for stage in whole.stages] == ["stage-1", "stage-2", "stage-3"]
    assert "parent" not in whole.stages[0].summary
    for before, stage in zip(whole.stages, whole.stages[1:], strict=False):
        file = before.weights("best")
        assert stage.summary["parent"] == {
            "run": str(before.folder),
            "weights": "best",
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    first, second = (load_file(stage.weights("best")) for stage in whole.stages[:2])
    assert (first["layers.0.weight"] == second["layers.0.weight"]).all()  # the second trains the head alone
    assert whole.summary["step"] == 18 and whole.summary["best"] == whole.stages[2].summary["best"]
    assert len(kp.predict(whole, part="validation").values) == 12  # those of the last stage
    assert "stage-3    finished" in str(whole)


def test_a_recipe_of_its_own_does_the_same(whole: kp.Run, tmp_path: Path) -> None:
    by_hand = whole.stages[2].recipe.with_(name="alone")
    alone = kp.train(by_hand, root=tmp_path, quiet=True)
    assert alone.weights("last").read_bytes() == whole.stages[2].weights("last").read_bytes()


@pytest.mark.parametrize(("stage", "step"), [(1, 4), (2, 0), (2, 6), (3, 3)])
def test_it_goes_on_at_the_right_stage_bit_for_bit(stage: int, step: int, whole: kp.Run, tmp_path: Path) -> None:
    """Killed in a stage after so many steps (0: before its first checkpoint), and moved elsewhere besides."""
    copy = kp.Run(Path(shutil.copytree(whole.folder, tmp_path / "staged")))
    for later in copy.stages[stage:]:
        shutil.rmtree(later.folder)
    killed = copy.stages[stage - 1]
    for checkpoint in (killed.folder / "checkpoints").iterdir():
        if int(checkpoint.name.split("-")[1]) > step or step == 0 or checkpoint.name.endswith("epoch-000002"):
            shutil.rmtree(checkpoint)
    killed.set_status("running")
    copy.set_status("running")
    again = kp.resume(copy.folder, quiet=True)
    assert again.status == "finished"
    for one, other in zip(whole.stages, again.stages, strict=True):
        assert differences(without_times(state_of(one)), without_times(state_of(other))) == []
        assert one.weights("best").read_bytes() == other.weights("best").read_bytes()


def test_a_stage_that_was_stopped_stops_the_run(tmp_path: Path) -> None:
    stop = {"techniques+": {"name": "train.parts:StopAt", "at": 2}}
    run = kp.train(recipe(stages=[{}, stop]), root=tmp_path, quiet=True)
    assert (run.status, run.summary["stage"]) == ("stopped", 2) and "kingpost resume" in run.summary["message"]
    assert kp.resume(run.folder, quiet=True).status == "finished"  # the step of the signal is done


def test_a_stage_that_fails_is_named_and_a_first_one_leaves_no_folder(tmp_path: Path) -> None:
    wide = {"model": {"name": "mlp", "widths": [7]}}
    with pytest.raises(RecipeError, match=r"the weights do not fit the model"):
        kp.train(recipe(stages=[{}, wide]), root=tmp_path, quiet=True)
    (run,) = kp.Run.all_in(tmp_path)
    assert run.status == "failed" and run.summary["message"].startswith("stage 2: initialise: the weights do not fit")
    with pytest.raises(RecipeError):
        kp.train(recipe(name="b", stages=[{"data.form": "tokens"}]), root=tmp_path, quiet=True)
    assert not (tmp_path / "b").exists()


def test_changes_belong_to_one_stage(whole: kp.Run) -> None:
    with pytest.raises(RecipeError, match=r"resume one: .*stage-3"):
        kp.resume(whole.folder, "budget.epochs=9", quiet=True)


def test_the_report_leads_to_those_of_the_stages(whole: kp.Run, tmp_path: Path) -> None:
    copy = kp.Run(Path(shutil.copytree(whole.folder, tmp_path / "staged")))
    page = kp.report(copy).read_text(encoding="utf-8")
    assert all(f'href="{stage.name}/report.html"' in page for stage in copy.stages)
    assert all((stage.folder / "report.html").is_file() for stage in copy.stages)


def test_the_plan_is_that_of_the_first_stage() -> None:
    plan = kp.plan(recipe())
    assert plan["stages"] == 3 and plan["task"] == "denoise"
