"""The dial: what follows from depth and width, by the formulas of the papers that are named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contract.toys import Toy
from kingpost.build.sizing import compound, sized
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe


def mlp(**changes: object) -> Recipe:
    fields = {"name": "a", "data": Toy(dtype="float32"), "model": {"name": "mlp", "width": 64, "depth": 2}}
    return Recipe.from_value({**fields, **changes})


def gpt(**changes: object) -> Recipe:
    data = Toy(task="language-modelling", dtype="float32")
    model = {"name": "gpt", "depth": 1, "width": 8, "heads": 2}
    return Recipe.from_value({"name": "a", "data": data, "model": model, "budget": {"steps": 10}, **changes})


def test_the_rate_falls_with_the_root_of_the_width() -> None:
    made = sized(mlp(optimizer={"name": "adamw", "lr": 0.004}), width=256)
    assert made.recipe.model.width == 256  # type: ignore[attr-defined]
    assert made.recipe.optimizer.lr == pytest.approx(0.004 / math.sqrt(256 / 64))  # type: ignore[attr-defined]


def test_depth_alone_leaves_the_rate() -> None:
    made = sized(mlp(), depth=5)
    assert made.patch.to_value() == {"model.depth": 5}


def test_the_recipe_is_what_the_patch_gives() -> None:
    base = mlp()
    made = sized(base, width=16, depth=3)
    assert made.patch.apply(base) == made.recipe


def test_tokens_of_a_language_model() -> None:
    """24 sequences of 6 tokens are few: four passes, 576 tokens, before and after; the batch stays."""
    made = sized(gpt(batch_size=8), depth=2)
    assert made.recipe.batch_size == 8
    assert made.recipe.budget.steps == 4 * 24 * 6 // (8 * 6)


def test_twenty_tokens_a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kingpost.build.sizing.MOST_PASSES", 10_000)
    base = gpt(batch_size=8)
    made = sized(base, depth=3)
    parameters = {f.name: f.value for f in made.figures}
    before = int(next(f.reason for f in made.figures if f.name == "parameters").removeprefix("were ").replace(",", ""))
    after = parameters["parameters"]
    batch = 2 ** round(math.log2(8 * (after / before) ** 0.4))
    assert made.recipe.batch_size == batch
    assert made.recipe.budget.steps == round(20 * after / (batch * 6))
    assert made.recipe.optimizer.lr == pytest.approx(1e-3 * math.sqrt(batch / 8), rel=1e-2)  # type: ignore[attr-defined]


def test_every_number_has_a_reason() -> None:
    assert all(figure.reason for figure in sized(gpt(), depth=2).figures)


def test_compound_scaling_doubles_the_compute() -> None:
    """Compute is depth x width^2 x resolution^2: 1.2 x 1.1^2 x 1.15^2 = 1.92 a unit (Tan and Le, section 3.3)."""
    d, w, r = compound(4, 1000, 1000, 1000)
    assert (d * w**2 * r**2 / 1000**5) ** (1 / 4) == pytest.approx(1.2 * 1.1**2 * 1.15**2, rel=0.01)


@pytest.mark.parametrize(
    ("recipe", "dial", "message"),
    [
        (mlp(), {"dept": 3}, "dept: 'mlp' has no dial 'dept'; did you mean 'depth'?"),
        (mlp(), {}, "nothing to change; give one of: depth, width"),
        (mlp(model="mlp").patched("model.widths=[3]"), {"width": 3}, "model.widths: the layers are given one by one"),
        (mlp(model={"name": "torch.nn:Identity"}), {"width": 3}, "is not one of kingpost's nets"),
    ],
)
def test_errors(recipe: Recipe, dial: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        sized(recipe, **dial)
    assert message in str(error.value)


def test_torch_is_left_alone() -> None:
    before: Tensor = torch.random.get_rng_state()
    sized(mlp(), width=8)
    assert torch.equal(before, torch.random.get_rng_state())
