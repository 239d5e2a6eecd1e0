import json

import pytest
from hypothesis import HealthCheck, given, settings
from torch import nn

import kingpost as kp
from kingpost.catalogue import CATALOGUE
from kingpost.errors import RecipeError
from nouns.draws import bounded, needed, recipes

OPTIMIZERS = ", ".join(sorted(CATALOGUE["optimizer"]))

YAML = """
name: digits-1
data: {name: digits, validation: 0.2}
model: {name: mlp, widths: [64, 32], activation: gelu}
initialise: he
optimizer: {name: sgd, lr: 1e-2}
schedule: {name: cosine, warmup: .1}
techniques: [label-smoothing, {name: clip, norm: 2}]
batch_size: 32
budget: {steps: 7}
save: {every_steps: 3}
seed: 5
"""


def recipe(**changes):
    return kp.Recipe(**{"name": "a", "data": "digits", "model": "mlp"} | changes)


def written(*lines):
    return "\n".join(["name: a", "data: digits", "model: mlp", *lines])


def test_python_and_yaml_say_the_same():
    assert kp.Recipe.from_yaml(YAML) == kp.Recipe(
        name="digits-1",
        data=kp.Digits(validation=0.2),
        model=kp.MLP(widths=(64, 32), activation="gelu"),
        initialise=kp.He(),
        optimizer=kp.SGD(lr=0.01),
        schedule=kp.Cosine(warmup=0.1),
        techniques=(kp.LabelSmoothing(), kp.Clip(norm=2.0)),
        batch_size=32,
        budget=kp.Budget(steps=7),
        save=kp.Save(every_steps=3),
        seed=5,
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(recipes())
def test_the_file_is_the_recipe(drawn):
    text = drawn.to_yaml()
    again = kp.Recipe.from_yaml(text)
    assert again == drawn and again.to_yaml() == text
    assert kp.Recipe.from_value(json.loads(json.dumps(drawn.to_value()))) == drawn  # and so is its JSON


def test_a_file_has_every_key():
    value = kp.Recipe.from_yaml(recipe().to_yaml()).to_value()
    assert list(value) == [
        "name", "data", "model", "task", "initialise", "optimizer", "schedule", "techniques", "batch_size", "budget",
        "layout", "save", "seed", "stages",
    ]  # fmt: skip
    assert value["optimizer"] == {
        "name": "adamw", "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01,
        "decay_embeddings": True,
    }  # fmt: skip
    assert value["budget"] == {"epochs": 10, "steps": None, "seconds": None}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "bugdet: {epochs: 2}",
            "bugdet: unknown key; did you mean 'budget'? known: batch_size, budget, data, initialise, layout, model, "
            "name, optimizer, save, schedule, seed, stages, task, techniques",
        ),
        (
            "optimizer: {name: sgd, lrr: 1}",
            "optimizer.lrr: unknown key; did you mean 'lr'? known: decay_embeddings, lr, momentum, nesterov, "
            "weight_decay",
        ),
        (
            "techniques: [clip, {name: mixup, alhpa: 1}]",
            "techniques.1.alhpa: unknown key; did you mean 'alpha'? known: alpha",
        ),
        (
            "save: {evry_steps: 3}",
            "save.evry_steps: unknown key; did you mean 'every_steps'? known: evaluate_every_epochs, every_seconds, "
            "every_steps, keep, report, tensorboard",
        ),
        (
            "optimizer: {name: sgd, lr: fast}",
            "optimizer.lr: got 'fast': should be a valid number; expected a number > 0",
        ),
        (
            "techniques: [{name: mixup, alpha: -1}]",
            "techniques.0.alpha: got -1: should be greater than or equal to 0; expected a number >= 0",
        ),
        (
            "optimizer: {name: sgd, lr: .nan}",
            "optimizer.lr: got nan: should be a finite number; expected a number > 0",
        ),
        ("seed: true", "seed: got True: should be a valid integer; expected a whole number >= 0"),
        ("seed: 1.0", "seed: got 1.0: should be a valid integer; expected a whole number >= 0"),
        ("seed: '1'", "seed: got '1': should be a valid integer; expected a whole number >= 0"),
        ("save: {report: no}", "save.report: got 'no': should be a valid boolean; expected true or false"),
        (
            "layout: {name: data-parallel, threads: 0}",
            "layout.threads: got 0: should be greater than or equal to 1; expected a whole number >= 1 or null",
        ),
        (
            "optimizer: {lr: 1}",
            f"optimizer: the key 'name' is missing from {{'lr': 1}}; known: {OPTIMIZERS}",
        ),
        ("optimizer: {name: 3}", f"optimizer.name: expected text, got 3; known: {OPTIMIZERS}"),
        (
            "optimizer: adamwv",
            f"optimizer: unknown optimizer 'adamwv'; did you mean 'adamw'? known: {OPTIMIZERS}; or your own as "
            "module:name",
        ),
        ("techniques: mixup", "techniques: expected a list, got 'mixup'; write [mixup]"),
        (
            "budget: {epochs: 1, steps: 2}",
            "budget: exactly one of epochs, steps, seconds must be given, got epochs and steps; keep one of them",
        ),
        (
            "budget: {}",
            "budget: exactly one of epochs, steps, seconds must be given, got none; for example epochs: 10",
        ),
        (
            "optimizer: {name: sgd, momentum: 0, nesterov: true}",
            "optimizer.momentum: Nesterov needs momentum, got 0; set momentum=0.9 or nesterov=false",
        ),
        (
            "optimizer: nowhere:Best",
            "optimizer: no module 'nowhere' (looked for 'nowhere:Best'); run from the folder that holds it, or "
            "install the package it is in",
        ),
        ("optimizer: torch.optim:AdamV", "optimizer: module 'torch.optim' has no 'AdamV'; did you mean 'Adam'?"),
        (
            "task: torch.nn:Linear",
            "task: the class Linear is not a kingpost task; pass a subclass; by name: known: "
            + ", ".join(sorted(CATALOGUE["task"])),
        ),
    ],
)  # fmt: skip
def test_errors_say_where_what_and_how_to_mend_it(line, text):
    with pytest.raises(RecipeError) as caught:
        kp.Recipe.from_yaml(written(line))
    if "torch.optim" in text:  # which of torch's names is nearest, and how many it lists, is torch's business
        assert str(caught.value).startswith(text.split(";")[0])
    else:
        assert str(caught.value) == text


