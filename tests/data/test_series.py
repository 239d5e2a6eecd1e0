import numpy as np
import pandas as pd
import pytest
import torch

from kingpost.data.series import Series, WindowSplit
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose
from kingpost.source import Order, original_units

ROWS = 120


@pytest.fixture
def frame():
    draw = np.random.default_rng(0)
    hours = pd.date_range("2020-02-27 20:00", periods=ROWS, freq="h")
    values = draw.normal(size=(ROWS, 3)) * [1, 100, 0.01] + [0, 1000, 5]
    return pd.DataFrame({"date": hours, **dict(zip("abc", values.T, strict=True))})


@pytest.fixture
def path(frame, tmp_path):
    frame.to_csv(tmp_path / "rows.csv.gz", index=False)
    return tmp_path / "rows.csv.gz"


def gathered(split, **order):
    batches = list(split.batches(Order(batch_size=7, **order)))
    return torch.cat([b.inputs[0] for b in batches]), torch.cat([b.targets for b in batches])


@pytest.mark.parametrize("target", [["c"], ["c", "a"]])
def test_windows_are_as_a_slow_loop_cuts_them(frame, path, target):
    source = Series(path=path, target=target, context=6, horizon=3, time="date", rows=[80, 20, 15])
    opened = source.open()
    train = frame.iloc[:80]
    scaled = (frame[["a", "b", "c"]] - train[["a", "b", "c"]].mean()) / train[["a", "b", "c"]].std(ddof=0)
    edges = {"train": (0, 80), "validation": (80, 100), "test": (100, 115)}
    for part, (first, end) in edges.items():
        windows = []
        for start in range(ROWS):
            predicted = range(start + 6, start + 9)
            inside = predicted[0] >= first and predicted[-1] < end and (part != "train" or start >= first)
            if inside:
                windows.append((scaled.values[start : start + 6], scaled[target].values[start + 6 : start + 9]))
        read, wanted = gathered(opened.splits[part])
        assert len(opened.splits[part]) == len(windows) == {"train": 72, "validation": 18, "test": 13}[part]
        # float32 against float64
        np.testing.assert_allclose(read, np.stack([w for w, _ in windows]), atol=1e-5)
        np.testing.assert_allclose(wanted.reshape(len(windows), 3, -1), np.stack([w for _, w in windows]), atol=1e-5)
        assert wanted.shape[1:] == opened.facts.target_shape == ((3,) if len(target) == 1 else (3, 2))
    assert opened.facts.form == "series" and opened.facts.task == "forecasting"
    assert opened.facts.features == ("a", "b", "c") and opened.facts.targets == tuple(target)
    assert choose("data", {"name": "series", **source.to_value()}) == source


def test_targets_come_back_in_their_own_unit(frame, path):
    opened = Series(path=path, target=["b", "a"], context=6, horizon=3, time="date").open()
    _, wanted = gathered(opened.splits["train"])
    np.testing.assert_allclose(
        original_units(wanted, opened.fitted)[0], frame[["b", "a"]].values[6:9], rtol=1e-5, atol=1e-5
    )


def test_nothing_of_later_parts_is_learned_or_predicted_in_training(frame, path):
    values = {"path": path, "target": "a", "context": 6, "horizon": 3, "time": "date", "rows": [80, 20, 20]}
    before = Series(**values).open()
    read, wanted = gathered(before.splits["train"])
    frame.loc[80:, ["a", "b", "c"]] = 1e6
    frame.to_csv(path, index=False)
    after = Series(**values).open()
    assert after.fitted == before.fitted and after.fingerprint != before.fingerprint
    again = gathered(after.splits["train"])
    assert again[0].equal(read) and again[1].equal(wanted)
    for part in ("validation", "test"):  # each row predicted there is one of the changed ones
        assert (gathered(after.splits[part])[1] > 1e5).all()


