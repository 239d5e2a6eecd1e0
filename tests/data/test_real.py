"""The real data sets, where there are any: rows and columns as their README says."""

import os

import pytest
import torch

from kingpost.option import choose
from kingpost.source import Order

pytestmark = pytest.mark.skipif(
    "KINGPOST_DATA" not in os.environ, reason="KINGPOST_DATA does not name the folder of the data sets"
)

ADULT = {
    "name": "table", "train": "adult/train.csv.gz", "test": "adult/test.csv.gz", "target": "income",
    "na_values": ["?"], "strip_target": ".", "skipinitialspace": True,
}  # fmt: skip
KDD = {
    "name": "table", "train": "nsl_kdd/train_20percent.csv.gz", "test": "nsl_kdd/test.csv.gz",
    "target": "label", "drop": ["difficulty"], "label_map": {"normal": "normal", "*": "attack"},
}  # fmt: skip


def opened(value):
    dataset = choose("data", value).open()
    return dataset, {part: len(split) for part, split in dataset.splits.items()}


def test_adult():
    dataset, rows = opened(ADULT)
    assert rows["train"] + rows["validation"] == 32561 and rows["test"] == 16281
    assert dataset.facts.classes == ("<=50K", ">50K")
    kinds = [column["kind"] for column in dataset.fitted["columns"]]
    assert kinds.count("number") == 6 and kinds.count("category") == 8
    assert abs(float(dataset.splits["test"].targets.float().mean()) - 0.236) < 1e-3


def test_nsl_kdd():
    dataset, rows = opened(KDD)
    assert rows["train"] + rows["validation"] == 25192 and rows["test"] == 22544
    normal = [int(dataset.splits[part].targets.sum()) for part in ("train", "validation", "test")]
    assert normal[0] + normal[1] == 13449 and normal[2] == 9711 and dataset.facts.classes == ("attack", "normal")


def test_california_housing():
    dataset, rows = opened(
        {"name": "table", "train": "california_housing/housing.csv.gz", "target": "median_house_value",
         "task": "regression", "test": 0.2}
    )  # fmt: skip
    assert sum(rows.values()) == 20640
    gaps = dataset.facts.features.index("total_bedrooms is missing")
    assert sum(int(split.inputs[0][:, gaps].sum()) for split in dataset.splits.values()) == 207


def test_fashion_mnist():
    digest = "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    sums = {"train-labels-idx1-ubyte.gz": f"sha256:{digest}"}
    dataset, rows = opened({"name": "idx", "folder": "fashion_mnist", "checksums": sums})
    assert rows == {"train": 55000, "validation": 5000, "test": 10000}
    assert torch.bincount(dataset.splits["test"].targets).tolist() == [1000] * 10
    batch = next(dataset.splits["train"].batches(Order(batch_size=8, shuffle=True)))
    assert batch.inputs[0].shape == (8, 1, 28, 28)


def test_cifar():
    value = {"name": "npz", "path": "cifar10_jpeg/cifar10_3k1k.npz", "channels": "last", "classes": "classes",
             "test_inputs": "x_test", "test_targets": "y_test"}  # fmt: skip
    dataset, rows = opened(value)
    assert rows == {"train": 2700, "validation": 300, "test": 1000}
    assert dataset.facts.inputs == (((3, 32, 32), torch.float32),) and len(dataset.fitted["inputs"][0]["mean"]) == 3


def test_tiny_shakespeare():
    dataset, _ = opened({"name": "text", "path": "tiny_shakespeare/input.txt", "context": 128})
    assert dataset.facts.vocabulary == 65
    assert [len(dataset.splits[part].text) for part in ("train", "validation")] == [1003854, 111540]


def test_multi30k():
    parts = {
        "train": "val",
        "validation": "test_2016_flickr",
        "test": "test_2017_flickr",
    }  # small ones, to be quick
    files = {part: [f"multi30k/{name}.{language}.gz" for language in ("en", "de")] for part, name in parts.items()}
    _, rows = opened({"name": "sentence-pairs", "vocabulary": 1000, **files})
    assert rows == {"train": 1014, "validation": 1000, "test": 1000}
