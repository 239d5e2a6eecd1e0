import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes, load_wine
from sklearn.preprocessing import StandardScaler

from kingpost.data import scaling
from kingpost.data.arrays import Arrays, Npz
from kingpost.data.bundled import Bundled, Digits
from kingpost.data.parts import divide
from kingpost.data.reading import read_bytes, read_text
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose
from kingpost.recipe import Recipe
from kingpost.source import Order, original_units


@given(
    samples=st.integers(40, 300),
    validation=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_parts_are_disjoint_and_exhaustive(samples, validation, test, seed):
    parts = divide(samples, validation, test, seed)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(samples))
    assert ("validation" in parts, "test" in parts) == (validation > 0, test > 0)
    assert abs(len(parts.get("test", ())) - test * samples) <= 1
    assert abs(len(parts.get("validation", ())) - validation * samples) <= 1


def test_parts_hold_the_same_share_of_each_class():
    groups = np.repeat([0, 1], [900, 100])
    parts = divide(1000, 0.1, 0.2, 0, groups)
    assert {name: int(groups[index].sum()) for name, index in parts.items()} == {
        "train": 70,
        "validation": 10,
        "test": 20,
    }


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(DataError, match=r"validation 0.5 and test 0.5 leave nothing to train on"):
        divide(10, 0.5, 0.5, 0)


@pytest.mark.parametrize("shape", [(500, 7), (500, 3, 4, 5)])
def test_scale_is_that_of_scikit_learn(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 300 + 5e4
    flat = values.movedim(1, -1).reshape(-1, shape[1]).numpy()
    expected = StandardScaler().fit(flat)
    scale = scaling.fit(values)
    np.testing.assert_allclose(scale["mean"], expected.mean_)
    np.testing.assert_allclose(scale["std"], expected.scale_)
    ours = scaling.apply(values, scale).movedim(1, -1).reshape(-1, shape[1])
    np.testing.assert_allclose(ours.numpy(), expected.transform(flat), atol=1e-6)  # float32 near 1


def test_scaled_targets_come_back_in_their_own_unit():
    values = torch.tensor([3.0, 5.0, 10.0])
    scale = {"target": scaling.fit(values)}
    scaled = scaling.apply(values, scale["target"])
    torch.testing.assert_close(original_units(scaled, scale), values)
    torch.testing.assert_close(original_units(scaled[:, None], scale), values[:, None])
    assert original_units(values, {}) is values


def test_arrays_scale_by_the_training_part_only():
    x, y = load_wine(return_X_y=True)
    opened = Arrays(inputs=x, targets=y, validation=0.2, test=0.2, standardise=True).open()
    kept = opened.indices["train"].numpy()
    expected = StandardScaler().fit(x[kept])
    np.testing.assert_allclose(opened.fitted["inputs"][0]["mean"], expected.mean_, rtol=1e-6)  # from float32
    for part, index in opened.indices.items():
        np.testing.assert_allclose(opened.splits[part].inputs[0].numpy(), expected.transform(x[index]), atol=1e-4)
        np.testing.assert_array_equal(opened.splits[part].targets.numpy(), y[index])


def test_explicit_parts_are_used_as_they_are():
    x = torch.arange(12.0).reshape(6, 2)
    opened = Arrays(inputs=x, targets=torch.tensor([0, 1] * 3), validation=(x + 1, torch.ones(6).long())).open()
    assert opened.splits["validation"].inputs[0].equal(x + 1)
    assert len(opened.splits["train"]) == 6 and "test" not in opened.splits and not opened.indices


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (np.array([0, 1, 2, 1] * 5), "classification"),
        (np.array([0, 1, 2, 1] * 5, dtype=np.uint8), "classification"),
        (np.linspace(0, 1, 20), "regression"),
        (np.array([[0, 1], [1, 1]] * 10), "multi-label"),
    ],
)
def test_the_task_follows_from_the_targets(targets, task):
    facts = Arrays(inputs=np.zeros((20, 3)), targets=targets).open().facts
    assert facts.task == task and facts.target_shape == targets.shape[1:]


def test_regression_targets_are_scaled_and_recorded():
    x, y = load_diabetes(return_X_y=True)
    opened = Arrays(inputs=x, targets=y, standardise=True).open()
    train = opened.splits["train"].targets
    np.testing.assert_allclose(original_units(train, opened.fitted), y[opened.indices["train"]], rtol=1e-5)
    assert abs(float(train.mean())) < 1e-5 and abs(float(train.std(unbiased=False)) - 1) < 1e-5


