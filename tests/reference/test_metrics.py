"""results.csv against scikit-learn, on outputs that are computed here from the weights that were kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn import metrics
from torch import Tensor, nn

from contract.toys import VOCABULARY, Toy
from kingpost.build.nets.gpt import GPTNet
from kingpost.data.bundled import Bundled
from kingpost.run import Run
from kingpost.train.predict import predict
from kingpost.train.train import train
from reference.plain import net, recipe

# The metrics add up in 64 bits here, a few hundred terms at most.
CLOSE: dict[str, Any] = {"rel": 1e-12, "abs": 1e-13}
COUNTED: dict[str, Any] = {"rel": 1e-6}  # torchmetrics divides counts (right, wrong) in 32 bits, whatever the model's


def trained(folder: Path, model: nn.Module, data: Any, **fields: Any) -> tuple[Run, nn.Module]:
    """A run of two epochs, and the model with its last weights, read from the file by plain safetensors."""
    fields = {"budget": {"epochs": 2}, "batch_size": 5, **fields}
    run = train(recipe(copy.deepcopy(model), data=data, **fields), root=folder, quiet=True)
    model.load_state_dict(load_file(run.weights("last")), strict=False)  # tied weights are written once
    return run, model.eval()


def part(data: Any, name: str) -> tuple[Tensor, Tensor]:
    split = data.open().splits[name]
    return split.inputs[0], split.targets


def test_classification(tmp_path: Path) -> None:
    run, model = trained(tmp_path, net(), Toy())
    x, y = part(Toy(), "validation")
    with torch.no_grad():
        scores = model(x)
    row = run.results[-1]
    assert row["validation_accuracy"] == pytest.approx(metrics.accuracy_score(y, scores.argmax(1)), **COUNTED)
    macro = metrics.f1_score(y, scores.argmax(1), average="macro", labels=[0, 1, 2], zero_division=0)
    assert row["validation_f1_macro"] == pytest.approx(macro, **COUNTED)
    by_hand = sum(-float(F.log_softmax(s, 0)[t]) for s, t in zip(scores, y, strict=True)) / len(y)
    assert row["validation_loss_nats"] == pytest.approx(by_hand, **CLOSE)
    assert row["validation_loss_nats"] == pytest.approx(metrics.log_loss(y, scores.softmax(1)), **CLOSE)


def test_multi_label(tmp_path: Path) -> None:
    data = Toy(task="multi-label")
    run, model = trained(tmp_path, net(), data)
    x, y = part(data, "validation")
    with torch.no_grad():
        p = model(x).sigmoid()
    row = run.results[-1]
    precision = metrics.average_precision_score(y, p, average="macro")
    assert row["validation_average_precision"] == pytest.approx(precision, **CLOSE)
    macro = metrics.f1_score(y, p > 0.5, average="macro", zero_division=0)
    assert row["validation_f1_macro"] == pytest.approx(macro, **COUNTED)
    by_hand = -float((y * p.log() + (1 - y) * (1 - p).log()).sum()) / y.numel()  # per sample and label
    assert row["validation_loss_nats"] == pytest.approx(by_hand, **CLOSE)


def test_language_modelling(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Toy(task="language-modelling")
    run, model = trained(tmp_path, GPTNet(VOCABULARY, context=6, depth=1, width=8, heads=2), data)
    x, y = part(data, "validation")
    with torch.no_grad():
        scores = model(x)
    row = run.results[-1]
    accuracy = metrics.accuracy_score(y.flatten(), scores.argmax(-1).flatten())
    assert row["validation_token_accuracy"] == pytest.approx(accuracy, **COUNTED)
    loss = metrics.log_loss(y.flatten(), scores.flatten(0, 1).softmax(1), labels=range(VOCABULARY))
    assert row["validation_loss_nats"] == pytest.approx(loss, **CLOSE)


def test_regression_of_several_values(tmp_path: Path) -> None:
    data = Toy(task="regression")
    run, model = trained(tmp_path, net(), data)
    x, y = part(data, "validation")
    with torch.no_grad():
        values = model(x)
    row = run.results[-1]
    assert row["validation_r2"] == pytest.approx(metrics.r2_score(y, values), **CLOSE)
    assert row["validation_mean_absolute_error"] == pytest.approx(metrics.mean_absolute_error(y, values), **CLOSE)
    rmse = metrics.mean_squared_error(y, values) ** 0.5
    assert row["validation_root_mean_squared_error"] == pytest.approx(rmse, **CLOSE)
    assert row["validation_loss_squared_error"] == pytest.approx(metrics.mean_squared_error(y, values), **CLOSE)


def test_regression_errors_are_in_the_targets_own_unit(tmp_path: Path) -> None:
    """Diabetes progression is 25 to 346, standardised in training; the raw numbers are read from scikit-learn."""
    from sklearn.datasets import load_diabetes

    torch.set_default_dtype(torch.float32)  # the data is
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
    data = Bundled(which="diabetes")
    run, model = trained(tmp_path, model, data, batch_size=64)
    dataset = data.open()
    raw = load_diabetes()
    train_rows, rows = dataset.indices["train"].numpy(), dataset.indices["validation"].numpy()
    mean, std = raw.data[train_rows].mean(0), raw.data[train_rows].std(0)
    x = torch.tensor((raw.data[rows] - mean) / std, dtype=torch.float32)
    y_mean, y_std = raw.target[train_rows].mean(), raw.target[train_rows].std()
    with torch.no_grad():
        values = model(x).squeeze(1).double().numpy() * y_std + y_mean
    row, y = run.results[-1], raw.target[rows]
    # 32 bits: each of 44 predictions around 150 is rounded at 1e-5.
    close: dict[str, Any] = {"rel": 1e-5}
    assert row["validation_mean_absolute_error"] == pytest.approx(metrics.mean_absolute_error(y, values), **close)
    rmse = metrics.mean_squared_error(y, values) ** 0.5
    assert row["validation_root_mean_squared_error"] == pytest.approx(rmse, **close)
    assert row["validation_mean_absolute_error"] > 20, "that would be a standardised error"
    assert row["validation_r2"] == pytest.approx(metrics.r2_score(y, values), rel=1e-4)  # 1 - ratio cancels a digit
    # The loss is what was minimised, so it is of standardised values.
    assert row["validation_loss_squared_error"] == pytest.approx(rmse**2 / y_std**2, **close)
    test = run.summary["test"]
    assert test["root_mean_squared_error"] > 20


def test_train_loss_of_an_epoch_is_the_mean_over_its_samples(tmp_path: Path) -> None:
    """24 samples in batches of 5 end with one of 4; the last counts as four samples, not as a fifth of the epoch."""
    run, _ = trained(tmp_path, net(), Toy())
    losses = [row["loss"] for row in run.steps]
    assert len(losses) == 10
    for epoch, row in enumerate(run.results):
        expected = sum(loss * size for loss, size in zip(losses[5 * epoch : 5 * epoch + 5], [5] * 4 + [4], strict=True))
        assert row["train_loss_nats"] == pytest.approx(expected / 24, **CLOSE)


def test_predict_equals_the_model_by_hand(tmp_path: Path) -> None:
    """From a recipe that can be made again; values are probabilities, in the order of the data."""
    model: Any = {"name": "mlp", "widths": [6]}
    run = train(recipe(model, budget={"epochs": 2}), root=tmp_path, quiet=True)
    w = load_file(run.weights("best"))
    x, y = part(Toy(), "validation")
    hidden = (x.flatten(1) @ w["layers.0.weight"].T + w["layers.0.bias"]).clamp(min=0)
    expected = (hidden @ w["layers.2.weight"].T + w["layers.2.bias"]).softmax(1)
    got = predict(run, part="validation")
    torch.testing.assert_close(got.values, expected, rtol=0, atol=1e-13)  # sums of 64 numbers in 64 bits
    assert got.metrics["accuracy"] == pytest.approx(metrics.accuracy_score(y, expected.argmax(1)), **COUNTED)
    assert got.to_csv().splitlines()[1].split(",")[1] == "abc"[int(expected[0].argmax())]
