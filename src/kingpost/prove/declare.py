"""From what a user asked for to a declaration: survey the recipes, make budgets equal, choose defaults, say why."""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import kingpost
from kingpost.errors import RecipeError
from kingpost.patch import Patch
from kingpost.prove import budgets, command, retune
from kingpost.prove.declaration import MOST_PAIRS, Asked, Declaration, check_arms, combined
from kingpost.prove.questions import BASELINE
from kingpost.prove.survey import Survey, column_of, direction_of, same_weights, smallest_of, survey
from kingpost.recipe import Recipe

SLACK = 1.3  # evaluation and the start of a run come on top of its steps
START_SECONDS = 0.5


def declare_recipe(
    recipe: Recipe, patches: Mapping[str, Patch], asked: Asked, name: str | None, seconds: float | None, workers: int
) -> Declaration:
    """A trial of patches on a recipe.

    Raises:
        RecipeError: an arm cannot be used, says which; or what was asked for does not go together.
    """
    check_arms(patches, asked.factorial)
    arms = {BASELINE: recipe}
    for arm, parts in combined(patches, asked.factorial).items():
        try:
            arms[arm] = _patched(recipe, parts)
        except RecipeError as error:
            raise error.under(f"arms.{arm}") from error.__cause__
    layout = {f"layout.{key}": value for key, value in {"threads": asked.threads}.items()}
    save = {"save.every_seconds": 60.0, "save.keep": 1, "save.report": False, "save.tensorboard": False}
    arms = {arm: one.patched({**layout, **save}) for arm, one in arms.items()}
    known = {arm: _surveyed(arm, one) for arm, one in arms.items()}
    _check_validation(known)
    arms, budget = budgets.equal(asked.budget, recipe, arms, known)
    column = column_of(asked.metric, known[BASELINE])
    if missing := [arm for arm, one in known.items() if column not in one.columns]:
        raise RecipeError(f"arm '{missing[0]}' has no {column}", path="metric", mend="name one that all arms have")
    searches = retune.searches(asked.retune, arms)
    figures = {arm: _figures(arms[arm], known[arm], known[BASELINE]) for arm in arms}
    most, why = _most_pairs(asked, [one["run_seconds"] for one in figures.values()], searches, seconds, workers)
    return _declared(
        identity(recipe, patches, asked, name),
        "recipe",
        patches={arm: str(patch) for arm, patch in patches.items()},
        work={arm: one.to_value() for arm, one in arms.items()},
        column=column,
        asked=asked,
        known=(figures, known[BASELINE]),
        budget=budget,
        searches=searches,
        most=(most, why),
    )


def declare_command(
    template: str, patches: Mapping[str, str], asked: Asked, name: str | None, seconds: float | None = None
) -> Declaration:
    """A trial of words on a foreign command; only the metric's name says what it is.

    Raises:
        RecipeError: the command has no place for the seed or the words, or the metric is not known.
    """
    check_arms(patches, asked.factorial)
    command.check_template(template)
    _check_foreign(asked, "a command's")
    if asked.metric is None:
        raise RecipeError("a command's metric has to be named", path="metric", mend="for example --metric accuracy")
    return _declared(
        identity(template, patches, asked, name),
        "command",
        patches=patches,
        work=command.arms_of(template, combined(patches, asked.factorial), BASELINE),
        column=asked.metric,
        asked=asked,
        budget="each run's own; nothing makes foreign commands equal",
        most=_most_pairs(asked, [], {}, seconds, 1),
    )


def declare_function(
    function: Callable[..., float], changes: Mapping[str, Mapping[str, Any]], asked: Asked, name: str | None
) -> Declaration:
    """A trial of keyword arguments on a function of the caller's.

    Raises:
        RecipeError: what was asked for needs a recipe.
    """
    check_arms(changes, asked.factorial)
    _check_foreign(asked, "a function's")
    shown = {arm: _in_words(given) for arm, given in changes.items()}
    every = [BASELINE, *combined(changes, asked.factorial)]
    return _declared(
        identity(function, changes, asked, name),
        "function",
        patches=shown,
        work=dict.fromkeys(every),
        column=asked.metric or "value",
        asked=asked,
        budget="each call's own",
        most=_most_pairs(asked, [], {}, None, 1),
    )


def identity(
    subject: Recipe | str | Callable[..., float], changes: Mapping[str, Any], asked: Asked, name: str | None
) -> tuple[str, dict[str, Any]]:
    """A trial's name, and in plain values what was asked for: both known before anything is looked at."""
    baseline: Any
    if isinstance(subject, Recipe):
        stem, baseline = subject.name, _plain_recipe(subject)
    elif isinstance(subject, str):
        program = next((part for part in subject.split() if part.endswith(".py")), subject.split()[0])
        stem, baseline = os.path.basename(program).removesuffix(".py"), subject
    else:
        reference = f"{getattr(subject, '__module__', '')}:{getattr(subject, '__qualname__', type(subject))}"
        stem, baseline = getattr(subject, "__name__", "function").strip("<>"), [reference, _source_of(subject)]
    words = {"baseline": baseline, "arms": {arm: _in_words(change) for arm, change in changes.items()}, **asdict(asked)}
    shown = re.sub(r"[^A-Za-z0-9._+-]+", "-", name or f"{stem}-{_joined(changes)}")[:80]
    plain: dict[str, Any] = json.loads(json.dumps(words))
    return shown, plain


