"""Spaces: what a search may change, as keys and values; a point of a space is a Patch.

``optimizer.lr=1e-4..1e-1:log`` is a range, ``batch_size=32,64,128`` a choice. ``techniques+=mixup,null`` adds a
technique or nothing. ``optimizer.momentum@sgd=0.8..0.99`` holds only where the option at ``optimizer`` is called
``sgd``. A key that is not there, because another option was chosen above it, is left out of that point.
"""

from __future__ import annotations

import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from kingpost import yaml_text
from kingpost.errors import RecipeError
from kingpost.foreign import Foreign
from kingpost.option import Kind, Option, field_names, kind_of_field, plain
from kingpost.patch import Change, Operator, Patch
from kingpost.recipe import Recipe

DEFAULT = "default"
FIXED = {
    "budget": "the budget is the same for all by declaration",
    "seed": "the search sets the seeds",
    "data": "all are judged on the same samples",
    "task": "all are judged at the same task",
    "layout": "it is the same for all",
    "save": "it changes no outcome",
    "name": "it changes no outcome",
    "stages": "stages are no numbers",
}
MOST_POINTS = 10_000
DIGITS = 4  # of a number that was drawn: more say nothing, and make a patch unreadable
RANGE = re.compile(r"(?P<low>[^:,]+?)\.\.(?P<high>[^:,]+)(?P<log>:log)?")
EDGE = 0.02
ABSENT = object()


