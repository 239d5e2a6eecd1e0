"""The JSON schema of recipes, by which editors complete and check them as they are typed."""

from __future__ import annotations

import re
import typing
from typing import Any, cast

import pydantic
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from kingpost import catalogue
from kingpost.option import NAME, Kind, Option, field_names, kind_of_field
from kingpost.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REFERENCE = {"type": "string", "pattern": "^[^:]+:[^:]+$", "description": "your own, as module:name"}


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe's YAML or JSON form, JSON Schema draft 2020-12.

    >>> sorted(recipe_schema()["required"])
    ['data', 'model', 'name']
    """
    kinds = {kind: _kind(kind) for kind in catalogue.CATALOGUE}
    return {"$schema": DIALECT, **_object(Recipe, _description(Recipe)), "$defs": kinds}


def _object(cls: type[Option], description: str, name: str = "") -> dict[str, Any]:
    own = pydantic.TypeAdapter(cls).json_schema(schema_generator=_Generator)
    properties: dict[str, Any] = {NAME: {"const": name}} if name else {}
    for field in field_names(cls):
        kind = kind_of_field(cls, field)
        if kind is None:
            inherited = {"description": _documentation(cls)[field]} if field in _documentation(cls) else {}
            properties[field] = inherited | own["properties"][field]
            continue
        if isinstance(kind, Kind):
            one = {"$ref": f"#/$defs/{kind.kind}"}
            value: dict[str, Any] = {"type": "array", "items": one} if kind.many else one
            if type(None) in typing.get_args(typing.get_type_hints(cls)[field]):
                value = {"anyOf": [one, {"type": "null"}]}
        else:
            value = _object(kind, "")
        properties[field] = {**value, "description": _documentation(cls).get(field, "")}
    required = [*([NAME] if name else []), *own.get("required", [])]
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _kind(kind: str) -> dict[str, Any]:
    """Any value of one kind: a name, a mapping with that name, or a reference to the user's own."""
    forms: list[dict[str, Any]] = [{"enum": list(catalogue.CATALOGUE[kind])}, REFERENCE]
    for name in catalogue.CATALOGUE[kind]:
        cls = catalogue.find(kind, name)
        assert isinstance(cls, type) and issubclass(cls, Option)
        forms.append(_object(cls, _description(cls), name))
    forms.append({"type": "object", "properties": {NAME: REFERENCE}, "required": [NAME]})
    return {"anyOf": forms}


class _Generator(GenerateJsonSchema):
    """Leaves objects open: what may stand there is said by the catalogue, not by a Python class."""

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> dict[str, Any]:
        return {}

    def callable_schema(self, schema: core_schema.CallableSchema) -> dict[str, Any]:
        return {}


def _documentation(cls: type[Option]) -> dict[str, str]:
    """What is said of each field, by the class itself or by the one that it has the field from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        fields = cast(Any, vars(base).get("__pydantic_fields__", {}))
        found |= {name: field.description for name, field in fields.items() if field.description}
    return found


def _description(cls: type[Option]) -> str:
    paragraph = re.split(r"\n\s*\n", (cls.__doc__ or "").strip())[0]
    return re.sub(r"\s+", " ", paragraph)
