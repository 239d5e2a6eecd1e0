import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from kingpost.data.tables import Table
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose
from kingpost.source import original_units

ROWS = 200


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, ROWS),
            "income": np.where(rng.random(ROWS) < 0.2, np.nan, rng.lognormal(10, 1, ROWS)),
            "city": rng.choice(["Bonn", "Köln", "Trier"], ROWS),
            "job": rng.choice(["cook", "smith", None], ROWS),
            "one": 7,
            "nothing": np.nan,
            "price": rng.normal(3e5, 1e5, ROWS),
            "bought": rng.choice(["no", "yes"], ROWS, p=[0.7, 0.3]),
        }
    )


@pytest.fixture
def path(frame, tmp_path):
    frame.to_csv(tmp_path / "rows.csv.gz", index=False)
    return tmp_path / "rows.csv.gz"


def test_columns_equal_those_of_scikit_learn(frame, path):
    opened = Table(train=path, target="bought", drop="price", test=0.2).open()
    train = frame.iloc[opened.indices["train"].numpy()]
    median = train["income"].median()
    numbers = frame[["age", "income"]].fillna({"income": median})
    scaler = StandardScaler().fit(numbers.iloc[train.index])
    encoder = OneHotEncoder(sparse_output=False).fit(frame[["city"]])
    for part, index in opened.indices.items():
        x, rows = opened.splits[part].inputs[0].numpy(), index.numpy()
        np.testing.assert_allclose(x[:, :2], scaler.transform(numbers.iloc[rows]), atol=1e-5)
        np.testing.assert_array_equal(x[:, 2], frame["income"].isna().iloc[rows])
        np.testing.assert_array_equal(x[:, 3:6], encoder.transform(frame[["city"]].iloc[rows]))
        assert opened.splits[part].targets.tolist() == [int(v == "yes") for v in frame["bought"].iloc[rows]]
    assert opened.facts.features == (
        "age", "income", "income is missing", "city=Bonn", "city=Köln", "city=Trier", "city=<other>",
        "job=cook", "job=smith", "job=<missing>", "job=<other>",
    )  # fmt: skip
    assert [c["why"] for c in opened.fitted["columns"] if c["kind"] == "left-out"] == [
        "constant in the training part",
        "empty in the training part",
    ]
    assert json.loads(json.dumps(opened.fitted)) == opened.fitted


def test_nothing_is_learned_from_rows_that_are_held_out(frame, tmp_path):
    frame.to_csv(tmp_path / "a.csv", index=False)
    source = Table(train=tmp_path / "a.csv", target="price", task="regression", test=0.3)
    opened = source.open()
    changed = frame.copy()
    out = torch.cat([opened.indices["validation"], opened.indices["test"]]).numpy()
    changed.loc[out, ["age", "income", "price"]] *= 1000
    changed.loc[out, "city"] = "Atlantis"
    changed.to_csv(tmp_path / "a.csv", index=False)
    other = source.open()
    assert other.fitted == opened.fitted and other.facts == opened.facts and other.fingerprint != opened.fingerprint
    assert other.splits["train"].inputs[0].equal(opened.splits["train"].inputs[0])
    column = opened.facts.features.index("city=<other>")
    assert other.splits["test"].inputs[0][:, column].eq(1).all()


def test_regression_targets_come_back_in_their_own_unit(frame, path):
    opened = Table(train=path, target="price", task="regression", validation=0.25).open()
    back = original_units(opened.splits["validation"].targets, opened.fitted)
    np.testing.assert_allclose(back, frame["price"].iloc[opened.indices["validation"].numpy()], rtol=1e-5)
    assert opened.facts.target_shape == () and opened.facts.classes == ()
    two = Table(train=path, target=["price", "age"], task="regression").open()
    assert two.facts.target_shape == (2,) and len(two.fitted["target"]["mean"]) == 2


def test_codes_for_embeddings(frame, path):
    opened = Table(train=path, target="bought", encode="codes").open()
    assert opened.facts.inputs == (((4,), torch.float32), ((2,), torch.int64))
    assert opened.facts.features == ("age", "income", "income is missing", "price", "city", "job")
    names = ["other", "Bonn", "Köln", "Trier"]
    assert opened.facts.form == "table" and opened.facts.cardinalities[0] == len(names)
    codes = opened.splits["validation"].inputs[1][:, 0]
    assert [names[code] for code in codes] == frame["city"].iloc[opened.indices["validation"].numpy()].tolist()


def test_parquet_gives_the_same_as_csv(frame, path, tmp_path):
    frame.to_parquet(tmp_path / "rows.parquet")
    first, second = (
        Table(train=p, target="bought", categories="age").open() for p in (path, tmp_path / "rows.parquet")
    )
    assert first.facts.features == second.facts.features and "age=18" in first.facts.features
    torch.testing.assert_close(first.splits["train"].inputs, second.splits["train"].inputs)


def test_new_rows_are_prepared_like_the_training_rows(frame, path, tmp_path):
    source = Table(train=path, target="bought", test=0.2)
    opened = source.open()
    index = opened.indices["test"].numpy()
    rows = frame.iloc[index].assign(extra=1)
    rows.to_csv(tmp_path / "new.csv", index=False)
    new = source.read(tmp_path / "new.csv", json.loads(json.dumps(opened.fitted)), opened.facts)
    assert new.inputs[0].equal(opened.splits["test"].inputs[0]) and new.targets.equal(opened.splits["test"].targets)
    rows.drop(columns="bought").to_csv(tmp_path / "blind.csv", index=False)
    blind = source.read(tmp_path / "blind.csv", opened.fitted, opened.facts)
    assert blind.inputs[0].equal(new.inputs[0]) and blind.targets.dtype == torch.int64 and not blind.targets.any()