def test_dtypes_that_models_take():
    tokens, pixels = np.ones((8, 4), dtype=np.int32), np.full((8, 1, 2, 2), 255, dtype=np.uint8)
    facts = Arrays(inputs=(np.ones((8, 2)), tokens, pixels), targets=np.arange(8) % 2, validation=0.25).open()
    assert [x.dtype for x in facts.splits["train"].inputs] == [torch.float32, torch.int64, torch.float32]
    assert facts.splits["train"].inputs[2].max() == 1


def test_a_file_cannot_hold_arrays_and_says_so():
    recipe = Recipe(name="a", data=Arrays(inputs=np.zeros((20, 3)), targets=np.arange(20) % 2), model="mlp")
    assert recipe.not_reproducible == ["data"]
    assert recipe.patched("seed=3").data is recipe.data
    assert "arrays, inputs (20, 3), targets (20,)" in repr(recipe.data)
    with pytest.raises(
        RecipeError, match=r"made in Python with an object \(arrays, inputs \(20, 3\).*pass recipe=\.\.\. "
    ):
        Recipe.from_yaml(recipe.to_yaml())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"inputs": np.zeros((5, 2)), "targets": np.zeros(4)}, "inputs have 5 samples, targets 4"),
        (
            {"inputs": [[1, 2]], "targets": np.zeros(4)},
            "inputs: expected a numpy array or a tensor, got tuple; use numpy.asarray",
        ),
        ({"inputs": np.array(["a"]), "targets": np.zeros(1)}, "inputs: expected numbers, got dtype <U1"),
        ({"inputs": np.zeros((2, 2)), "targets": np.array([-1, 0])}, r"targets lie in -1..0, expected 0..0"),
        (
            {"inputs": np.zeros((2, 2)), "targets": np.zeros(2), "task": "classification"},
            "needs whole numbers",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(values, text):
    with pytest.raises(DataError, match=text):
        Arrays(**values).open()


def test_a_wrong_fraction_is_refused():
    with pytest.raises(RecipeError, match=r"validation: got 1.5; expected a number >= 0 and < 1"):
        Arrays(inputs=np.zeros((5, 2)), targets=np.zeros(5), validation=1.5)


def test_npz_images_become_channels_first_and_standardised(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (50, 6, 5, 3), dtype=np.uint8), np.arange(50) % 5
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_test=pixels[:7], y_test=labels[:7])
    source = Npz(path=tmp_path / "a.npz", channels="last", test_inputs="x_test", test_targets="y_test", validation=0.2)
    opened = source.open()
    train = pixels[opened.indices["train"].numpy()] / 255
    expected = (pixels[:7] / 255 - train.mean((0, 1, 2))) / train.std((0, 1, 2))
    np.testing.assert_allclose(opened.splits["test"].inputs[0], expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert len(opened.splits["validation"]) == 10
    again = source.read(tmp_path / "a.npz", opened.fitted, opened.facts)
    torch.testing.assert_close(again.inputs[0][opened.indices["train"]], opened.splits["train"].inputs[0])
    np.savez(tmp_path / "b.npz", x_train=pixels[:3])
    assert source.read(tmp_path / "b.npz", opened.fitted, opened.facts).targets.tolist() == [0, 0, 0]
    assert choose("data", {"name": "npz", **source.to_value()}) == source


def test_npz_with_objects_or_without_the_key_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", x_train=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, text in {
        "objects": "not an .npz file of plain arrays",
        "text": "not an .npz file of plain arrays",
        "other": "no array 'y_train'; it holds: x",
    }.items():
        with pytest.raises(DataError, match=text):
            Npz(path=tmp_path / f"{name}.npz").open()
    with pytest.raises(RecipeError, match="test_inputs and test_targets belong together"):
        Npz(path="a.npz", test_inputs="x_test")


@pytest.mark.parametrize("which", ["iris", "wine", "breast-cancer", "diabetes"])
def test_bundled_sets_are_scaled_by_the_training_part_only(which):
    opened = Bundled(which=which).open()
    train = opened.splits["train"].inputs[0].double()
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0, unbiased=False), 1, atol=1e-6)
    assert len(opened.facts.features) == train.shape[1]
    assert sorted(torch.cat(list(opened.indices.values())).tolist()) == list(
        range(sum(map(len, opened.splits.values())))
    )


