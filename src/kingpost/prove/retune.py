"""Nuisance parameters: the same small search for every arm, on seeds of its own, before the first pair.

A technique that is judged at the other arm's learning rate is judged unfairly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from kingpost import yaml_text
from kingpost.errors import RecipeError
from kingpost.patch import Change, Patch
from kingpost.recipe import Recipe

FACTORS = (1.0, 1 / 3, 3.0)
FIRST_SEED, SEEDS = 1_000_000, 2  # runs of each candidate are on seeds that no pair uses
NOT_THESE = ("batch_size", "budget", "data", "model", "task", "seed", "layout", "save", "name", "stages")


def parsed(word: str) -> tuple[str, list[Any] | None]:
    """``optimizer.lr`` or ``optimizer.lr=1e-3,1e-2`` as key and values.

    >>> parsed("optimizer.lr=1e-3,0.01"), parsed("optimizer.lr")
    (('optimizer.lr', [0.001, 0.01]), ('optimizer.lr', None))
    """
    key, equals, text = word.partition("=")
    if key.partition(".")[0] in NOT_THESE:
        raise RecipeError("cannot be retuned: the budget and the size are equal by declaration", path=key)
    values = [yaml_text.load(part) for part in text.split(",")] if equals else None
    if values is not None and (len(values) < 2 or None in values):
        raise RecipeError(f"got '{text}', expected two or more values", path=key, mend=f"for example {key}=0.001,0.01")
    return key, values


def searches(words: tuple[str, ...], arms: Mapping[str, Recipe]) -> dict[str, dict[str, list[Any]]]:
    """Key -> arm -> the values that are tried, for every arm as many.

    Raises:
        RecipeError: the key has no number in an arm's recipe, or a value cannot be used there.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for word in words:
        key, values = parsed(word)
        found[key] = {name: values or _around(recipe, key, name) for name, recipe in arms.items()}
        for name, recipe in arms.items():
            for value in found[key][name]:
                try:
                    changed(recipe, {key: value})
                except RecipeError as error:
                    raise error.under(f"arms.{name}") from error.__cause__
    return found


def candidates(retune: Mapping[str, Mapping[str, list[Any]]], arm: str) -> Iterator[dict[str, Any]]:
    """Every combination of values for an arm."""
    for values in itertools.product(*(of_arm[arm] for of_arm in retune.values())):
        yield dict(zip(retune, values, strict=True))


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values."""
    return Patch(tuple(Change(key, value) for key, value in values.items())).apply(recipe)


def best(scores: list[list[float | None]], higher_is_better: bool) -> int:
    """The candidate with the best mean; one that failed on any seed is worse than all that did not; first of equals.

    >>> best([[0.5, 0.7], [0.9, None], [0.8, 0.6]], higher_is_better=True)
    2
    """
    sign = 1 if higher_is_better else -1

    def rank(values: list[float | None]) -> float:
        return math.fsum(-math.inf if v is None else sign * v for v in values) / len(values)

    return max(range(len(scores)), key=lambda index: (rank(scores[index]), -index))


def _around(recipe: Recipe, key: str, arm: str) -> list[float]:
    own: Any = recipe.to_value()
    for part in key.split("."):
        names = {item.get("name"): item for item in own if isinstance(item, dict)} if isinstance(own, list) else own
        own = names.get(part) if isinstance(names, dict) else None
    if isinstance(own, bool) or not isinstance(own, int | float) or own == 0:
        raise RecipeError(
            f"is {own!r} in arm '{arm}', which has no third and no threefold",
            path=key,
            mend=f"check the key, or give the values: --retune {key}=a,b,c",
        )
    return [float(f"{own * factor:.3g}") for factor in FACTORS]