def test_labels_of_another_spelling(tmp_path):
    (tmp_path / "train.csv").write_text("x, y\n" + "".join(f"{n}, {'a' if n % 2 else 'b'}\n" for n in range(40)))
    (tmp_path / "test.csv").write_text("x, y\n1, a.\n2, b.\n?, c.\n")
    values = {
        "train": tmp_path / "train.csv",
        "test": str(tmp_path / "test.csv"),
        "target": "y",
        "skipinitialspace": True,
    }
    source = Table(**values, strip_target=".", label_map={"a": "good", "*": "bad"}, na_values=["?"])
    opened = source.open()
    assert opened.facts.classes == ("bad", "good") and opened.splits["test"].targets.tolist() == [1, 0, 0]
    assert choose("data", {"name": "table", **source.to_value()}) == source
    with pytest.raises(DataError, match=r"test: 1 classes are not in the training part, first 'c' \(it has: a, b\)"):
        Table(**values, strip_target=".", na_values=["?"]).open()


def test_several_labels(tmp_path):
    text = "x,red,round\n" + "".join(f"{n},{n % 2},{n % 3 == 0:d}\n" for n in range(40))
    (tmp_path / "a.csv").write_text(text)
    opened = Table(train=tmp_path / "a.csv", target=["red", "round"], task="multi-label").open()
    assert opened.facts.classes == ("red", "round") and opened.splits["train"].targets.shape == (36, 2)
    (tmp_path / "a.csv").write_text(text + "1,2,0\n")
    with pytest.raises(DataError, match=r"column 'red' holds '2' in row \d+, expected 0 or 1"):
        Table(train=tmp_path / "a.csv", target=["red", "round"], task="multi-label").open()


def test_numbered_classes_and_files_without_header(tmp_path):
    (tmp_path / "a.csv").write_text("".join(f"{n % 12};{n}\n" for n in range(240)))
    opened = Table(train=tmp_path / "a.csv", target="y", header=["y", "x"], separator=";").open()
    assert opened.facts.classes == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"target": "bougth"}, r"no column 'bougth' \(data.target\); did you mean 'bought'"),
        ({"drop": ["aeg"]}, r"no column 'aeg' \(data.drop\); did you mean 'age'"),
        ({"target": "income", "task": "regression"}, r"the target 'income' is missing in \d+ rows"),
        ({"target": "city", "task": "regression"}, r"column 'city' holds '.*' in row \d+, expected a number"),
        ({"target": "one"}, r"column 'one' holds one class, '7'"),
        ({"target": "price"}, r"holds 200 classes; for values, data.task=regression"),
        ({"max_categories": 2}, r"column 'city' holds 3 different texts, more than 2; data.drop\+=city"),
        ({"na_values": ["", "Bonn"], "categories": ["price"]}, r"column 'price' holds 1\d\d different texts"),
    ],
)
def test_tables_that_do_not_fit_are_refused(path, values, text):
    with pytest.raises(DataError, match=text):
        Table(**{"train": path, "target": "bought"} | values).open()


def test_a_forgotten_marker_is_pointed_out(tmp_path):
    rows = [f"{n / 7},{n % 2}" for n in range(300)] + ["unknown,1"] * 3
    (tmp_path / "a.csv").write_text("x,y\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"if 'unknown' marks a missing value, data.na_values\+='unknown'"):
        Table(train=tmp_path / "a.csv", target="y").open()


def test_later_files_that_do_not_fit_are_refused(path, tmp_path):
    source = Table(train=path, target="bought")
    opened = source.open()
    (tmp_path / "lacks.csv").write_text("age\n1\n")
    (tmp_path / "text.csv").write_text("age,income,city,job,price\n1,2,Bonn,cook,cheap\n")
    (tmp_path / "empty.csv").write_text("")
    for name, text in {
        "lacks": r"no column 'income'; it has: age",
        "text": r"column 'price' holds 'cheap' in row 0, but numbers in the training part",
        "empty": r"not a readable table \(No columns",
    }.items():
        with pytest.raises(DataError, match=text):
            source.read(tmp_path / f"{name}.csv", opened.fitted, opened.facts)


def test_options_without_effect_are_refused():
    with pytest.raises(RecipeError, match="task: strip_target has no effect with task=regression"):
        Table(train="a", target="y", task="regression", strip_target=".")
    with pytest.raises(RecipeError, match=r"target: got \['a', 'b'\]; one column, or task=multi-label"):
        Table(train="a", target=["a", "b"])


@pytest.mark.parametrize("seed", [0, 1])
def test_classes_are_held_out_evenly(path, frame, seed):
    opened = Table(train=path, target="bought", validation=0.1, test=0.2, split_seed=seed).open()
    share = (frame["bought"] == "yes").mean()
    for split in opened.splits.values():
        assert abs(float(split.targets.float().mean()) - share) < 0.03
    assert sorted(torch.cat(list(opened.indices.values())).tolist()) == list(range(ROWS))
