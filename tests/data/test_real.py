"""The real data sets, where there are any: rows and columns as their README says."""

import os

import pytest
import torch

from kingpost.option import choose
from kingpost.source import Order
from kingpost.train.forecasting import naive_errors

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


def test_tweets():
    files = {
        part: [f"tweet_emotion/{name}_{kind}.txt.gz" for kind in ("text", "labels")]
        for part, name in {"train": "train", "validation": "val", "test": "test"}.items()
    }
    dataset, rows = opened({"name": "text-lines", "mapping": "tweet_emotion/mapping.txt", **files})
    assert rows == {"train": 3257, "validation": 374, "test": 1421}
    assert dataset.facts.classes == ("anger", "joy", "optimism", "sadness")
    assert sum(dataset.fitted["cut"].values()) == 0  # no tweet is longer than the longest of the training part


def test_ag_news():
    dataset, rows = opened(
        {"name": "text-lines", "train": "ag_news_7600/train.csv.gz", "test": "ag_news_7600/test.csv.gz",
         "columns": ["label", "text", "text"], "mapping": "ag_news_7600/classes.txt"}
    )  # fmt: skip
    assert rows == {"train": 5400, "validation": 600, "test": 1600}
    assert dataset.facts.classes == ("World", "Sports", "Business", "Sci/Tech")
    assert torch.bincount(dataset.splits["test"].targets).tolist() == [400] * 4


# Mean squared and mean absolute error of repeating the last value on ETTh1, all seven columns, as printed in
# Zeng et al., "Are Transformers Effective for Time Series Forecasting?", arXiv 2205.13504 (column "Repeat"). Their
# loader gives batches of 32 and drops the last, incomplete one.
REPEATED = {96: (1.295, 0.713), 192: (1.325, 0.733), 336: (1.323, 0.744), 720: (1.339, 0.756)}


@pytest.mark.parametrize("horizon", REPEATED)
def test_etth1_is_divided_and_scaled_as_in_the_literature(horizon):
    value = {"name": "series", "path": "etth1/ETTh1.csv.gz", "time": "date", "rows": [8640, 2880, 2880],
             "target": ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"], "horizon": horizon}  # fmt: skip
    dataset, rows = opened(value)
    assert rows == {"train": 8640 - 96 - horizon + 1, "validation": 2881 - horizon, "test": 2881 - horizon}
    split = dataset.splits["test"]
    split.starts = split.starts[: len(split) // 32 * 32]
    errors = naive_errors(dataset, "test")["the last value again"]
    assert (round(errors["mse"], 3), round(errors["mae"], 3)) == REPEATED[horizon]


def test_spoken_digits():
    dataset, rows = opened({"name": "audio-npz", "train": "fsdd/train.npz", "test": "fsdd/test.npz"})
    assert rows == {"train": 540, "validation": 60, "test": 200} and dataset.facts.inputs[0][0][1] == 40
    assert torch.bincount(dataset.splits["test"].targets).tolist() == [20] * 10


def test_moving_images():
    dataset, rows = opened({"name": "moving-images", "folder": "fashion_mnist", "limit": 1200})
    assert rows == {"train": 1100, "validation": 100, "test": 1200}
    batch = next(dataset.splits["train"].batches(Order(batch_size=8, shuffle=True)))
    assert batch.inputs[0].shape == (8, 8, 1, 32, 32)