def test_diabetes_comes_back_in_its_own_unit():
    opened = Bundled(which="diabetes").open()
    back = original_units(opened.splits["test"].targets, opened.fitted)
    np.testing.assert_allclose(back, load_diabetes().target[opened.indices["test"]], rtol=1e-5)


def test_a_split_depends_on_its_own_seed_alone():
    first, second, other = Digits().open(), Digits().open(), Digits(split_seed=1).open()
    assert first.indices["test"].equal(second.indices["test"])
    assert not first.indices["test"].equal(other.indices["test"])
    assert first.fingerprint == other.fingerprint


def test_resume_is_the_tail_of_the_whole_pass():
    split = Digits().open().splits["train"]
    order = {"batch_size": 100, "shuffle": True, "seed": 4, "epoch": 2}
    whole, tail = list(split.batches(Order(**order))), list(split.batches(Order(**order, start=5)))
    assert len(tail) == len(whole) - 5
    assert all(a.targets.equal(b.targets) for a, b in zip(whole[5:], tail, strict=True))


def test_damaged_files_are_named(tmp_path):
    whole = gzip.compress(b"text " * 100)
    (tmp_path / "cut.gz").write_bytes(whole[:-20])
    (tmp_path / "latin.txt").write_bytes("é".encode("latin1"))
    (tmp_path / "fine.gz").write_bytes(whole)
    with pytest.raises(DataError, match=r"cut\.gz: damaged gzip .*fetch the file again"):
        read_bytes(tmp_path / "cut.gz")
    with pytest.raises(DataError, match=r"latin\.txt: byte 0 is not UTF-8"):
        read_text(tmp_path / "latin.txt")
    with pytest.raises(DataError, match=r"its md5 is .*, expected 00;"):
        read_bytes(tmp_path / "fine.gz", {"fine.gz": "md5:00"})
    with pytest.raises(DataError, match="expected 'sha256:<hex>' or 'md5:<hex>'"):
        read_bytes(tmp_path / "fine.gz", {"fine.gz": "crc:00"})
    assert read_text(tmp_path / "fine.gz") == "text " * 100


@pytest.mark.parametrize(
    ("shape", "channels", "moved", "axis"),
    [
        ((20, 5, 4, 3), "last", (3, 5, 4), 1),
        ((20, 6, 5, 4, 3), "last", (6, 3, 5, 4), 2),
        ((20, 5, 4), "none", (1, 5, 4), 1),
        ((20, 6, 5, 4), "none", (6, 1, 5, 4), 2),
        ((20, 6, 3), "first", (6, 3), 2),
    ],
    ids=["images", "clips", "grey images", "grey clips", "series"],
)
def test_channels_go_where_nets_want_them_and_have_a_scale_each(tmp_path, shape, channels, moved, axis):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(20) % 2)
    opened = Npz(path=tmp_path / "a.npz", channels=channels, validation=0.0).open()
    assert opened.facts.inputs[0][0] == moved
    values = x[..., None] if channels == "none" else x
    values = np.moveaxis(values, -1, axis) / 255 if channels != "first" else values / 255
    others = tuple(a for a in range(values.ndim) if a != axis)
    wanted = (values - values.mean(others, keepdims=True)) / values.std(others, keepdims=True)
    np.testing.assert_allclose(opened.splits["train"].inputs[0], wanted, atol=1e-5)  # float32


def test_tokens_and_codes_are_counted():
    tokens = torch.tensor([[1, 2], [3, 0]] * 5)
    assert Arrays(inputs=tokens, targets=np.arange(10) % 2, validation=0.2).open().facts.vocabulary == 4
    pairs = Arrays(inputs=(tokens, tokens + 1), targets=tokens + 2, task="sequence-to-sequence", validation=0.2)
    pair = pairs.open().facts
    assert (pair.vocabulary, pair.target_vocabulary, pair.form) == (4, 6, "token-pair")
    table = Arrays(inputs=(torch.zeros(10, 3), tokens), targets=np.arange(10) % 2, validation=0.2).open().facts
    assert (table.form, table.cardinalities, table.vocabulary) == ("table", (4, 3), 0)
    with pytest.raises(DataError, match="test: token or code 9, but those of the training samples end at 3"):
        Arrays(inputs=tokens, targets=np.arange(10) % 2, test=(tokens * 3, np.arange(10) % 2)).open()
    series = Arrays(inputs=torch.zeros(10, 5, 2), targets=torch.zeros(10, 3), task="forecasting", validation=0.2).open()
    assert series.facts.form == "series" and series.facts.target_shape == (3,)
