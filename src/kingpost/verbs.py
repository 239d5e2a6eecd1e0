"""The public verbs that need more than one part of kingpost: train, then report."""

from __future__ import annotations

from pathlib import Path

from kingpost.errors import MissingExtraError
from kingpost.patch import Patch
from kingpost.recipe import Recipe
from kingpost.run import RUNS, Run
from kingpost.train import parallel
from kingpost.train import train as training


def train(recipe: Recipe, root: Path | str = RUNS, quiet: bool = False) -> Run:
    """Train a recipe in a new folder ``root/NAME``, and write its report; see :func:`kingpost.train.train.train`."""
    return _reported(training.train(recipe, root, quiet), recipe)


def resume(folder: Path | str, *changes: str | Patch, quiet: bool = False, recipe: Recipe | None = None) -> Run:
    """Go on with a run, and write its report; see :func:`kingpost.train.train.resume`."""
    run = training.resume(folder, *changes, quiet=quiet, recipe=recipe)
    return _reported(run, recipe or run.recipe)


def _reported(run: Run, recipe: Recipe) -> Run:
    if parallel.was_launched() or not parallel.is_rank_zero():
        return run  # somebody else writes it
    if run.status == "finished" and recipe.save.report:
        from kingpost.report.html import report

        try:
            report(run)
        except MissingExtraError as error:
            run.set_status("finished", message=f"no report.html: {error}")
    return run
