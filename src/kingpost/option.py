"""Options: the frozen, checked dataclasses that a recipe is made of.

The dataclass *is* the configuration: there is no second class that describes the first. pydantic checks
types and ranges at construction, in Python and from YAML alike; this file turns its complaints into
kingpost's (path, value, what is allowed, the nearest name) and turns names into objects.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast, dataclass_transform

import pydantic
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from kingpost import catalogue
from kingpost.errors import RecipeError, nearest

C = TypeVar("C", bound=type)

NAME = "name"
GIVEN = "given"


@dataclasses.dataclass(frozen=True)
class Kind:
    """Marks a field whose value is chosen by name from one kind of the catalogue.

    Args:
        kind: the key in the catalogue.
        many: the field holds a tuple of them.
    """

    kind: str
    many: bool = False


class Option:
    """Base of all that can stand in a recipe; subclasses are decorated with :func:`checked`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid",
        strict=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Self:
        """Built from plain values, as YAML gives them.

        Raises:
            RecipeError: unknown key (with the nearest name), wrong type, or value out of range.
        """
        return cls(**value)

    def to_value(self) -> dict[str, Any]:
        """Every field, defaults included, as plain values; :func:`from_value` is the inverse."""
        return {name: plain(getattr(self, name)) for name in field_names(type(self))}

    def with_(self, **changes: object) -> Self:
        """A copy with some fields changed, checked again."""
        return cast(Self, dataclasses.replace(cast(Any, self), **changes))

    @property
    def name(self) -> str:
        """The name under which a recipe knows this option."""
        return catalogue.name_of(type(self))


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(pydantic.Field, dataclasses.field))
def checked(cls: C) -> C:
    """Class decorator: a frozen, keyword-only dataclass that is checked at construction.

    >>> @checked
    ... class Penalty(Option):
    ...     strength: float = 0.1
    >>> Penalty(strenght=1.0)
    Traceback (most recent call last):
    kingpost.errors.RecipeError: strenght: unknown key; did you mean 'strength'? known: strength
    """
    made = pydantic_dataclass(frozen=True, kw_only=True, repr=True)(cls)
    construct: Callable[..., None] = made.__init__

    @functools.wraps(construct)
    def __init__(self: Option, **values: Any) -> None:  # noqa: N807
        kinds = _kinds(cast(Any, type(self)))
        ready = {key: _coerced(kinds.get(key), value, key) for key, value in values.items()}
        try:
            construct(self, **ready)
        except pydantic.ValidationError as error:
            raise _explained(type(self), error) from None

    made.__init__ = __init__  # type: ignore[method-assign,assignment]
    return cast(C, made)


def field_names(cls: type) -> list[str]:
    """The names of an option's fields, in order."""
    return [field.name for field in dataclasses.fields(cast(Any, cls)) if field.init]


def choose(kind: str, value: object) -> Option:
    """The option that ``value`` stands for: an option, a name, a mapping with a name, or a foreign object.

    Raises:
        RecipeError: nothing of that kind has this name, or its fields are wrong.

    >>> choose("schedule", {"name": "cosine", "warmup": 0.1}).warmup
    0.1
    """
    if isinstance(value, Option):
        return _of_kind(kind, value)
    if isinstance(value, str):
        value = {NAME: value}
    if not isinstance(value, Mapping):
        return _foreign(kind, target=value, reference="", arguments={})
    if NAME not in value:
        raise RecipeError(
            f"the key 'name' is missing from {dict(value)!r}", mend=nearest("", catalogue.CATALOGUE[kind])
        )
    name, rest = value[NAME], {key: item for key, item in value.items() if key != NAME}
    if not isinstance(name, str):
        raise RecipeError(f"expected text, got {name!r}", path=NAME, mend=nearest("", catalogue.CATALOGUE[kind]))
    if name == GIVEN:
        raise RecipeError(
            f"this recipe was made in Python with an object ({rest.get('what', 'unknown')}) that no file can hold",
            mend="in Python, pass recipe=... (the one that was trained) to kp.resume, kp.predict or kp.load_model",
        )
    found = catalogue.find(kind, name)
    if isinstance(found, type) and issubclass(found, Option):
        if "__pydantic_fields__" not in vars(found):
            raise RecipeError(f"the class {found.__name__} is not checked", mend="write @kp.checked above it")
        return _of_kind(kind, found.from_value(rest))
    return _foreign(kind, target=found, reference=name, arguments=rest)


def _of_kind(kind: str, option: Option) -> Option:
    """The option itself, if it can stand where something of this kind is wanted."""
    slots = getattr(option, "touches", None)
    fits = {
        "data": hasattr(option, "open"),
        "task": hasattr(option, "criterion"),
        "technique": slots is not None and not _is_listed(option, other_than=kind),
    }.get(kind, slots is not None and kind in slots)
    if not fits:
        raise RecipeError(
            f"'{option.name}' is no {kind}" + (f" (it touches {', '.join(sorted(slots))})" if slots else ""),
            mend=nearest("", catalogue.CATALOGUE[kind]),
        )
    return option


def _is_listed(option: Option, other_than: str) -> bool:
    return any(option.name in names for kind, names in catalogue.CATALOGUE.items() if kind != other_than)