class Draws(Protocol):
    """What a point is drawn from: an Optuna trial, or anything with these three."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...  # noqa: D102
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...  # noqa: D102
    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Axis:
    """One key and the values that it may take.

    Args:
        key: dotted path in the recipe.
        operator: ``=``, or ``+=`` and ``-=`` for lists.
        only: name of the option above the key where this axis holds; empty for wherever the key is.
        choices: the values, if it is a choice.
        low: end of the range, if it is one.
        high: the other end; both belong to it.
        log: equal ratios are equally likely, not equal differences.
        whole: whole numbers only.

    >>> Axis.parse("optimizer.lr=1e-4..0.1:log")
    Axis(key='optimizer.lr', operator='=', only='', choices=(), low=0.0001, high=0.1, log=True, whole=False)
    """

    key: str
    operator: Operator = "="
    only: str = ""
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @classmethod
    def parse(cls, word: str) -> Axis:
        """An axis from ``key=low..high``, ``key=low..high:log`` or ``key=a,b,c``.

        Raises:
            RecipeError: it cannot be read, or the range is empty.
        """
        key, equals, text = word.partition("=")
        operator: Operator = "=" if key[-1:] not in "+-" else "+=" if key[-1:] == "+" else "-="
        key, _, only = key.rstrip("+-").partition("@")
        if not equals or not key or not text:
            raise RecipeError(
                f"'{word}' is no part of a space",
                path="space",
                mend="write key=low..high, key=low..high:log or key=a,b,c",
            )
        if found := RANGE.fullmatch(text.strip()):
            return cls(key, operator, only, (), **_ends(key, operator, found))
        try:
            values = yaml_text.load(f"[{text}]")
        except yaml.YAMLError as error:
            raise RecipeError(f"got {text!r}: not valid YAML", path=key, mend=f"for example {key}=a,b,c") from error
        if len({yaml_text.dump_line(value) for value in values}) != len(values) or len(values) < 2:
            raise RecipeError(
                f"got '{text}', expected two or more different values", path=key, mend=f"write {key}=a,b or {key}=1..10"
            )
        return cls(key, operator, only, tuple(values))

    @property
    def name(self) -> str:
        """Under which a study keeps its values: ``optimizer.lr@sgd``."""
        return self.key + self.operator.removesuffix("=") + (f"@{self.only}" if self.only else "")

    @property
    def texts(self) -> dict[str, Any]:
        """The choices by their text, which any storage can hold."""
        return {yaml_text.dump_line(value): value for value in self.choices}

    def is_there(self, recipe: Recipe) -> bool:
        """Whether a recipe has this key, under the option that is asked for."""
        above = at(recipe, self.key.rpartition(".")[0])
        if self.only and not (isinstance(above, Option) and above.name == self.only):
            return False
        return isinstance(above, Foreign) or at(recipe, self.key) is not ABSENT

    def chooses(self, recipe: Recipe) -> bool:
        """Whether its values bring keys of their own: names of options, or elements of a list."""
        above, last = at(recipe, self.key.rpartition(".")[0]), self.key.rpartition(".")[2]
        chosen = isinstance(above, Option) and not isinstance(above, Foreign) and last in field_names(type(above))
        return self.operator != "=" or (chosen and isinstance(kind_of_field(type(above), last), Kind))

    def suggest(self, draws: Draws) -> Any:
        """A value, as it stands in a patch."""
        if self.choices:
            return self.texts[draws.suggest_categorical(self.name, list(self.texts))]
        if self.whole:
            return draws.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        value = draws.suggest_float(self.name, self.low, self.high, log=self.log)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def change(self, recipe: Recipe, value: Any) -> Change | None:
        """What sets the value; None if the recipe has it already, or nothing is to be added or removed.

        An option's own name leaves it as it is, with all that the recipe says below it.
        """
        if self.operator != "=":
            return None if value is None else Change(self.key, value, self.operator)
        old = at(recipe, self.key)
        own = old.name if isinstance(old, Option) else plain(old)
        return None if own == value and type(own) is type(value) else Change(self.key, value)

    def start(self, recipe: Recipe) -> Any:
        """How a study would say that the recipe stays as it is; None if it could not."""
        if self.operator != "=":
            return "null" if None in self.choices else None
        old = at(recipe, self.key)
        own = old.name if isinstance(old, Option) else plain(old)
        if self.choices:
            text = yaml_text.dump_line(own)
            return text if text in self.texts else None
        if isinstance(own, bool) or not isinstance(own, int | float):
            return None
        return own if self.low <= own <= self.high else None

    def is_edge(self, value: Any) -> bool:
        """Whether a value of a range is within a fiftieth of its ends."""
        if self.choices or value is None or (self.whole and self.high - self.low < 3):
            return False
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, float(value)))
        return not EDGE <= (here - low) / (high - low) <= 1 - EDGE

    def samples(self) -> list[Any]:
        """Values whose validity stands for that of all: the ends of a range, or every choice."""
        if self.choices:
            return [value for value in self.choices if not (value is None and self.operator != "=")]
        return [int(end) if self.whole else end for end in (self.low, self.high)]

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={','.join(self.texts)}"
        ends = f"{self.low:.6g}..{self.high:.6g}"
        return f"{self.name}={ends}{':log' if self.log else ''}"


@dataclass(frozen=True)
class Space:
    """The axes of a search on a recipe, those that choose options first.

    >>> recipe = Recipe(name="a", data="digits", model="mlp")
    >>> space = Space.of(recipe, ["optimizer.momentum=0.8,0.99", "optimizer=sgd,adamw"])
    >>> [str(space.patch(point)) for point in space.points()]
    ['optimizer=sgd optimizer.momentum=0.8', 'optimizer=sgd optimizer.momentum=0.99', '']
    """

    recipe: Recipe
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, recipe: Recipe, words: Sequence[str], *, forgiving: Sequence[str] = ()) -> Space:
        """A space from its words; ``forgiving`` are words that may be left out where they have no place.

        Raises:
            RecipeError: an unknown key (with the nearest), a value out of range, an empty range, a key given twice.
        """
        given = [Axis.parse(word) for word in words]
        for number, axis in enumerate(given):
            if reason := FIXED.get(axis.key.partition(".")[0]):
                raise RecipeError(f"cannot be searched: {reason}", path=axis.key, mend="leave it out of the space")
            if axis.name in [other.name for other in given[:number]]:
                raise RecipeError("stands twice in the space", path=axis.name, mend="keep one of them")
        keys = {axis.key + axis.operator for axis in given if not axis.only} | {axis.name for axis in given}
        filled = [Axis.parse(word) for word in forgiving]
        filled = [axis for axis in filled if axis.key + axis.operator not in keys and axis.name not in keys]
        every = [*filled, *given]
        choosing = [axis for axis in every if axis.chooses(recipe)]
        reached = [recipe, *_reached(recipe, choosing)]
        fitted = []
        for axis in every:
            where = next((one for one in reached if axis.is_there(one)), None)
            if where is not None:
                fitted.append(_fitted(axis, where))
            elif axis in given:
                raise _unknown(axis, recipe)
        if not fitted:
            raise RecipeError(
                "is empty", path="space", mend="give it keys, for example optimizer.lr=1e-4..1e-1:log, or 'default'"
            )
        first = [axis for axis in fitted if axis.chooses(recipe)]
        return cls(recipe, (*first, *(axis for axis in fitted if axis not in first)))

    def patch(self, draws: Draws | Mapping[str, Any]) -> Patch:
        """The point that is drawn, key after key; a key that is not there is not drawn.

        Raises:
            RecipeError: the options that were chosen cannot stand together.
        """
        source = _Given(draws) if isinstance(draws, Mapping) else draws
        recipe, changes = self.recipe, list[Change]()
        for axis in self.axes:
            if not axis.is_there(recipe):
                continue
            if (change := axis.change(recipe, axis.suggest(source))) is not None:
                changes.append(change)
                recipe = Patch((change,)).apply(recipe) if axis.chooses(recipe) else recipe
        return Patch(tuple(changes))

    def start(self) -> dict[str, Any] | None:
        """The point at which the recipe stays as it is; None if the space does not hold it."""
        found = {axis.name: axis.start(self.recipe) for axis in self.axes if axis.is_there(self.recipe)}
        return None if None in found.values() else found

    def points(self) -> list[dict[str, Any]]:
        """Every point of a space of choices and whole numbers, the last axis fastest.

        Raises:
            RecipeError: an axis is a range of numbers that are not whole, or there are too many points.
        """
        found = list(itertools.islice(_points(self.recipe, self.axes), MOST_POINTS + 1))
        if len(found) > MOST_POINTS:
            raise RecipeError(f"has more than {MOST_POINTS:,} points", path="space", mend="take --sampler tpe")
        return found


@dataclass
class _Given:
    """Draws that are known before."""

    values: Mapping[str, Any]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.values[name])

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self.values[name])

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        return self.values[name]


def at(recipe: Recipe, key: str) -> Any:
    """What stands at a dotted key; ``ABSENT`` if nothing does.

    >>> at(Recipe(name="a", data="digits", model="mlp"), "optimizer.beta1")
    0.9
    """
    found: Any = recipe
    for part in filter(None, key.split(".")):
        if isinstance(found, Foreign):
            found = found.arguments.get(part, ABSENT)
        elif isinstance(found, Option):
            found = getattr(found, part) if part in field_names(type(found)) else ABSENT
        elif isinstance(found, Mapping):
            found = found.get(part, ABSENT)
        elif isinstance(found, tuple):
            names = {item.name: item for item in found if isinstance(item, Option)}
            index = int(part) if part.isdigit() and int(part) < len(found) else None
            found = names.get(part, ABSENT if index is None else found[index])
        else:
            return ABSENT
    return found


def hint_of(recipe: Recipe, key: str) -> Any:
    """The type of the field at a key, with its bounds; None where there is no field."""
    above, last = at(recipe, key.rpartition(".")[0]), key.rpartition(".")[2]
    if not isinstance(above, Option) or last not in field_names(type(above)):
        return None
    return typing.get_type_hints(type(above), include_extras=True)[last]


def types_in(hint: Any) -> set[Any]:
    """The plain types that a hint allows.

    >>> sorted(t.__name__ for t in types_in(float | int | None))
    ['NoneType', 'float', 'int']
    """
    inside = typing.get_args(hint)
    if hasattr(hint, "__metadata__"):
        return types_in(hint.__origin__)
    if inside and typing.get_origin(hint) not in (tuple, dict, list, typing.Literal):
        return set[Any]().union(*map(types_in, inside))
    return {hint}


def _ends(key: str, operator: Operator, found: re.Match[str]) -> dict[str, Any]:
    ends = [yaml_text.load(found[name]) for name in ("low", "high")]
    shown = found[0]
    if any(isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end) for end in ends):
        raise RecipeError(f"got '{shown}', expected two numbers", path=key, mend=f"for example {key}=0.1..0.9")
    if operator != "=":
        raise RecipeError(f"a range is for a number, not for a list's {operator}", path=key, mend=f"write {key}=a..b")
    if not ends[0] < ends[1]:
        raise RecipeError(
            f"the range '{shown}' is empty", path=key, mend=f"the smaller end first: {ends[1]}..{ends[0]}"
        )
    if found["log"] and ends[0] <= 0:
        raise RecipeError(f"'{shown}' has no logarithm", path=key, mend="begin above 0, or leave ':log' out")
    whole = all(isinstance(end, int) for end in ends)
    return {"low": ends[0], "high": ends[1], "log": bool(found["log"]), "whole": whole}


def _fitted(axis: Axis, recipe: Recipe) -> Axis:
    """The axis with numbers of its field's kind, if all its values can stand there."""
    if not axis.choices:
        types = types_in(hint_of(recipe, axis.key))
        if float in types:
            axis = Axis(axis.key, axis.operator, axis.only, (), float(axis.low), float(axis.high), axis.log, False)
        elif int in types and not axis.whole:
            raise RecipeError(f"takes whole numbers, got {axis}", path=axis.key, mend="write 16..256")
    for value in axis.samples():
        if (change := axis.change(recipe, value)) is not None:
            Patch((change,)).apply(recipe)
    return axis