def test_fractions_divide_in_order_of_time(path):
    opened = Series(path=path, target="a", context=6, horizon=3, time="date", validation=0.1, test=0.2).open()
    assert opened.fitted["rows"] == {"train": [0, 84], "validation": [84, 96], "test": [96, 120]}


def test_windows_share_the_memory_of_the_series():
    rows = torch.randn(1000, 4)
    split = WindowSplit(rows, rows[:, :1], torch.arange(900), context=64, horizon=24, flat=True)
    assert split.read.data_ptr() == rows.data_ptr() and split.starts.numel() == len(split) == 900


def test_orders_and_resuming():
    rows = torch.arange(50.0)[:, None]
    split = WindowSplit(rows, rows, torch.arange(40), context=3, horizon=2, flat=True)
    order = {"batch_size": 7, "shuffle": True, "seed": 3, "epoch": 1}
    whole, tail = list(split.batches(Order(**order))), list(split.batches(Order(**order, start=2)))
    assert sorted(int(x) for b in whole for x in b.inputs[0][:, 0, 0]) == list(range(40))
    assert len(whole) == split.steps(7) == 6 and len(tail) == 4
    assert all(
        a.inputs[0].equal(b.inputs[0]) and a.targets.equal(b.targets) for a, b in zip(whole[2:], tail, strict=True)
    )
    assert list(split.batches(Order(**order, start=6))) == []
    assert [b.inputs[0][0, 0, 0] for b in whole] != [0, 7, 14, 21, 28, 35]


def test_a_new_file_is_read_at_its_end(frame, path, tmp_path):
    source = Series(path=path, target="a", context=6, horizon=3, time="date", calendar=True)
    opened = source.open()
    frame.iloc[40:60].to_csv(tmp_path / "new.csv", index=False)
    new = source.read(tmp_path / "new.csv", opened.fitted, opened.facts)
    read, _ = gathered(opened.splits["train"])
    assert new.inputs[0].equal(read[54:55]) and not new.labelled and new.targets.shape == (1, 3)
    frame.iloc[:5].to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(DataError, match="5 rows, but the model reads 6"):
        source.read(tmp_path / "new.csv", opened.fitted, opened.facts)


def test_the_calendar_is_that_of_pandas(frame, path):
    opened = Series(path=path, target="a", context=6, horizon=3, time="date", calendar=True).open()
    read, _ = gathered(opened.splits["train"])
    dates = frame["date"].dt
    wanted = (
        np.stack([dates.hour / 23, dates.day_of_week / 6, (dates.day - 1) / 30, (dates.day_of_year - 1) / 365], 1) - 0.5
    )
    np.testing.assert_allclose(read[:, 0, 3:], wanted[: len(read)], atol=1e-6)  # float32
    assert opened.facts.features[3:] == ("hour", "weekday", "day of month", "day of year")
    assert read.shape[2] == 7 and opened.facts.inputs[0][0] == (6, 7)


def test_series_that_do_not_fit_are_refused(frame, path):
    values = {"path": path, "target": "a", "time": "date"}
    with pytest.raises(DataError, match=r"no column 'A' \(data.target\); known: a, b, c, date"):
        Series(**{**values, "target": "A"}).open()
    with pytest.raises(DataError, match=r"column 'date' holds '2020.*' in row 0, expected a number"):
        Series(path=path, target="a", context=6, horizon=3).open()
    with pytest.raises(DataError, match=r"120 rows, but data.rows wants 200"):
        Series(**values, rows=[150, 50]).open()
    with pytest.raises(DataError, match=r"the train part of 84 rows holds no window of 96 \+ 24 rows"):
        Series(**values).open()
    with pytest.raises(RecipeError, match=r"calendar: needs the column of dates"):
        Series(path=path, target="a", calendar=True)
    frame.loc[7, "b"] = None
    frame.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"column 'b' holds nan in row 7, expected a number; fill gaps first"):
        Series(**values, context=6, horizon=3).open()
    frame.assign(b=1.0, date=frame["date"][::-1].values).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"the dates in 'date' do not rise"):
        Series(**values, context=6, horizon=3).open()
