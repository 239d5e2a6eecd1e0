import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from kingpost.data.idx import read_idx
from kingpost.data.images import Idx, ImageFolder
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose
from kingpost.source import Order


def write_idx(folder, images=60, prefix="train", zipped=True):
    rng = np.random.default_rng(images)
    pixels = rng.integers(0, 256, (images, 4, 3), dtype=np.uint8)
    labels = (np.arange(images) % 3).astype(np.uint8)
    files = {
        f"{prefix}-images-idx3-ubyte": struct.pack(">IIII", 0x803, images, 4, 3) + pixels.tobytes(),
        f"{prefix}-labels-idx1-ubyte": struct.pack(">II", 0x801, images) + labels.tobytes(),
    }
    for name, raw in files.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(raw) if zipped else raw)
    return pixels, labels


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_is_read_and_scaled_by_the_training_part_only(tmp_path, zipped):
    pixels, labels = write_idx(tmp_path, zipped=zipped)
    write_idx(tmp_path, 9, "t10k", zipped)
    opened = Idx(folder=tmp_path, validation=0.2).open()
    kept = opened.indices["train"].numpy()
    mean, std = pixels[kept].mean(), pixels[kept].std()
    for part in ("train", "validation"):
        index = opened.indices[part].numpy()
        np.testing.assert_allclose(opened.splits[part].inputs[0][:, 0], (pixels[index] - mean) / std, atol=1e-5)
        np.testing.assert_array_equal(opened.splits[part].targets, labels[index])
    assert {part: len(split) for part, split in opened.splits.items()} == {
        "train": 48,
        "validation": 12,
        "test": 9,
    }
    assert opened.facts.classes == ("0", "1", "2") and opened.facts.inputs == (((1, 4, 3), torch.float32),)
    assert len(Idx(folder=tmp_path, test_images=None, test_labels=None, validation=0.2).open().splits) == 2


def test_idx_reads_new_images(tmp_path):
    write_idx(tmp_path, zipped=False)
    source = Idx(folder=tmp_path, validation=0.2, test_images=None, test_labels=None)
    opened = source.open()
    split = source.read(tmp_path / "train-images-idx3-ubyte", opened.fitted, opened.facts)
    assert split.inputs[0][opened.indices["train"]].equal(opened.splits["train"].inputs[0])
    assert split.targets.unique().tolist() == [0]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"PNG!", "starts with 504e4721, expected an IDX header such as 00000803"),
        (b"", "starts with nothing"),
        (struct.pack(">II", 0x801, 2) + b"ab", "1 axes, expected 3; are images and labels exchanged"),
        (
            struct.pack(">IIII", 0x803, 2, 2, 2) + b"1234",
            r"4 bytes of values, but its header says \(2, 2, 2\), which is 8",
        ),
        (struct.pack(">II", 0x803, 2), r"0 bytes of values"),
    ],
)
def test_damaged_idx_is_explained(tmp_path, raw, text):
    (tmp_path / "images").write_bytes(raw)
    with pytest.raises(DataError, match=text):
        read_idx(tmp_path / "images", axes=3)


def test_idx_of_wider_numbers_is_big_endian(tmp_path):
    (tmp_path / "a").write_bytes(struct.pack(">II", 0xC01, 2) + struct.pack(">ii", -5, 70000))
    assert read_idx(tmp_path / "a", axes=1).tolist() == [-5, 70000]


def test_idx_checks_sums_names_and_lengths(tmp_path):
    write_idx(tmp_path)
    write_idx(tmp_path, 9, "t10k")
    name = "train-images-idx3-ubyte.gz"
    good = "sha256:" + hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert len(Idx(folder=tmp_path, validation=0, checksums={name: good}).open().splits["train"]) == 60
    with pytest.raises(DataError, match=rf"{name}: its sha256 is .*, expected 1234"):
        Idx(folder=tmp_path, checksums={name: "sha256:1234"}).open()
    with pytest.raises(DataError, match=r"60 images in 'train-images.*', but 9 labels in 't10k"):
        Idx(folder=tmp_path, train_labels="t10k-labels-idx1-ubyte").open()
    with pytest.raises(DataError, match=r"neither 'nothing' nor 'nothing.gz' is there"):
        Idx(folder=tmp_path, train_images="nothing").open()
    with pytest.raises(DataError, match=r"label 2, but only 2 classes are named"):
        Idx(folder=tmp_path, classes=("a", "b")).open()
    with pytest.raises(RecipeError, match="test_images and test_labels belong together"):
        Idx(folder=tmp_path, test_images=None)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(12):
            pixels = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number:02}.png")
    return tmp_path


def test_folder_of_images(pictures):
    opened = ImageFolder(folder=pictures, size=10, validation=0.25).open()
    assert opened.facts.classes == ("cat", "dog") and opened.facts.inputs[0][0] == (3, 10, 10)
    files = sorted(pictures.rglob("*.png"))
    cut = np.stack([np.asarray(Image.open(file))[:, 2:12] for file in files]) / 255.0  # the middle square
    train = cut[opened.indices["train"].numpy()]
    expected = (cut - train.mean((0, 1, 2))) / train.std((0, 1, 2))
    for part, index in opened.indices.items():
        ours = opened.splits[part].inputs[0].permute(0, 2, 3, 1)
        np.testing.assert_allclose(ours, expected[index.numpy()], atol=1e-5)
        assert opened.splits[part].targets.tolist() == [int(i >= 12) for i in index]


def test_streamed_images_equal_those_in_memory(pictures):
    order = Order(batch_size=5, shuffle=True, seed=2)
    held, streamed = (
        ImageFolder(folder=pictures, size=6, memory=m, workers=0 if m else 2).open() for m in (True, False)
    )
    assert held.fingerprint == streamed.fingerprint
    pairs = zip(held.splits["train"].batches(order), streamed.splits["train"].batches(order), strict=True)
    assert all(a.inputs[0].equal(b.inputs[0]) and a.targets.equal(b.targets) for a, b in pairs)


def test_parts_by_folder(pictures):
    for part in ("train", "validation"):
        (pictures / part).mkdir()
    (pictures / "cat").rename(pictures / "train" / "cat")
    (pictures / "dog").rename(pictures / "train" / "dog")
    (pictures / "validation" / "dog").mkdir()
    (pictures / "train" / "dog" / "00.png").rename(pictures / "validation" / "dog" / "00.png")
    source = ImageFolder(folder=pictures, size=4, colour="grey")
    opened = source.open()
    assert {part: len(split) for part, split in opened.splits.items()} == {"train": 23, "validation": 1}
    assert opened.splits["validation"].targets.tolist() == [1] and opened.facts.inputs[0][0] == (1, 4, 4)
    one = source.read(pictures / "validation" / "dog" / "00.png", opened.fitted, opened.facts)
    assert one.inputs[0].equal(opened.splits["validation"].inputs[0])
    many = source.read(pictures / "train", opened.fitted, opened.facts)
    assert len(many) == 23 and not many.labelled and not one.labelled
    assert choose("data", {"name": "image-folder", **source.to_value()}) == source


def test_folders_that_do_not_fit_are_refused(pictures):
    (pictures / "cat" / "00.png").write_text("no picture")
    with pytest.raises(DataError, match=r"00\.png: not a readable image"):
        ImageFolder(folder=pictures).open()
    with pytest.raises(DataError, match="0 sub-folders, expected one for each of several classes"):
        ImageFolder(folder=pictures / "cat").open()
    (pictures / "cat" / "00.png").unlink()
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match=r"class 'empty' has no images \(\.png"):
        ImageFolder(folder=pictures).open()