def _reached(recipe: Recipe, choosing: Sequence[Axis]) -> Iterator[Recipe]:
    """The recipes that one choice leads to."""
    for axis in choosing:
        for value in axis.samples():
            try:
                change = axis.change(recipe, value)
                yield recipe if change is None else Patch((change,)).apply(recipe)
            except RecipeError:
                continue  # said when the axis itself is checked


def _unknown(axis: Axis, recipe: Recipe) -> RecipeError:
    try:
        Patch((Change(axis.key, axis.samples()[0], axis.operator),)).apply(recipe)
    except RecipeError as error:
        return error
    return RecipeError(f"nothing there is ever called '{axis.only}'", path=axis.name, mend="check the name after '@'")


def _points(recipe: Recipe, axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    if not axes:
        yield {}
        return
    axis, rest = axes[0], axes[1:]
    if not axis.is_there(recipe):
        yield from _points(recipe, rest)
        return
    if not axis.choices and not axis.whole:
        raise RecipeError(
            f"a grid needs a list of values, got {axis}", path=axis.key, mend="write 0.001,0.01, or --sampler tpe"
        )
    values: list[Any] = list(axis.texts) if axis.choices else list(range(int(axis.low), int(axis.high) + 1))
    for value in values:
        below = recipe
        if axis.chooses(recipe):
            try:
                change = axis.change(recipe, axis.texts[value])
                below = recipe if change is None else Patch((change,)).apply(recipe)
            except RecipeError:
                yield {axis.name: value}  # such options cannot stand together; tried, it says why
                continue
        for point in _points(below, rest):
            yield {axis.name: value, **point}
