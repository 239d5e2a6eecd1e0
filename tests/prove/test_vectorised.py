"""Several seeds at once are several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits

from kingpost.data.arrays import Arrays
from kingpost.errors import RecipeError
from kingpost.prove.vectorised import train_seeds, why_not
from kingpost.recipe import Recipe
from kingpost.train.train import train


def arrays(images: bool) -> Arrays:
    """A few hundred samples."""
    x, y = load_digits(return_X_y=True) if images else load_diabetes(return_X_y=True)
    inputs = torch.tensor(x[:400], dtype=torch.float32)
    targets = torch.tensor(y[:400]) if images else torch.tensor(y[:400], dtype=torch.float32) / 100
    return Arrays(inputs=inputs.view(-1, 1, 8, 8) / 16 if images else inputs * 20, targets=targets)


COMMON: dict[str, Any] = {
    "name": "small",
    "model": {"name": "mlp", "widths": [16]},
    "budget": {"epochs": 2},
    "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
    "save": {"report": False},
}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "techniques": {"techniques": ["mixup", "label-smoothing", "l2"], "schedule": "one-cycle", "initialise": "he"},
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True}, "budget": {"steps": 25}},
    "convolutions": {"model": {"name": "cnn", "widths": [4, 8], "norm": "layer"}, "techniques": ["crop"]},
    "values": {"optimizer": {"name": "adagrad", "lr": 0.05}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_seed_is_a_run_of_its_own(name: str, tmp_path: Path) -> None:
    recipe = Recipe.from_value({**COMMON, "data": arrays(images=name != "values"), **RECIPES[name]})
    runs = train_seeds(recipe, [3, 0, 7])
    assert [run.seed for run in runs] == [3, 0, 7]
    for run in runs:
        alone = train(recipe.with_(seed=run.seed), root=tmp_path, quiet=True).results
        assert len(run.rows) == len(alone) and not run.failed
        for row, wanted in zip(run.rows, alone, strict=True):
            assert {*wanted} - {*row} == {"learning_rate", "seconds", "samples_per_second", "peak_memory_mebibytes"}
            for key, value in row.items():
                # The same sums in another order (one batched product in place of several): rounding of 1e-7 a
                # step, which some twenty steps of training enlarge.
                assert value == pytest.approx(wanted[key], rel=1e-4), (key, run.seed)


def test_a_seed_that_diverges_leaves_the_others_alone() -> None:
    recipe = Recipe.from_value({**COMMON, "data": arrays(images=False)})
    wild = recipe.patched("optimizer={name: sgd, lr: 1e30}")
    assert all(run.failed and not run.rows for run in train_seeds(wild, [0, 1]))
    together = train_seeds(recipe, [0, 1, 2])
    assert [run.rows for run in together][1][-1]["train_loss_squared_error"] == pytest.approx(
        train_seeds(recipe, [1])[0].rows[-1]["train_loss_squared_error"],
        rel=1e-4,  # rounding, as above
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("techniques+=clip", "'clip' touches update"),
        ("techniques+=dropout", "dropout draws other numbers"),
        ("model={name: cnn, norm: batch}", "keeps statistics in buffers"),
        ("optimizer=muon", "'muon' looks at more than one number"),
        ("budget={seconds: 3}", "a budget in seconds"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(change: str, said: str) -> None:
    recipe = Recipe.from_value({**COMMON, "data": arrays(images=True)}).patched(change)
    assert said in why_not(recipe)
    with pytest.raises(RecipeError, match=said):
        train_seeds(recipe, [0, 1])
