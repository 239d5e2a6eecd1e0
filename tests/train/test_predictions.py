"""What ``predict`` writes: names of columns, the truth beside the prediction, and where the file goes."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
import torch

import kingpost as kp
from kingpost.cli import main


@pytest.fixture(autouse=True)
def in_32_bits(in_64_bits):
    """Tables are read in 32 bits."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def frame(tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(80, 2)), columns=["p", "q"])
    frame["kind"] = np.where(frame.p > 0, "tall", "small")
    frame["price"], frame["age"] = 100 * frame.q + 7, frame.p - frame.q
    frame["big"], frame["old"] = (frame.price > 7).astype(int), (frame.age > 0).astype(int)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return frame


def trained(tmp_path, task, target):
    others = [name for name in ("kind", "price", "age", "big", "old") if name not in target]
    data = {
        "name": "table",
        "train": str(tmp_path / "rows.csv"),
        "target": target,
        "task": task,
        "drop": others,
        "test": 0.25,
    }
    recipe = kp.Recipe.from_value(
        {
            "name": task,
            "data": data,
            "model": {"name": "mlp", "widths": [8]},
            "budget": {"steps": 4},
            "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
            "save": {"report": False},
        }
    )
    run = kp.train(recipe, root=tmp_path, quiet=True)
    return run, recipe.data.open().indices["test"].tolist()


def rows_of(made):
    return list(csv.DictReader(io.StringIO(made.to_csv())))


def test_classes_stand_beside_the_true_ones(frame, tmp_path):
    run, where = trained(tmp_path, "classification", ["kind"])
    rows = rows_of(kp.predict(run))
    assert [*rows[0]] == ["index", "predicted", "target", "probability_small", "probability_tall"]
    assert [row["target"] for row in rows] == frame.kind.iloc[where].tolist()
    right = np.mean([row["target"] == row["predicted"] for row in rows])
    assert right == pytest.approx(run.summary["test"]["accuracy"])


def test_values_have_the_names_of_their_columns(frame, tmp_path):
    run, where = trained(tmp_path, "regression", ["price", "age"])
    rows = rows_of(kp.predict(run))
    assert [*rows[0]] == ["index", "value_price", "value_age", "target_price", "target_age"]
    for name in ("price", "age"):
        truth = [float(row[f"target_{name}"]) for row in rows]
        np.testing.assert_allclose(truth, frame[name].iloc[where], rtol=1e-4, atol=1e-4)  # float32 and six digits


def test_labels_stand_beside_the_true_ones(frame, tmp_path):
    run, where = trained(tmp_path, "multi-label", ["big", "old"])
    rows = rows_of(kp.predict(run))
    assert [*rows[0]] == ["index", "probability_big", "probability_old", "target_big", "target_old"]
    assert [int(row["target_old"]) for row in rows] == frame.old.iloc[where].tolist()


def test_several_heads_stand_beside_the_truth(frame, tmp_path):
    run, where = trained(tmp_path, "multi-task", ["kind", "price"])
    rows = rows_of(kp.predict(run))
    assert [*rows[0]][1:] == [
        "predicted_kind", "probability_kind_small", "probability_kind_tall", "value_price",
        "target_kind", "target_price",
    ]  # fmt: skip
    assert [row["target_kind"] for row in rows] == frame.kind.iloc[where].tolist()
    truth = [float(row["target_price"]) for row in rows]
    np.testing.assert_allclose(truth, frame.price.iloc[where], rtol=1e-4, atol=1e-3)  # float32 and six digits


def test_a_new_file_has_scores_only_if_it_has_targets(frame, tmp_path):
    run, _ = trained(tmp_path, "classification", ["kind"])
    frame[:20].to_csv(tmp_path / "labelled.csv", index=False)
    frame[:20].drop(columns="kind").to_csv(tmp_path / "unlabelled.csv", index=False)
    known, unknown = (kp.predict(run, inputs=tmp_path / f"{name}labelled.csv") for name in ("", "un"))
    assert known.values.equal(unknown.values) and unknown.metrics == {}
    truth = [row["target"] == row["predicted"] for row in rows_of(known)]
    assert known.metrics["accuracy"] == pytest.approx(np.mean(truth))
    assert "target" not in unknown.to_csv().splitlines()[0]


def test_predictions_on_a_file_have_a_file_of_their_own(frame, tmp_path, capsys):
    run, _ = trained(tmp_path, "classification", ["kind"])
    frame[:5].to_csv(tmp_path / "new.rows.csv.gz", index=False)
    assert main(["predict", str(run.folder)]) == 0
    before = (run.folder / "predictions.csv").read_bytes()
    assert main(["predict", str(run.folder), "--input", str(tmp_path / "new.rows.csv.gz")]) == 0
    assert (run.folder / "predictions.csv").read_bytes() == before
    assert len((run.folder / "predictions-new.csv").read_text().splitlines()) == 6
    assert f"5 predictions in {run.folder}/predictions-new.csv" in capsys.readouterr().out