def test_the_file_is_named_in_its_errors(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(written("seed: -1"))
    with pytest.raises(RecipeError) as caught:
        kp.Recipe.load(path)
    assert str(caught.value) == (
        f"{path}: seed: got -1: should be greater than or equal to 0; expected a whole number >= 0"
    )


def test_a_missing_key_is_named():
    with pytest.raises(RecipeError, match=r"^model: required, but not given; Recipe takes: name, data, model, task,"):
        kp.Recipe.from_yaml("name: a\ndata: digits\n")


@pytest.mark.parametrize("name", ["", " a", "a b", "../a", "a/b", ".hidden", "-a", "é", "a\n"])
def test_a_name_is_safe_as_a_folder(name):
    with pytest.raises(RecipeError, match=r"^name: got "):
        recipe(name=name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", r"^not valid YAML: the key 'name' stands twice"),
        ("name: [a\n", r"^not valid YAML: while parsing a flow sequence\n.*line 1, column 7"),
        ("- name\n", r"^expected keys and values, got \['name'\]; see recipes/digits.yaml$"),
        ("", r"^expected keys and values, got an empty file; see recipes/digits.yaml$"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        kp.Recipe.from_yaml(text)


def test_no_such_recipe_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"^no recipe 'digitz'; did you mean 'digits'\? known: adult, "):
        kp.Recipe.load("digitz")
    (tmp_path / "mine.yaml").write_text(written())
    assert kp.Recipe.load("mine.yaml") == recipe()
    with pytest.raises(RecipeError, match=r"^no recipe 'mime.yaml'; did you mean 'mine'\? known: adult, "):
        kp.Recipe.load("mime.yaml")


def test_recipes_are_frozen():
    made = recipe()
    with pytest.raises(AttributeError):
        made.seed = 1
    with pytest.raises(AttributeError):
        made.optimizer.lr = 1.0
    assert made.with_(seed=1).seed == 1 and made.seed == 0
    with pytest.raises(RecipeError, match=r"^seed: got -1"):
        made.with_(seed=-1)


def test_objects_cannot_be_written_and_the_file_says_so():
    made = recipe(model=nn.Linear(64, 10))
    assert made.not_reproducible == ["model"]
    text = made.to_yaml()
    assert "# not reproducible from this file: model was an object\n" in text
    with pytest.raises(RecipeError) as caught:
        kp.Recipe.from_yaml(text)
    assert str(caught.value) == (
        "model: this recipe was made in Python with an object (an object of type Linear) that no file can hold; "
        "in Python, pass recipe=... (the one that was trained) to kp.resume, kp.predict or kp.load_model"
    )


def test_an_object_that_is_nothing_of_the_kind_is_refused():
    with pytest.raises(RecipeError, match=r"^techniques.0: an object of type ReLU is not a kingpost technique;"):
        recipe(techniques=[nn.ReLU()])
    with pytest.raises(RecipeError, match=r"^data: cannot use an object of type int as data; pass a DataLoader, kp"):
        recipe(data=3)


OUTSIDE = {"ge": (-1, -1e-6), "gt": (0, 0.0), "le": (1, 1e-6), "lt": (0, 0.0)}  # what to add to a bound to break it


@pytest.mark.parametrize(
    ("cls", "field", "number", "bounds", "many"),
    bounded(),
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_every_bound_is_enforced(cls, field, number, bounds, many):
    for key, bound in bounds.items():
        broken = number(bound + OUTSIDE[key][number is float])
        with pytest.raises(RecipeError) as caught:
            cls(**needed(cls), **{field: [broken] if many else broken})
        sign = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}[key]
        assert str(caught.value).startswith(f"{field}{'.0' if many else ''}: got {broken!r}: should be ")
        assert f"{sign} {bound}" in caught.value.mend
        if key in ("ge", "le") and cls not in (kp.Recipe,):
            value = number(bound)
            try:
                cls(**needed(cls), **{field: [value] if many else value})
            except RecipeError as error:  # two fields can contradict each other, but this one's bound is allowed
                assert "should be" not in str(error)
