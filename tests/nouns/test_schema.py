import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kingpost as kp
from kingpost import catalogue, yaml_text
from kingpost.cli import main
from kingpost.errors import RecipeError
from kingpost.recipe import bundled_recipes
from kingpost.schema import recipe_schema
from nouns.draws import all_options, bounded, needed, recipes

SCHEMA = recipe_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)
SMALL = {"name": "a", "data": "digits", "model": "mlp"}


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", bundled_recipes(), ids=lambda path: path.stem)
def test_recipes_that_come_with_kingpost_are_valid(path):
    CHECK.validate(yaml_text.load(path.read_text()))
    CHECK.validate(kp.Recipe.load(path).to_value())


def test_the_committed_schema_is_the_present_one(capsys):
    assert main(["schema"]) == 0
    path = bundled_recipes()[0].parent / "recipe.schema.json"
    assert path.read_text() == capsys.readouterr().out, "write it again: kingpost schema > recipes/recipe.schema.json"


@pytest.mark.parametrize(
    "change",
    [
        {"bugdet": {"epochs": 1}},
        {"seed": -1},
        {"seed": "1"},
        {"batch_size": 0},
        {"name": "a b"},
        {"optimizer": {"name": "sgd", "lrr": 1}},
        {"optimizer": {"name": "sgd", "lr": 0}},
        {"optimizer": "sgdd"},
        {"optimizer": {"lr": 1}},
        {"techniques": "mixup"},
        {"techniques": [{"name": "mixup", "alpha": -1}]},
        {"model": {"name": "mlp", "widths": [0]}},
        {"model": {"name": "mlp", "activation": "rleu"}},
        {"save": {"keep": 0}},
    ],
    ids=str,
)
def test_editor_and_kingpost_refuse_the_same(change):
    assert not CHECK.is_valid(SMALL | change)
    with pytest.raises(RecipeError):
        kp.Recipe.from_value(SMALL | change)


def test_own_things_by_reference_are_valid():
    CHECK.validate(SMALL | {"optimizer": "torch.optim:NAdam"})
    CHECK.validate(SMALL | {"optimizer": {"name": "torch.optim:NAdam", "lr": 0.1}})


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_every_recipe_is_valid(recipe):
    CHECK.validate(json.loads(json.dumps(recipe.to_value())))


# A field that a kind chooses has its options' own schemas; a field without bounds has nothing to compare.
BOUNDED = [(cls, field, number, many) for cls, field, number, _, many in bounded() if cls is not kp.Recipe]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BOUNDED), st.integers(-3, 3) | st.sampled_from([0.5, 0.9999, 1.0001, -0.5, 1e-9, -1e-9, 1e9]))
def test_schema_and_constructor_have_the_same_bounds(subject, value):
    cls, field, number, many = subject
    if number is int and value != int(value):
        return
    value = int(value) if number is int else value
    schema = _schema_of(cls)["properties"][field]
    given_value = [value] if many else value
    try:
        cls(**needed(cls), **{field: given_value})
        message = ""
    except RecipeError as error:
        message = str(error) if ": should be" in str(error) else ""  # else it contradicts another field
    resolver = jsonschema.Draft202012Validator(schema | {"$defs": SCHEMA["$defs"]})
    assert resolver.is_valid(given_value) == (not message), message


def _schema_of(cls):
    if cls in (kp.Budget, kp.Save):
        return SCHEMA["properties"][cls.__name__.lower()]
    kind, name = next((k, n) for k, n in all_options() if catalogue.find(k, n) is cls)
    forms = SCHEMA["$defs"][kind]["anyOf"]
    return next(form for form in forms if form.get("properties", {}).get("name", {}).get("const") == name)


@pytest.mark.parametrize(("kind", "name"), all_options())
def test_every_field_is_described(kind, name):
    schema = _schema_of(catalogue.find(kind, name))
    assert schema["description"]
    bare = [key for key, value in schema["properties"].items() if key != "name" and not value.get("description")]
    assert bare == []


def test_every_key_of_a_recipe_is_described():
    for part in (SCHEMA, SCHEMA["properties"]["budget"], SCHEMA["properties"]["save"]):
        assert [key for key, value in part["properties"].items() if not value.get("description")] == []
