"""The trunk with heads, and tables with several targets of mixed kinds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import kingpost as kp
from kingpost.build.nets.multi_task import MultiTaskNet, MultiTaskTrunk
from kingpost.data.arrays import Arrays
from kingpost.data.bundled import Bundled
from kingpost.data.tables import Table
from kingpost.errors import DataError, RecipeError
from kingpost.source import DataFacts, Head, original_units

ROWS = 300


@pytest.fixture(autouse=True)
def in_32_bits() -> None:
    torch.set_default_dtype(torch.float32)  # tables are; the fixture beside this file puts it back


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=ROWS), rng.normal(size=ROWS)
    price = 1000 + 200 * x + 20 * rng.normal(size=ROWS)
    return pd.DataFrame(
        {
            "x": x,
            "y": y,
            "sold": np.where(x + y > 0, "yes", np.where(np.arange(ROWS) % 11 == 0, None, "no")),
            "price": np.where(np.arange(ROWS) % 7 == 0, np.nan, price),
            "stars": np.clip(np.round(y + 3), 1, 5).astype(int),
        }
    )


def source(frame: pd.DataFrame, folder: Path, **fields: object) -> Table:
    frame.to_csv(folder / "rows.csv", index=False)
    given = {"target": ["sold", "price", "stars"], "task": "multi-task", "categories": "stars", "validation": 0.2}
    return Table(train=folder / "rows.csv", **(given | fields))


def test_classes_values_and_missing_labels_of_a_table(frame: pd.DataFrame, tmp_path: Path) -> None:
    opened = source(frame, tmp_path).open()
    assert opened.facts.heads == (
        Head(name="sold", classes=("no", "yes")),
        Head(name="price"),
        Head(name="stars", classes=("1", "2", "3", "4", "5")),
    )
    assert opened.facts.features == ("x", "y") and opened.facts.target_shape == (3,)
    rows = frame.iloc[opened.indices["validation"].numpy()]
    sold, price, stars = opened.splits["validation"].targets.T
    np.testing.assert_array_equal(sold, rows["sold"].map({"no": 0.0, "yes": 1.0, None: np.nan}).astype(float))
    np.testing.assert_array_equal(stars, rows["stars"] - 1)
    train = frame.iloc[opened.indices["train"].numpy()]["price"].dropna()
    np.testing.assert_allclose(price, (rows["price"] - train.mean()) / train.std(ddof=0), atol=1e-5)  # 32 bits
    back = original_units(opened.splits["validation"].targets, opened.fitted)
    np.testing.assert_allclose(back[:, 1], rows["price"], rtol=1e-5)
    assert opened.fitted["prediction"]["mean"][2] == pytest.approx(train.mean())
    assert len(opened.fitted["prediction"]["std"]) == 2 + 1 + 5


def test_scales_of_features_are_among_the_facts(frame: pd.DataFrame, tmp_path: Path) -> None:
    facts = source(frame, tmp_path, target="y", task="regression", drop=("sold", "price"), categories=()).open().facts
    assert (
        facts.features == ("x", "stars") and len(facts.scales) == 2 and facts.scales[1][0] == pytest.approx(3, abs=0.3)
    )
    facts = source(frame, tmp_path, target="stars", task="classification", na_values="").open().facts
    assert facts.features == ("x", "y", "sold=no", "sold=yes", "sold=<missing>", "sold=<other>", "price",
                              "price is missing")  # fmt: skip
    assert facts.scales[2:6] == ((0.0, 1.0),) * 4 and facts.scales[6][0] == pytest.approx(1000, abs=40)
    assert facts.scales[7] == (0.0, 1.0)


def test_bad_targets_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["empty"], frame["one"] = np.nan, "same"
    with pytest.raises(DataError, match="the target 'empty' has no label in the training part"):
        source(frame, tmp_path, target=["price", "empty"], categories=()).open()
    with pytest.raises(DataError, match="the target 'one' holds 1 classes, expected 2 to 100"):
        source(frame, tmp_path, target=["price", "one"], categories=()).open()
    other = frame.copy()
    other.loc[3, "sold"] = "maybe"
    other.to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match="test: column 'sold' holds 'maybe' in row 3, expected one of no, yes"):
        source(frame, tmp_path, test=str(tmp_path / "test.csv")).open()
    with pytest.raises(RecipeError, match="task: label_map has no effect with task=multi-task"):
        source(frame, tmp_path, label_map={"a": "b"})


def test_strip_target_takes_dots_from_labels(frame: pd.DataFrame, tmp_path: Path) -> None:
    other = frame.assign(sold=frame["sold"] + ".")
    other.to_csv(tmp_path / "test.csv", index=False)
    opened = source(frame, tmp_path, test=str(tmp_path / "test.csv"), strip_target=".").open()
    torch.testing.assert_close(
        opened.splits["test"].targets[opened.indices["train"]], opened.splits["train"].targets, equal_nan=True
    )


def test_a_net_with_heads_learns_and_predicts_by_name(frame: pd.DataFrame, tmp_path: Path) -> None:
    recipe = kp.Recipe(
        name="several",
        data=source(frame, tmp_path),
        model={"name": "multi-task", "trunk": {"name": "mlp", "widths": [32]}, "width": 16},
        optimizer={"name": "adamw", "lr": 0.01},
        batch_size=32,
        budget={"epochs": 30},
        save={"report": False},
        layout={"name": "data-parallel", "threads": 1},
    )
    run = kp.train(recipe, root=tmp_path / "runs", quiet=True)
    best = run.summary["best"]
    # Both follow from x and y; the noise on the price leaves r2 = 1 - (20 / 200)^2 at best.
    assert best["validation_accuracy_sold"] > 0.85 and best["validation_r2_price"] > 0.9
    parts = [best[f"validation_{key}"] for key in ("accuracy_sold", "r2_price", "accuracy_stars")]
    assert best["validation_score"] == pytest.approx(sum(parts) / 3)
    assert best["validation_mean_absolute_error_price"] < 60  # in the column's own unit
    predictions = kp.predict(run, part="validation")
    rows = list(csv.DictReader(predictions.to_csv().splitlines()))
    assert len(rows) == 60
    assert {"predicted_sold", "probability_sold_no", "probability_sold_yes", "value_price", "predicted_stars",
            "probability_stars_5"} <= set(rows[0])  # fmt: skip
    assert {row["predicted_sold"] for row in rows} == {"no", "yes"}
    assert all(400 < float(row["value_price"]) < 1600 for row in rows)
    probabilities = [float(rows[0][f"probability_stars_{n}"]) for n in range(1, 6)]
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)  # six digits are written of each


def facts(*heads: Head) -> DataFacts:
    return DataFacts(task="multi-task", inputs=(((4,), torch.float32),), target_shape=(len(heads),), heads=heads)


def test_each_head_reads_the_shared_features_and_has_weights_of_its_own() -> None:
    net = MultiTaskTrunk(trunk={"name": "mlp", "widths": [5]}, width=6, hidden=(3,)).make(
        facts(Head(name="a", classes=("x", "y", "z")), Head(name="b")), 4
    )
    assert isinstance(net, MultiTaskNet)
    x = torch.randn(7, 4)
    shared = net.trunk(x).relu()
    torch.testing.assert_close(net(x), torch.cat([net.heads[0](shared), net.heads[1](shared)], 1))
    net(x)[:, 3].sum().backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(name.startswith(("trunk", "heads.1")) for name in reached) and "trunk.layers.0.weight" in reached
    assert sum(p.numel() for p in net.heads[0].parameters()) == (6 * 3 + 3) + (3 * 3 + 3)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RecipeError, match=r"this data does not say what its heads are; data\.task=multi-task"):
        MultiTaskTrunk().make(facts(), 3)
    with pytest.raises(RecipeError, match="the heads of the data have 1 outputs, but the task wants 3"):
        MultiTaskTrunk().make(facts(Head(name="b")), 3)
    with pytest.raises(RecipeError, match=r"trunk: .* is no net of kingpost's"):
        MultiTaskTrunk(trunk=nn.Linear(4, 64)).make(facts(Head(name="b")), 1)


def test_arrays_and_bundled_tables_tell_their_scales() -> None:
    x = np.random.default_rng(0).normal(50, 7, size=(60, 3))
    for opened in (Arrays(inputs=x, targets=np.arange(60) % 2, standardise=True).open(), Bundled(which="wine").open()):
        scale = opened.fitted["inputs"][0]
        assert opened.facts.scales == tuple(zip(scale["mean"], scale["std"], strict=True))
        assert len(opened.facts.scales) == opened.facts.inputs[0][0][0]
