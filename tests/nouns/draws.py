"""Random options for hypothesis: every field of every option in the catalogue, drawn from its type and bounds."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

from hypothesis import assume
from hypothesis import strategies as st

from kingpost import catalogue
from kingpost.errors import RecipeError
from kingpost.option import Kind, Option, field_names
from kingpost.recipe import Budget, Recipe, Save
from kingpost.technique import Technique, right_order

OBJECTS = ("arrays", "loaders")  # hold what no file can
# Words that YAML 1.1 or a careless writer would not give back as the text that they are.
NASTY = ["no", "yes", "on", "null", "~", "1e3", "010", "0x1f", ".5", ".inf", "true", "2024-01-01", "12:30", "=", "<<"]
NASTY += [
    "",
    " ",
    "a: b",
    "- a",
    "# a",
    "[a",
    "'",
    '"',
    "a\nb",
    "\t",
    "é",
    "\N{SNOWMAN}",
    "!a",
    "&a",
    "*a",
    "|",
    "%a",
    "@",
]
TEXT = st.sampled_from(NASTY) | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)


def bounds_of(metadata: tuple[Any, ...]) -> dict[str, Any]:
    """The bounds among the marks of an annotated type: ge, gt, le, lt."""
    marks = [inner for mark in metadata for inner in (mark, *getattr(mark, "metadata", ()))]
    return {
        key: getattr(mark, key)
        for mark in marks
        for key in ("ge", "gt", "le", "lt")
        if getattr(mark, key, None) is not None
    }


def numbers(hint: type, bounds: dict[str, Any]) -> st.SearchStrategy[Any]:
    """All whole or real numbers within bounds."""
    if hint is int:
        low = bounds.get("ge", bounds.get("gt", -1001) + 1)
        return st.integers(low, bounds.get("le", bounds.get("lt", low + 1001) - 1))
    return st.floats(
        min_value=bounds.get("ge", bounds.get("gt")),
        max_value=bounds.get("le", bounds.get("lt")),
        exclude_min="gt" in bounds,
        exclude_max="lt" in bounds,
        allow_nan=False,
        allow_infinity=False,
    )


def values(hint: Any) -> st.SearchStrategy[Any] | None:
    """What a field of this type can hold; None where the type does not say."""
    metadata = getattr(hint, "__metadata__", ())
    inner = hint.__origin__ if metadata else hint
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if inner in (int, float):
        return numbers(inner, bounds_of(metadata))
    if inner in (bool, type(None)):
        return st.booleans() if inner is bool else st.none()
    if inner is str:
        return TEXT
    if inner is Path:
        return TEXT.filter(lambda text: text and "\0" not in text).map(Path)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        choices = [made for argument in arguments if (made := values(argument)) is not None]
        return st.one_of(choices) if len(choices) == len(arguments) else None
    if origin is tuple and arguments[-1] is Ellipsis:
        item = values(arguments[0])
        return None if item is None else st.lists(item, max_size=3).map(tuple)
    return None


def hints_of(cls: type) -> dict[str, Any]:
    """The fields' types, with their marks."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in field_names(cls)}


@st.composite
def fields(draw: st.DrawFn, cls: type) -> dict[str, Any]:
    """Some of the fields of an option, each within its bounds, and all those that must be given."""
    drawn: dict[str, Any] = {}
    for name, hint in hints_of(cls).items():
        strategy = values(hint)
        needed = cls.__pydantic_fields__[name].is_required()  # type: ignore[attr-defined]
        if strategy is not None and (needed or draw(st.booleans())):
            drawn[name] = draw(strategy)
    return drawn


@st.composite
def options(draw: st.DrawFn, kind: str) -> Option:
    """An option of a kind. Draws that contradict themselves across fields are thrown away."""
    cls = catalogue.find(kind, draw(st.sampled_from([n for n in catalogue.CATALOGUE[kind] if n not in OBJECTS])))
    assert isinstance(cls, type)
    try:
        made = cls(**draw(fields(cls)))
    except RecipeError:
        assume(False)
    return made


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """A recipe in which every key is drawn; it may make no sense as a training."""
    drawn = draw(st.lists(options("technique"), max_size=4, unique_by=lambda technique: technique.name))
    techniques = [technique for technique in drawn if isinstance(technique, Technique)]
    names = {technique.name for technique in techniques}
    assume(not any(names.intersection(technique.conflicts) for technique in techniques))
    by_name = {technique.name: technique for technique in techniques}
    kinds = ("data", "model", "optimizer", "schedule", "layout")
    maybe = ("task", "initialise")
    counted = st.sampled_from(["epochs", "steps"]).flatmap(
        lambda key: st.integers(1, 9).map(lambda n: Budget(**{key: n}))
    )
    chosen = {kind: draw(options(kind)) for kind in kinds}
    timed = st.floats(1e-3, 1e3).map(lambda s: Budget(seconds=s))
    budget = draw(counted | timed if chosen["layout"].data == 1 else counted)  # several processes have several clocks
    try:
        made = Recipe(
            name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)),
            techniques=[by_name[name] for name in right_order(techniques)],
            budget=budget,
            save=Save(**draw(fields(Save))),
            batch_size=draw(st.integers(1, 10**6)),
            seed=draw(st.integers(0, 2**63)),
            **chosen,
            **{kind: draw(st.none() | options(kind)) for kind in maybe},
        )
    except RecipeError:  # parts of a recipe can exclude each other across kinds
        assume(False)
    return made


def all_options() -> list[tuple[str, str]]:
    """(kind, name) of everything in the catalogue."""
    return [(kind, name) for kind, names in catalogue.CATALOGUE.items() for name in names]


def bounded() -> list[tuple[type, str, type, dict[str, Any], bool]]:
    """(option, field, int or float, bounds, whether the field is a list) of every bounded field there is."""
    found = []
    classes = [catalogue.find(kind, name) for kind, name in all_options()]
    for cls in [*classes, Recipe, Budget, Save]:
        for name, hint in hints_of(cls).items():  # type: ignore[arg-type]
            for one, many in _scalars(hint):
                if limits := bounds_of(getattr(one, "__metadata__", ())):
                    found.append((cls, name, one.__origin__, limits, many))
    return found  # type: ignore[return-value]


def _scalars(hint: Any, many: bool = False) -> list[tuple[Any, bool]]:
    metadata = getattr(hint, "__metadata__", ())
    inner = hint.__origin__ if metadata else hint
    if any(isinstance(mark, Kind) for mark in metadata):
        return []
    if inner in (int, float):
        return [(hint, many)]
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if origin is dict or (origin is tuple and (many or arguments[-1] is not Ellipsis)):
        return []  # bounds inside mappings and lists of lists are left to their own tests
    lists = many or origin is tuple
    return [found for argument in arguments for found in _scalars(argument, lists)]


def needed(cls: type) -> dict[str, Any]:
    """The fields that must be given, with some value."""
    others = {"inputs": [[0.0]], "targets": [0.0], "data": "digits", "model": "mlp"}
    found = {}
    for name, hint in hints_of(cls).items():
        if cls.__pydantic_fields__[name].is_required():  # type: ignore[attr-defined]
            inner = hint.__origin__ if hasattr(hint, "__metadata__") else hint
            origin, arguments = typing.get_origin(inner), typing.get_args(inner)
            text = arguments[0] if origin is Literal else ["a"] * len(arguments) if origin is tuple else "a"
            found[name] = others.get(name, text)
    return found
