import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kingpost as kp
from kingpost.errors import RecipeError
from kingpost.finding import Finding
from nouns.draws import TEXT

BASE = kp.Recipe(name="a", data="digits", model="mlp", techniques=["mixup", "clip"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer.lr=1e-2"], {"optimizer": kp.AdamW(lr=0.01)}),
        (["optimizer=sgd", "optimizer.momentum=0"], {"optimizer": kp.SGD(momentum=0.0)}),
        (["optimizer={name: sgd, lr: 2}"], {"optimizer": kp.SGD(lr=2.0)}),
        (["model.widths=[8, 4]"], {"model": kp.MLP(widths=(8, 4))}),
        (["model.widths=[256, 128]", "model.widths+=3"], {"model": kp.MLP(widths=(256, 128, 3))}),
        (["model.widths=[256, 128]", "model.widths-=256"], {"model": kp.MLP(widths=(128,))}),
        (["techniques.mixup.alpha=1"], {"techniques": (kp.Mixup(alpha=1.0), kp.Clip())}),
        (["techniques.1.norm=3"], {"techniques": (kp.Mixup(), kp.Clip(norm=3.0))}),
        (["techniques.1=ema"], {"techniques": (kp.Mixup(), kp.EMA())}),
        (["techniques+=ema"], {"techniques": (kp.Mixup(), kp.Clip(), kp.EMA())}),
        (["techniques+=[ema, {name: l2, strength: 1}]"],
         {"techniques": (kp.Mixup(), kp.Clip(), kp.EMA(), kp.L2(strength=1.0))}),
        (["techniques-=mixup"], {"techniques": (kp.Clip(),)}),
        (["techniques-=1"], {"techniques": (kp.Mixup(),)}),
        (["techniques=[]"], {"techniques": ()}),
        (["initialise=he"], {"initialise": kp.He()}),
        (["save.every_steps=5", "save.keep=3"], {"save": kp.Save(every_steps=5, keep=3)}),
        (["budget.epochs=2"], {"budget": kp.Budget(epochs=2)}),
        (["budget.steps=2"], {"budget": kp.Budget(steps=2)}),  # takes the place of the epochs
        (["budget.steps=2", "budget.seconds=.5"], {"budget": kp.Budget(seconds=0.5)}),
        (["name=no"], {"name": "no"}),
    ],
)  # fmt: skip
def test_a_patch_changes_what_it_names_and_nothing_else(words, expected):
    assert BASE.patched(*words) == BASE.with_(**expected)
    assert BASE.patched(kp.Patch.parse(*words)) == BASE.with_(**expected)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("optimizer.lrr=1",
         "optimizer.lrr: unknown key; did you mean 'lr'? known: beta1, beta2, decay_embeddings, eps, lr, weight_decay"),
        ("optimizer.lr=-1", "optimizer.lr: got -1: should be greater than 0; expected a number > 0"),
        ("techniques.clip.norm=-4", "techniques.clip.norm: got -4: should be greater than 0; expected a number > 0"),
        ("techniques.1.norm=-4", "techniques.1.norm: got -4: should be greater than 0; expected a number > 0"),
        ("techniques.mixup.alhpa=4", "techniques.mixup.alhpa: unknown key; did you mean 'alpha'? known: alpha"),
        ("techniques.7.norm=4", "techniques: no '7' in the list; known: clip, mixup"),
        ("techniques-=mixpu", "techniques: no 'mixpu' in the list; did you mean 'mixup'? known: clip, mixup"),
        ("techniques+=mixup", "techniques: 'mixup' is listed twice; keep one of them"),
        ("batch_size+=3", "batch_size: += is for lists; write batch_size=..."),
        ("optimizer.lr.x=1", "optimizer.lr.x: optimizer.lr is 0.001 and has no keys below it; set optimizer.lr=..."),
        ("initialise.gain=1", "initialise.gain: initialise is None and has no keys below it; set initialise=..."),
        ("budget.epochs=null",
         "budget: exactly one of epochs, steps, seconds must be given, got none; for example epochs: 10"),
        ("save.keep=0", "save.keep: got 0: should be greater than or equal to 1; expected a whole number >= 1"),
        ("optimizer", "'optimizer' is not an override; write key=value, for example optimizer.lr=0.01"),
        ("=3", "'=3' is not an override; write key=value, for example optimizer.lr=0.01"),
        ("+=3", "'+=3' is not an override; write key=value, for example optimizer.lr=0.01"),
        ("optimizer.lr=[1", "optimizer.lr: got '[1': not valid YAML; quote it, or close its brackets"),
    ],
)  # fmt: skip
def test_errors_name_the_place(word, text):
    with pytest.raises(RecipeError) as caught:
        BASE.patched(word)
    assert str(caught.value) == text


def test_an_unknown_technique_that_is_added_names_the_nearest():
    with pytest.raises(RecipeError, match=r"^techniques.2: unknown technique 'emma'; did you mean 'ema'\?"):
        BASE.patched("techniques+=emma")


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
values = plain | st.lists(plain, max_size=3) | st.dictionaries(TEXT, plain, max_size=2)
changes = st.dictionaries(st.from_regex(r"[a-z]{1,3}(\.[a-z0-9]{1,3}){0,2}[+-]?", fullmatch=True), values, max_size=4)


@given(changes)
def test_a_patch_is_read_back_from_its_words_and_its_values(given_changes):
    patch = kp.Patch.of(given_changes)
    assert kp.Patch.parse(*map(str, patch.changes)) == patch
    assert kp.Patch.of(patch.to_value()) == patch == kp.Patch.of(patch)


def test_patches_compose():
    first, second = kp.Patch.parse("techniques+=ema", "optimizer.lr=1"), kp.Patch.parse("techniques.ema.decay=0.5")
    both = first + second
    assert both.apply(BASE) == second.apply(first.apply(BASE)) == BASE.patched(first, second)
    assert both.apply(BASE).techniques[-1] == kp.EMA(decay=0.5)
    assert (kp.Patch() + both).changes == both.changes
    with pytest.raises(RecipeError, match="no 'ema' in the list"):
        (second + first).apply(BASE)


def test_objects_survive_a_patch():
    model = nn.Linear(64, 10)
    recipe = BASE.with_(model=model).patched("optimizer.lr=0.5", "name=b")
    assert recipe.model.target is model


def test_arguments_of_a_reference_can_be_set():
    recipe = BASE.patched("optimizer={name: 'torch.optim:NAdam', lr: 0.1}", "optimizer.lr=0.2", "optimizer.eps=1e-7")
    assert recipe.to_value()["optimizer"] == {"name": "torch.optim:NAdam", "lr": 0.2, "eps": 1e-7}
    with pytest.raises(RecipeError, match=r"^optimizer.lr: arguments of a foreign object can only be set$"):
        recipe.patched("optimizer.lr+=1")


def test_a_finding_is_read_back_with_its_remedy():
    finding = Finding(
        symptom="the loss rises",
        severity="warning",
        evidence={"steps": 3, "rate": 0.5},
        cause="too fast",
        place="optimizer",
        remedy=kp.Patch.parse("optimizer.lr=0.1", "techniques+=clip"),
    )
    assert Finding.from_value(finding.to_value()) == finding
    assert str(finding).splitlines() == [
        "warning: the loss rises (optimizer)",
        "  cause: too fast",
        "  evidence: steps 3, rate 0.5",
        "  remedy: optimizer.lr=0.1 techniques+=clip",
    ]
