"""The public verbs that need more than one part of kingpost: train or prove, then report; load a net, let it write."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec

from kingpost.errors import MissingExtraError, RecipeError, RunError
from kingpost.patch import Patch
from kingpost.prove import trial
from kingpost.prove import tune as search
from kingpost.prove.declaration import Declaration
from kingpost.prove.tuning import Tuning
from kingpost.recipe import Recipe
from kingpost.run import RUNS, Run
from kingpost.train import parallel
from kingpost.train import train as training
from kingpost.train.predict import load_model
from kingpost.verdict import Verdicts

P = ParamSpec("P")


def train(recipe: Recipe, root: Path | str = RUNS, quiet: bool = False) -> Run:
    """Train a recipe in a new folder ``root/NAME``, and write its report; see :func:`kingpost.train.train.train`."""
    return _reported(training.train(recipe, root, quiet), recipe)


def resume(folder: Path | str, *changes: str | Patch, quiet: bool = False, recipe: Recipe | None = None) -> Run:
    """Go on with a run, and write its report; see :func:`kingpost.train.train.resume`."""
    run = training.resume(folder, *changes, quiet=quiet, recipe=recipe)
    return _reported(run, recipe or run.recipe)


def generate(
    run: Run | Path | str,
    prompt: str = "\n",
    tokens: int = 200,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beams: int = 1,
    seed: int = 0,
    which: Literal["best", "last"] = "best",
    device: str = "auto",
) -> str:
    """Text that a trained language model writes after a prompt; the prompt is the beginning of it.

    Args:
        run: the run, its folder or its name.
        prompt: what it goes on from.
        tokens: how many it adds.
        temperature: of the draws; 0 takes the likeliest token each time.
        top_k: draw from the so many likeliest only.
        top_p: draw from the fewest tokens that have this probability together.
        beams: more than 1 searches for the likeliest text instead of drawing.
        seed: of the draws.
        which: weights of the best or the last epoch.
        device: where to compute.

    Raises:
        RunError: no such run, no weights yet, or no language model of one text.
        DataError: the prompt holds characters that the vocabulary does not know.
    """
    from kingpost.build import generate as writing
    from kingpost.data import tokens as vocabulary

    run = run if isinstance(run, Run) else Run.open(run)
    fitted = run.data.get("fitted", {})
    if run.data.get("task") != "language-modelling" or "kind" not in fitted:
        raise RunError(f"run '{run.name}' is no language model of a text; kingpost predict {run.name} judges it")
    if not prompt:
        raise RecipeError("is empty", path="prompt", mend="give at least one character; a line feed is one")
    model = load_model(run, which, device)
    where = next(model.parameters()).device
    start = vocabulary.encode(prompt, fitted).to(where)
    try:
        if beams > 1:
            found = writing.beam_search(model, start, tokens, beams=beams)[0][0].tokens
        else:
            draws = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
            found = writing.generate(model, start, tokens, **draws)[0]  # type: ignore[arg-type]
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return vocabulary.decode(found, fitted)


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


def _with_page(verb: Callable[P, Verdicts]) -> Callable[P, Verdicts]:
    """The same, and the trial's folder then holds its verdict and its page."""

    @functools.wraps(verb)
    def judged(*args: P.args, **kwargs: P.kwargs) -> Verdicts:
        return _trial_reported(verb(*args, **kwargs))

    return judged


def _trial_reported(verdicts: Verdicts) -> Verdicts:
    from kingpost.report.trial_page import trial_page

    folder = Path(verdicts.folder)
    try:
        page = str(trial_page(folder, verdicts.to_value(), Declaration.open(folder).to_value()))
    except MissingExtraError as error:
        page = f"none: {error}"
    told = tuple(dataclasses.replace(verdict, report=page) for verdict in verdicts)
    verdicts = dataclasses.replace(verdicts, arms=told)
    verdicts.save_to(folder)
    return verdicts


prove = _with_page(trial.prove)
resume_trial = _with_page(trial.resume)


def _tuning_reported(found: Tuning) -> Tuning:
    from kingpost.report.tuning_page import tuning_page

    folder, proof = Path(found.folder), ""
    if found.verdict is not None:
        trial_folder = folder / "proof" / found.verdict.trial
        verdicts = _trial_reported(Verdicts.open(trial_folder))
        proof = f"proof/{found.verdict.trial}/report.html"
        found = dataclasses.replace(found, verdict=verdicts.arms[0])
    try:
        page = str(tuning_page(folder, found.to_value(), found.headline(), proof))
    except MissingExtraError as error:
        page = f"none: {error}"
    found = dataclasses.replace(found, report=page)
    found.save_to(folder)
    return found


@functools.wraps(search.tune)
def tune(*args: Any, **kwargs: Any) -> Tuning:
    """Search, prove the winner, and write the pages of both; see :func:`kingpost.prove.tune.tune`."""
    return _tuning_reported(search.tune(*args, **kwargs))