def plain(value: object) -> Any:
    """A value as JSON and YAML can hold it: options become mappings, tuples become lists, paths become text."""
    if isinstance(value, Option):
        named = type(value) not in _UNNAMED
        return ({NAME: value.name} if named else {}) | value.to_value()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


_UNNAMED: set[type] = set()  # options that stand in a field of exactly their own type, so need no name


def unnamed(cls: C) -> C:
    """Class decorator for options that are a section of the recipe, never chosen by name (``budget``)."""
    _UNNAMED.add(cls)
    return cls


def section_type(cls: type, field: str) -> type[Option] | None:
    """The type of a field that is a section (an unnamed option), else None."""
    hint = _hints(cls).get(field)
    return hint if isinstance(hint, type) and hint in _UNNAMED else None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _kinds(cls: type) -> dict[str, Kind | type[Option]]:
    """What each field is made from: a kind of the catalogue, or a section; other fields are left out."""
    hints = typing.get_type_hints(cls, include_extras=True)
    marked: dict[str, Kind | type[Option]] = {
        name: mark
        for name, hint in hints.items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, Kind)
    }
    sections = {name: section for name in field_names(cls) if (section := section_type(cls, name))}
    return marked | sections


def kind_of_field(cls: type, field: str) -> Kind | type[Option] | None:
    """How a field's value is chosen: a :class:`Kind`, the class of a section, or None for plain values."""
    return _kinds(cls).get(field)


def _coerced(kind: Kind | type[Option] | None, value: Any, path: str) -> Any:
    if kind is None:
        return _tuples(value)
    try:
        if not isinstance(kind, Kind):
            return kind.from_value(value) if isinstance(value, Mapping) else value
        if not kind.many:
            return None if value is None else choose(kind.kind, value)
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise RecipeError(f"expected a list, got {value!r}", mend=f"write [{value}]")
        chosen = []
        for index, item in enumerate(value):
            try:
                chosen.append(choose(kind.kind, item))
            except RecipeError as error:
                raise error.under(str(index)) from error.__cause__
        return tuple(chosen)
    except RecipeError as error:
        raise error.under(path) from error.__cause__


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _foreign(kind: str, target: object, reference: str, arguments: Mapping[str, Any]) -> Option:
    from kingpost.foreign import Foreign, as_source  # foreign things are techniques, which are options

    if kind == "data":
        return as_source(target, reference, arguments)
    return Foreign(kind=kind, target=target, reference=reference, arguments=dict(arguments))


# What pydantic puts into a path for each alternative of a union, which is no key of the recipe.
_BRANCH = re.compile(r"^(function-.*|(tuple|literal)\[.*|constrained-\w+|int|float|str|bool|none)$")


def _explained(cls: type, error: pydantic.ValidationError) -> RecipeError:
    """Pydantic's first complaint in kingpost's words."""
    detail = error.errors(include_url=False)[0]
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, RecipeError):
        return cause
    path = ".".join(str(part) for part in detail["loc"] if not _BRANCH.match(str(part)))
    known = field_names(cls)
    if detail["type"] == "unexpected_keyword_argument":
        inside = [name for name in known if (part := section_type(cls, name)) and path in field_names(part)]
        mend = f"did you mean '{inside[0]}.{path}'?" if inside else nearest(path, known)
        return RecipeError("unknown key", path=path, mend=mend)
    if detail["type"] in ("missing_keyword_only_argument", "missing"):
        return RecipeError("required, but not given", path=path, mend=f"{cls.__name__} takes: {', '.join(known)}")
    if detail["type"] == "is_instance_of" and isinstance(kind := _kinds(cast(Any, cls)).get(path), Kind):
        return RecipeError(f"got {detail['input']!r}", path=path, mend=nearest("", catalogue.CATALOGUE[kind.kind]))
    if detail["type"] == "string_pattern_mismatch":
        return RecipeError(f"got {detail['input']!r}", path=path, mend=f"expected: {_described(cls, path)}")
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return RecipeError(f"got {detail['input']!r}: {message}", path=path, mend=_allowed(cls, path))


def _described(cls: type, field: str) -> str:
    return cast(Any, cls).__pydantic_fields__[field].description or "other text"


def _allowed(cls: type, path: str) -> str:
    """What a field accepts, in words, from its type."""
    hint = typing.get_type_hints(cls, include_extras=True).get(path.split(".")[0])
    if hint is None:
        return ""
    return f"expected {_type_words(hint)}"


def _marks(metadata: tuple[Any, ...]) -> list[Any]:
    return [inner for mark in metadata for inner in (mark, *getattr(mark, "metadata", ()))]


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def _type_words(hint: Any) -> str:
    if hasattr(hint, "__metadata__"):
        bounds = [
            f"{sign} {getattr(mark, attribute)}"
            for mark in _marks(hint.__metadata__)
            for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
            if getattr(mark, attribute, None) is not None
        ]
        return _type_words(hint.__origin__) + (f" {' and '.join(bounds)}" if bounds else "")
    if hint in _WORDS:
        return _WORDS[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(str(item) for item in arguments)
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_type_words(arguments[0])}"
    if arguments and typing.get_origin(hint) is not dict:
        return " or ".join(_type_words(item) for item in arguments)
    return getattr(hint, "__name__", str(hint))
