import csv
import io

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

import kingpost as kp
from kingpost.errors import RecipeError
from kingpost.source import DataFacts, Order, original_units
from kingpost.train.evaluate import evaluate
from kingpost.train.forecasting import Forecasting, naive_errors

ROWS = 150


@pytest.fixture(autouse=True)
def in_32_bits(in_64_bits):
    """Series are read in 32 bits."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def data(tmp_path):
    draw, hours = np.random.default_rng(0), np.arange(ROWS)
    waves = {"a": np.sin(hours / 3) * 5 + 20, "b": np.cos(hours / 5) * 300, "c": draw.normal(size=ROWS)}
    pd.DataFrame(waves).to_csv(tmp_path / "rows.csv", index=False)
    return {"name": "series", "path": str(tmp_path / "rows.csv"), "target": ["b", "a"], "context": 8, "horizon": 5}


def made(data, **fields):
    return kp.Recipe.from_value(
        {
            "name": "waves",
            "data": data,
            "model": {"name": "mlp", "widths": [16]},
            "budget": {"steps": 5},
            "batch_size": 16,
            "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
            **fields,
        }
    )


class Recorded(torch.nn.Module):
    """Some fixed function of the window, ``(B, H * C)``."""

    def forward(self, x):
        return x[:, -5:, :2].flatten(1) * 0.5 + 0.1


@pytest.mark.parametrize("target", [["a"], ["b", "a"]])
def test_metrics_are_those_of_scikit_learn(data, target):
    opened = made({**data, "target": target}).data.open()
    split, model = opened.splits["test"], Recorded()
    if len(target) == 1:
        model.forward = lambda x: x[:, -5:, 0] * 0.5 + 0.1
    got = evaluate(model, split, Forecasting(), opened.facts, opened.fitted, 7, torch.device("cpu"))
    (whole,) = split.batches(Order(batch_size=10**6))
    given = model(whole.inputs[0]).reshape(whole.targets.shape)
    mse = metrics.mean_squared_error(whole.targets.flatten(), given.flatten())
    assert got["mse"] == pytest.approx(mse, rel=1e-5) and got["loss"] == pytest.approx(mse, rel=1e-5)  # float32
    assert got["mae"] == pytest.approx(metrics.mean_absolute_error(whole.targets.flatten(), given.flatten()), rel=1e-5)
    own = [original_units(x, opened.fitted).reshape(-1, len(target)) for x in (whole.targets, given)]
    errors = metrics.mean_absolute_error(*own, multioutput="raw_values")
    if len(target) == 1:
        assert got["mean_absolute_error"] == pytest.approx(errors[0], rel=1e-5)
        assert got["root_mean_squared_error"] == pytest.approx(metrics.root_mean_squared_error(*own), rel=1e-5)
    else:
        assert [got[f"mean_absolute_error_{name}"] for name in target] == pytest.approx(list(errors), rel=1e-5)


@pytest.mark.parametrize("season", [1, 3, 8])
def test_naive_forecasts_are_as_a_slow_loop_makes_them(data, season):
    opened = made(data).data.open()
    columns = [opened.facts.features.index(name) for name in ("b", "a")]
    wrong = {"last": [], "season": []}
    for batch in opened.splits["test"].batches(Order(batch_size=1)):
        for c, column in enumerate(columns):
            past = batch.inputs[0][0, :, column].tolist()
            for h in range(5):
                wrong["last"].append(past[-1] - batch.targets[0, h, c].item())
                repeated = [*past, *(past[-season:] * 5)]  # the season goes on and on
                wrong["season"].append(repeated[8 + h] - batch.targets[0, h, c].item())
    got = naive_errors(opened, "test", season)
    for name, key in {"the last value again": "last", f"the last {season} steps again": "season"}.items():
        errors = np.array(wrong[key])
        assert got[name] == pytest.approx({"mse": np.mean(errors**2), "mae": np.mean(np.abs(errors))}, rel=1e-6)
    assert [*naive_errors(opened, "test", 9)] == ["the last value again"]  # the context is shorter than the season


def test_the_plan_shows_the_naive_forecasts(data):
    recipe = made(data, task={"name": "forecasting", "season": 6})
    errors = naive_errors(recipe.data.open(), "test", 6)
    shown = [figure for figure in kp.plan(recipe).figures if figure.name == "naive forecast mse"]
    assert [figure.value for figure in shown] == [error["mse"] for error in errors.values()]
    assert "the last 6 steps again, on the test part" in shown[1].reason


def test_a_run_its_report_and_its_predictions(data, tmp_path):
    run = kp.train(made(data), root=tmp_path, quiet=True)
    made_of_run = kp.predict(run)
    assert made_of_run.metrics == pytest.approx(run.summary["test"], rel=1e-6)
    rows = list(csv.DictReader(io.StringIO(made_of_run.to_csv())))
    assert [*rows[0]][1:4] == ["value_b_1", "value_a_1", "value_b_2"] and [*rows[0]][-1] == "target_a_5"
    frame = pd.read_csv(tmp_path / "rows.csv")
    first = 120  # of the test part
    for row, values in enumerate(rows):
        wanted = frame["a"][first + row + 2]
        assert float(values["target_a_3"]) == pytest.approx(wanted, abs=1e-3)  # float32, and six digits in the file
    assert "True and predicted values" in (run.folder / "report.html").read_text()
    new = kp.predict(run, inputs=tmp_path / "rows.csv")
    assert len(new.values) == 1 and new.metrics == {} and "target" not in new.to_csv()


def test_outputs_of_another_size_are_refused():
    task, targets = Forecasting(), torch.zeros(4, 5, 2)
    assert (
        float(task.criterion(torch.ones(4, 10), targets)) == 40 == float(task.criterion(torch.ones(4, 5, 2), targets))
    )
    assert task.items(targets) == 40 == 4 * task.outputs_per_sample(DataFacts(task="", inputs=(), target_shape=(5, 2)))
    with pytest.raises(RecipeError, match=r"the model gives \(4, 9\)"):
        task.criterion(torch.ones(4, 9), targets)