def _in_words(change: Any) -> str:
    if isinstance(change, Mapping):
        return ", ".join(f"{key}={value!r}" for key, value in change.items())
    return str(change)


def _declared(
    named: tuple[str, Mapping[str, Any]],
    kind: Any,
    *,
    patches: Mapping[str, str],
    work: Mapping[str, Any],
    column: str,
    asked: Asked,
    budget: str,
    most: tuple[int, str],
    searches: Mapping[str, Mapping[str, list[Any]]] | None = None,
    known: tuple[Mapping[str, Mapping[str, Any]], Survey] | None = None,
) -> Declaration:
    figures, base = known or ({}, None)
    smallest, why = smallest_of(column, asked.smallest_effect, base)
    made = Declaration(
        name=named[0],
        kind=kind,
        asked=named[1],
        patches=dict(patches),
        work=dict(work),
        column=column,
        metric=column.removeprefix("validation_"),
        higher_is_better=direction_of(column, asked.direction, base),
        at=asked.at,
        smallest_effect=smallest,
        smallest_effect_reason=why,
        alpha=asked.alpha,
        power=asked.power,
        min_pairs=asked.fewest_pairs,
        max_pairs=most[0],
        max_pairs_reason=most[1],
        budget=budget,
        retune=dict(searches or {}),
        factorial=asked.factorial,
        first_seed=asked.first_seed,
        threads=asked.threads,
        known=figures,
        version=kingpost.__version__,
        declared_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    )
    made.test  # noqa: B018 - its own checks of the error rates and numbers of pairs
    return made


def _patched(recipe: Recipe, parts: Sequence[Patch]) -> Recipe:
    changed = recipe.patched(*parts)
    if changed.seed != recipe.seed:
        raise RecipeError("the trial itself sets the seed, the same in both arms", path="seed", mend="leave it out")
    if _plain_recipe(changed) == _plain_recipe(recipe):
        raise RecipeError("changes nothing: the baseline is the same already", mend="check the patch")
    return changed


def _plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """What matters of a recipe: neither its name nor its seed, nor what is kept of a run."""
    dropped = ("name", "seed")
    return {key: value for key, value in recipe.to_value().items() if key not in dropped}


def _surveyed(arm: str, recipe: Recipe) -> Survey:
    try:
        return survey(recipe)
    except RecipeError as error:
        raise (error if arm == BASELINE else error.under(f"arms.{arm}")) from error.__cause__


def _check_validation(known: Mapping[str, Survey]) -> None:
    for arm, one in known.items():
        if one.validation != known[BASELINE].validation:
            raise RecipeError(
                "is judged on other validation samples than the baseline, so the two cannot be compared",
                path=f"arms.{arm}",
                mend="keep the split of the data as it is",
            )


def _figures(recipe: Recipe, known: Survey, baseline: Survey) -> dict[str, Any]:
    steps = recipe.budget.steps or known.steps_per_epoch * (recipe.budget.epochs or 1)
    seconds = recipe.budget.seconds or (known.step_seconds or 0.0) * steps * SLACK + START_SECONDS
    return {
        "parameters": known.parameters,
        "flops_per_step": known.flops_per_step,
        "samples_per_step": known.samples / known.steps_per_epoch,
        "memory_bytes": known.memory_bytes,
        "run_seconds": round(seconds * max(1, len(recipe.stages)), 2),
        "same_weights": same_weights(baseline, known),
    }


def _most_pairs(
    asked: Asked, run_seconds: Sequence[float], searches: Mapping[str, Any], seconds: float | None, workers: int
) -> tuple[int, str]:
    """The greatest number of pairs, and why: as given, or what fits the time, or the default."""
    if asked.max_pairs is not None:
        return asked.max_pairs, "as given"
    if seconds is None or not run_seconds:
        return max(MOST_PAIRS, asked.fewest_pairs), "the default"
    tuning = math.prod(len(retune.FACTORS) for _ in searches) * retune.SEEDS if searches else 0
    per_pair = sum(run_seconds) / min(workers, len(run_seconds))
    fits = int(0.9 * seconds / per_pair - tuning)
    most = max(asked.fewest_pairs, min(MOST_PAIRS, fits))
    return most, f"about {max(fits, 0)} pairs of {per_pair:.3g} s fit the time"


def _check_foreign(asked: Asked, whose: str) -> None:
    for key, given in (("budget", asked.budget), ("retune", asked.retune)):
        if given:
            raise RecipeError(f"{whose} {key} is not known to kingpost", path=key, mend="leave it out")
    if asked.at != "last":
        raise RecipeError(f"{whose} epochs are not known to kingpost", path="at", mend="leave it out")


def _joined(arms: Mapping[str, Any]) -> str:
    names = "-".join(arms)
    return names if len(names) <= 40 else f"{len(arms)}-arms-{hashlib.sha256(names.encode()).hexdigest()[:6]}"


def _source_of(function: Any) -> str:
    """A hash of a function's text, by which a changed one is noticed; empty where there is none."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
