"""Stages: runs one after another, each of which starts from the best weights of the one before it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from kingpost.errors import KingpostError, RecipeError
from kingpost.option import choose
from kingpost.patch import Patch
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.technique import Technique
from kingpost.train import parallel, train

STARTS = "weights-file"


def train_stages(recipe: Recipe, root: Path | str, quiet: bool = False) -> Run:
    """Train all stages of a recipe in a new folder ``root/NAME``, in its sub-folders ``stage-1``, ``stage-2``, ...

    Raises:
        RecipeError: torchrun has started this process; each stage starts its processes by itself.
        KingpostError: a stage failed; those before it are kept.
    """
    if parallel.launched_ranks() > 1:
        raise RecipeError(
            "a recipe with stages starts its processes itself",
            path="stages",
            mend=f"leave torchrun out, and set layout.data={parallel.launched_ranks()}",
        )
    run = Run.create(recipe, root)
    try:
        return _go_on(run, recipe, quiet)
    except Exception:
        if not run.stages:
            shutil.rmtree(run.folder)  # nothing has begun, so the name stays free
        raise


def resume_stages(run: Run, recipe: Recipe, changes: Sequence[str | Patch], quiet: bool = False) -> Run:
    """Go on with the stage that was interrupted, to the same bits, and with those after it.

    Raises:
        RecipeError: changes are given; they belong to one stage.
    """
    if changes:
        raise RecipeError(
            "a run with stages is resumed as it is", path=str(changes[0]), mend=f"resume one: {run.final.folder}"
        )
    return _go_on(run, recipe, quiet)


def stage_recipe(recipe: Recipe, run: Run, index: int) -> Recipe:
    """The recipe of a stage (from 0), with the weights that it starts from, unless it names others itself."""
    stage = recipe.staged()[index]
    before = recipe.staged()[index - 1].initialise if index else recipe.initialise
    if index == 0 or stage.initialise != before:
        return stage
    chosen = choose("initialise", {"name": STARTS, "run": str(run.folder / f"stage-{index}")})
    assert isinstance(chosen, Technique)
    return stage.with_(initialise=chosen)


def _go_on(run: Run, recipe: Recipe, quiet: bool) -> Run:
    for index in range(len(recipe.stages)):
        stage = Run(run.folder / f"stage-{index + 1}")
        wanted = stage_recipe(recipe, run, index)
        run.set_status("running", message="", stage=index + 1)
        try:
            if not (stage.folder / "recipe.yaml").is_file():
                shutil.rmtree(stage.folder, ignore_errors=True)  # a kill left a folder without a recipe
                train.train(wanted, run.folder, quiet)
            elif stage.status != "finished":
                train.resume(stage.folder, quiet=quiet, recipe=_moved(stage, wanted))
        except KingpostError as error:
            run.set_status("failed", message=f"stage {index + 1}: {error}")
            raise
        if stage.status != "finished":
            said = {"message": f"stage {index + 1} was stopped; go on with: kingpost resume {run.folder}"}
            run.set_status("stopped", **said, signal=stage.summary.get("signal", 0))
            return run
    _sum_up(run)
    return run


def _moved(stage: Run, wanted: Recipe) -> Recipe:
    """The recipe of a stage that has begun; its start follows the folder of the whole run, wherever that is now."""
    given = Recipe.load(stage.folder / "recipe.yaml")
    return given.with_(initialise=wanted.initialise)


def _sum_up(run: Run) -> None:
    """The last stage's figures are the run's; steps and seconds are those of all."""
    summaries = [stage.summary for stage in run.stages]
    last = summaries[-1]
    totals = {key: sum(summary.get(key, 0) for summary in summaries) for key in ("epoch", "step", "seconds")}
    run.set_status("finished", **totals, best=last.get("best") or {}, test=last.get("test") or {}, message="")
