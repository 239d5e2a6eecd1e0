"""The Patch: a change to a recipe, as dotted keys and new values; the one currency of change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import yaml

from kingpost import yaml_text
from kingpost.errors import RecipeError, nearest
from kingpost.foreign import Foreign
from kingpost.option import Kind, Option, choose, field_names, kind_of_field, plain

if TYPE_CHECKING:
    from kingpost.recipe import Recipe

Operator = Literal["=", "+=", "-="]


@dataclasses.dataclass(frozen=True)
class Change:
    """One key and what happens to it.

    Args:
        key: dotted path; a list's element goes by its name or number (``techniques.mixup.alpha``).
        value: the new value; for ``+=`` an element to append, for ``-=`` the name of one to remove.
        operator: set, append, or remove.
    """

    key: str
    value: Any
    operator: Operator = "="

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{yaml_text.dump_line(plain(self.value))}"


@dataclasses.dataclass(frozen=True)
class Patch:
    """A change to a recipe.

    >>> patch = Patch.parse("optimizer.lr=1e-2", "techniques+=label-smoothing")
    >>> print(patch)
    optimizer.lr=0.01 techniques+=label-smoothing
    >>> Patch.of({"optimizer.lr": 0.01, "techniques+": "label-smoothing"}) == patch
    True
    """

    changes: tuple[Change, ...] = ()

    @classmethod
    def parse(cls, *words: str) -> Patch:
        """A patch from words as they stand on a command line: ``key=value``, ``key+=value``, ``key-=value``.

        Raises:
            RecipeError: a word has no ``=``, or its value is not valid YAML.
        """
        return cls(tuple(_parse(word) for word in words))

    @classmethod
    def of(cls, change: str | Patch | Mapping[str, Any]) -> Patch:
        """A patch from words, from a mapping (``{"key": value, "key+": value}``), or from itself."""
        if isinstance(change, Patch):
            return change
        if isinstance(change, str):
            return cls.parse(change)
        return cls(tuple(_from_item(key, value) for key, value in change.items()))

    def to_value(self) -> dict[str, Any]:
        """As a mapping of plain values; :meth:`of` is the inverse unless a key stands twice."""
        return {change.key + change.operator.removesuffix("="): plain(change.value) for change in self.changes}

    def apply(self, recipe: Recipe) -> Recipe:
        """The changed recipe.

        Raises:
            RecipeError: unknown key (with the nearest name), wrong type, or value out of range.
        """
        changed: Option = recipe
        for change in self.changes:
            changed = _changed(changed, change.key.split("."), change, ())
        from kingpost.recipe import Recipe

        assert isinstance(changed, Recipe)
        return changed

    def __add__(self, other: Patch) -> Patch:
        return Patch(self.changes + other.changes)

    def __str__(self) -> str:
        return " ".join(map(str, self.changes))


def _parse(word: str) -> Change:
    key, equals, text = word.partition("=")
    if not equals or not key.strip("+-"):
        raise RecipeError(f"'{word}' is not an override", mend="write key=value, for example optimizer.lr=0.01")
    try:
        return _from_item(key, yaml_text.load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"got {text!r}: not valid YAML", path=key, mend="quote it, or close its brackets") from error


def _from_item(key: str, value: Any) -> Change:
    if key.endswith("+"):
        return Change(key[:-1], value, "+=")
    return Change(key[:-1], value, "-=") if key.endswith("-") else Change(key, value)


def _changed(option: Option, keys: list[str], change: Change, above: tuple[str, ...]) -> Option:
    """``option`` with the change made at ``keys`` below it; ``above`` is the path that led here."""
    key, rest = keys[0], keys[1:]
    path = ".".join((*above, key))
    if isinstance(option, Foreign):
        if rest or change.operator != "=":
            raise RecipeError("arguments of a foreign object can only be set", path=change.key)
        return option.with_(arguments={**option.arguments, key: change.value})
    if key not in field_names(type(option)):
        raise RecipeError("unknown key", path=path, mend=_nearest_key(option, key))
    old = getattr(option, key)
    try:
        if rest:
            new = _changed_below(old, rest, change, (*above, key))
        else:
            new = change.value if change.operator == "=" else _listed(old, kind_of_field(type(option), key), change)
        return option.with_(**{key: new})
    except RecipeError as error:
        known = error.path == change.key or error.path.startswith(".".join((*above, "")) or "\0")
        raise (error if known or not above else error.under(".".join(above))) from error.__cause__


def _nearest_key(option: Option, key: str) -> str:
    """The nearest key here, or the same key one level below."""
    known = field_names(type(option))
    parts = {name: getattr(option, name) for name in known}
    inside = [n for n, part in parts.items() if isinstance(part, Option) and key in field_names(type(part))]
    return f"did you mean '{inside[0]}.{key}'?" if inside else nearest(key, known)


def _changed_below(old: Any, rest: list[str], change: Change, above: tuple[str, ...]) -> Any:
    if isinstance(old, Option):
        return _changed(old, rest, change, above)
    if isinstance(old, tuple) and old and all(isinstance(item, Option) for item in old):
        index = _element(old, rest[0], ".".join(above))
        if not rest[1:]:
            return (*old[:index], change.value, *old[index + 1 :])
        return (*old[:index], _changed(old[index], rest[1:], change, (*above, rest[0])), *old[index + 1 :])
    if isinstance(old, Mapping) and len(rest) == 1:
        return {**old, rest[0]: change.value}
    where = ".".join(above)
    raise RecipeError(f"{where} is {plain(old)!r} and has no keys below it", path=change.key, mend=f"set {where}=...")


def _listed(old: Any, kind: Kind | type[Option] | None, change: Change) -> tuple[Any, ...]:
    """A list with an element appended or removed."""
    if not isinstance(old, tuple):
        raise RecipeError(f"{change.operator} is for lists", path=change.key, mend=f"write {change.key}=...")
    if change.operator == "+=":
        added = change.value if isinstance(change.value, list | tuple) else [change.value]
        return (*old, *(_chosen(kind, item, f"{change.key}.{len(old) + index}") for index, item in enumerate(added)))
    index = _element(old, str(change.value), change.key)
    return (*old[:index], *old[index + 1 :])


def _chosen(kind: Kind | type[Option] | None, item: Any, path: str) -> Any:
    try:
        return choose(kind.kind, item) if isinstance(kind, Kind) else item
    except RecipeError as error:
        raise error.under(path) from error.__cause__


def _element(items: tuple[Any, ...], which: str, path: str) -> int:
    names = [item.name if isinstance(item, Option) else str(item) for item in items]
    if which in names:
        return names.index(which)
    if which.isdigit() and int(which) < len(items):
        return int(which)
    raise RecipeError(f"no '{which}' in the list", path=path, mend=nearest(which, names))
