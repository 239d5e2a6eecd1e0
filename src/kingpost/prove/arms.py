"""Arms as a caller gives them: patches in any form, words of a command, keyword arguments of a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from kingpost.errors import RecipeError
from kingpost.patch import Patch
from kingpost.prove.declaration import Asked, Declaration, combined
from kingpost.prove.declare import declare_command, declare_function, declare_recipe
from kingpost.recipe import Recipe

Subject = Recipe | str | Callable[..., float]
Change = Patch | str | Sequence[str] | Mapping[str, Any]


def named(arms: Mapping[str, Change] | Change) -> dict[str, Change]:
    """Arms by name; a single patch is called ``arm``."""
    if isinstance(arms, Patch | str) or not isinstance(arms, Mapping):
        return {"arm": arms}
    if arms and not any(isinstance(change, Patch | str | Mapping | Sequence) for change in arms.values()):
        return {"arm": cast(Change, arms)}  # a patch as a mapping: keys and plain values
    return dict(cast(Mapping[str, Change], arms))


def ablation(recipe: Recipe, techniques: Sequence[str]) -> dict[str, Patch]:
    """One arm for each technique, without it; ``each`` stands for all that the recipe has.

    >>> recipe = Recipe(name="a", data="digits", model="mlp", techniques=["label-smoothing", "ema"])
    >>> [(name, str(patch)) for name, patch in ablation(recipe, ["each"]).items()]
    [('without-label-smoothing', 'techniques-=label-smoothing'), ('without-ema', 'techniques-=ema')]
    """
    names = [technique.name for technique in recipe.techniques]
    wanted = names if list(techniques) == ["each"] else list(techniques)
    if not wanted:
        raise RecipeError("the recipe has none to leave out", path="techniques")
    return {f"without-{re.sub(r'[^A-Za-z0-9._-]+', '-', one)}": Patch.parse(f"techniques-={one}") for one in wanted}


def read(subject: Subject, changes: Mapping[str, Change]) -> dict[str, Any]:
    """Each arm's change as its subject wants it: a patch, words, or keyword arguments.

    Raises:
        RecipeError: a change cannot be read so.
    """
    if isinstance(subject, Recipe):
        return {arm: _patch(arm, change) for arm, change in changes.items()}
    if isinstance(subject, str):
        return {arm: _words(change) for arm, change in changes.items()}
    if bad := [arm for arm, change in changes.items() if not isinstance(change, Mapping)]:
        raise RecipeError("expected keyword arguments of the function", path=f"arms.{bad[0]}", mend="pass a mapping")
    return dict(changes)


def make(
    subject: Subject, changes: Mapping[str, Any], asked: Asked, name: str | None, seconds: float | None, workers: int
) -> Declaration:
    """The declaration of a trial, whatever its subject is; ``changes`` as :func:`read` gives them.

    Raises:
        RecipeError: something cannot be used as given.
    """
    if isinstance(subject, Recipe):
        return declare_recipe(subject, changes, asked, name, seconds, workers)
    if isinstance(subject, str):
        return declare_command(subject, changes, asked, name)
    return declare_function(subject, changes, asked, name)


def _patch(arm: str, change: Change) -> Patch:
    try:
        made = Patch.of(change) if isinstance(change, Patch | str | Mapping) else Patch.parse(*change)
    except RecipeError as error:
        raise error.under(f"arms.{arm}") from error.__cause__
    if not made.changes:
        raise RecipeError("changes nothing", path=f"arms.{arm}", mend="give it a patch, for example optimizer.lr=0.01")
    return made


def calls(declaration: Declaration, changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The keyword arguments of every arm of a function."""
    if declaration.kind != "function":
        return {}
    parts = combined(changes, declaration.factorial)
    return {arm: {key: value for part in of_arm for key, value in part.items()} for arm, of_arm in parts.items()}


def _words(change: Change) -> str:
    if isinstance(change, Patch | Mapping):
        raise RecipeError("a command's arm is words", path="arms", mend="for example '--label-smoothing 0.1'")
    return change if isinstance(change, str) else " ".join(change)
