"""Equal budgets: the same number of steps, samples, seconds or FLOPs for every arm, turned into each arm's recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast, get_args

from kingpost.errors import RecipeError, nearest
from kingpost.figure import readable
from kingpost.prove.survey import Survey
from kingpost.recipe import Budget, Recipe

Kind = Literal["steps", "samples", "seconds", "flops", "own"]
KINDS = get_args(Kind)
MEANS: Mapping[str, Kind] = {"epochs": "samples", "steps": "steps", "seconds": "seconds"}


def parsed(text: str | None) -> tuple[Kind | None, float | None]:
    """``samples`` or ``samples=50000`` as kind and amount; None stays None.

    >>> parsed("flops=1e12"), parsed("steps"), parsed(None)
    (('flops', 1000000000000.0), ('steps', None), (None, None))
    """
    if text is None:
        return None, None
    kind, equals, amount = text.partition("=")
    if kind not in KINDS:
        raise RecipeError(f"got '{text}'", path="budget", mend=nearest(kind, KINDS))
    if not equals:
        return cast(Kind, kind), None
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if kind == "own" or not (math.isfinite(number) and number > 0):
        raise RecipeError(f"got '{text}'", path="budget", mend="for example steps=500; 'own' takes no amount")
    return cast(Kind, kind), number


def equal(
    text: str | None, baseline: Recipe, arms: Mapping[str, Recipe], known: Mapping[str, Survey]
) -> tuple[dict[str, Recipe], str]:
    """Every arm's recipe (the baseline's is called ``baseline``) with its share of one budget, and that in words.

    Args:
        text: kind and amount; None takes what the baseline's own budget means.
        baseline: the baseline's recipe.
        arms: those of all arms, the baseline among them.
        known: what is known of each.

    Raises:
        RecipeError: an arm changes the budget while it is to be equal, or a budget cannot be had.
    """
    kind, amount = parsed(text)
    if kind == "own" or (kind is None and baseline.stages):
        return dict(arms), "each arm's own, as its recipe says"
    for name, recipe in arms.items():
        if recipe.budget != baseline.budget or recipe.stages:
            raise RecipeError(
                "changes the budget, which is to be equal"
                if not recipe.stages
                else "has stages with budgets of their own",
                path=f"arms.{name}",
                mend="leave it out, or say --budget own if the budget itself is what is tried",
            )
    key = next(key for key in MEANS if getattr(baseline.budget, key) is not None)
    kind = kind or MEANS[key]
    if kind == "seconds":
        return _same_seconds(amount, baseline, arms, known["baseline"])
    total = _steps(baseline, known["baseline"])
    if kind == "steps":
        steps = round(amount) if amount else total
        return _with_steps(arms, dict.fromkeys(arms, steps)), f"{steps:,} steps each"
    if kind == "samples":
        return _same_samples(amount, baseline, arms, known)
    flops = amount or total * known["baseline"].flops_per_step
    counts = {name: flops / known[name].flops_per_step if known[name].flops_per_step else math.nan for name in arms}
    if bad := [name for name, steps in counts.items() if not steps >= 1]:
        raise RecipeError(
            f"{readable(flops, 'FLOPs')} are less than one step of '{bad[0]}', or its FLOPs cannot be counted",
            path="budget",
            mend="take samples or seconds",
        )
    return _with_steps(arms, {name: int(steps) for name, steps in counts.items()}), f"{readable(flops, 'FLOPs')} each"


def samples_of(recipe: Recipe, steps: int, known: Survey) -> int:
    """Samples that so many steps see; the last batch of an epoch may be a smaller one."""
    epochs, rest = divmod(steps, known.steps_per_epoch)
    return epochs * known.samples + min(rest * recipe.batch_size, known.samples)


def _same_samples(
    amount: float | None, baseline: Recipe, arms: Mapping[str, Recipe], known: Mapping[str, Survey]
) -> tuple[dict[str, Recipe], str]:
    base = known["baseline"]
    wanted = round(amount) if amount else samples_of(baseline, _steps(baseline, base), base)
    found: dict[str, Recipe] = {}
    for name, recipe in arms.items():
        if amount is None and recipe.budget.epochs and known[name].samples == base.samples:
            found[name] = recipe
            continue
        epochs, rest = divmod(wanted, known[name].samples)
        steps = epochs * known[name].steps_per_epoch + math.ceil(rest / recipe.batch_size)
        found |= _with_steps({name: recipe}, {name: steps})
    said = f" ({baseline.budget.epochs} epochs)" if not amount and baseline.budget.epochs else ""
    return found, f"{wanted:,} samples each{said}"


def _same_seconds(
    amount: float | None, baseline: Recipe, arms: Mapping[str, Recipe], known: Survey
) -> tuple[dict[str, Recipe], str]:
    seconds = amount or baseline.budget.seconds
    if seconds is None:
        if known.step_seconds is None:
            raise RecipeError("got no number of seconds", path="budget", mend="for example seconds=60")
        seconds = _two_digits(known.step_seconds * _steps(baseline, known))
    made = {name: recipe.with_(budget=Budget(seconds=seconds)) for name, recipe in arms.items()}
    return made, f"{readable(seconds, 'seconds')} of training each; such runs cannot be repeated bit for bit"


def _steps(recipe: Recipe, known: Survey) -> int:
    if recipe.budget.seconds is not None:
        raise RecipeError("the recipe's budget is in seconds, so an amount is needed", path="budget", mend="steps=500")
    return recipe.budget.steps or known.steps_per_epoch * (recipe.budget.epochs or 1)


def _with_steps(arms: Mapping[str, Recipe], steps: Mapping[str, int]) -> dict[str, Recipe]:
    return {name: recipe.with_(budget=Budget(steps=max(1, steps[name]))) for name, recipe in arms.items()}


def _two_digits(value: float) -> float:
    return round(value, 1 - math.floor(math.log10(value)))
