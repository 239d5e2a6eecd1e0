import gzip

import numpy as np
import pytest
import torch

from kingpost.data.clips import DIRECTIONS, ClipSplit, MovingImages
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose
from kingpost.source import Order


def idx(images):
    header = b"\0\0\x08\x03" + b"".join(length.to_bytes(4, "big") for length in images.shape)
    return header + images.tobytes()


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("train-images-idx3-ubyte.gz", 60), ("t10k-images-idx3-ubyte.gz", 20)):
        images = draw.integers(0, 256, (count, 8, 6), dtype=np.uint8)
        (tmp_path / name).write_bytes(gzip.compress(idx(images)))
    return tmp_path


def made(frames=5, canvas=9, directions=8, fastest=2, samples=30):
    pictures = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (samples, 4, 3), dtype=np.uint8))
    return ClipSplit(pictures, (0, "train"), frames, canvas, directions, fastest)


def test_clips_are_as_a_slow_loop_rolls_them():
    split = made()
    clips = split.clips(torch.arange(30)).numpy()
    for row in range(30):
        canvas = np.zeros((9, 9), dtype=np.float32)
        canvas[:4, :3] = split.pictures[row].numpy() / np.float32(255)
        down, right = list(DIRECTIONS.values())[split.classes[row]]
        speed, (y, x) = int(split.speeds[row]), split.places[row].tolist()
        for frame in range(5):
            rolled = np.roll(canvas, (y + frame * speed * down, x + frame * speed * right), (0, 1))
            np.testing.assert_array_equal(clips[row, frame, 0], rolled)


def test_a_single_frame_says_nothing_about_the_class():
    """Over all starting places, each direction shows the same set of frames at every time."""
    seen = []
    for direction in range(8):
        split = made(canvas=6, samples=36)
        split.pictures = split.pictures[:1].expand(36, -1, -1)
        split.places = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        split.classes, split.speeds = torch.full((36,), direction), torch.full((36,), 2)
        clips = split.clips(torch.arange(36))
        seen.append([sorted(clips[:, frame].flatten(1).tolist()) for frame in range(5)])
    assert all(one == seen[0] for one in seen)


def test_two_frames_tell_the_direction():
    split = made(frames=2, canvas=9, fastest=2, samples=64)
    clips = split.clips(torch.arange(64))[:, :, 0]
    for row in range(64):
        found = [
            (y, x)
            for y in range(-2, 3)
            for x in range(-2, 3)
            if clips[row, 1].equal(torch.roll(clips[row, 0], (y, x), (0, 1)))
        ]
        assert len(found) == 1
        direction = tuple(int(np.sign(step)) for step in found[0])
        assert list(DIRECTIONS.values())[split.classes[row]] == direction


def test_clips_follow_from_the_seed_of_the_data_alone(folder):
    source = MovingImages(folder=folder, frames=4, canvas=8, validation=0.2, split_seed=5)
    first, again, other = source.open(), source.open(), source.with_(split_seed=6).open()
    assert {part: len(split) for part, split in first.splits.items()} == {"train": 48, "validation": 12, "test": 20}
    for part, split in first.splits.items():
        one = next(split.batches(Order(batch_size=50, seed=1)))
        two = next(again.splits[part].batches(Order(batch_size=50, seed=2)))
        assert one.inputs[0].equal(two.inputs[0]) and one.targets.equal(two.targets)
        assert tuple(one.inputs[0].shape[1:]) == first.facts.inputs[0][0] == (4, 1, 8, 8)
        assert one.inputs[0].min() >= 0 and one.inputs[0].max() <= 1
        counts = torch.bincount(split.classes, minlength=8)
        assert counts.max() - counts.min() <= 1
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert not first.splits["test"].classes.equal(other.splits["test"].classes)
    assert first.facts.form == "clip" and first.facts.classes == tuple(DIRECTIONS)
    assert source.with_(directions=4).open().facts.classes == ("right", "left", "down", "up")
    assert choose("data", {"name": "moving-images", **source.to_value()}) == source


def test_pictures_are_averaged_down_as_numpy_does(folder):
    opened = MovingImages(folder=folder, frames=2, canvas=8, validation=0.0).open()
    raw = np.random.default_rng(0).integers(0, 256, (60, 8, 6), dtype=np.uint8)
    wanted = raw.reshape(60, 4, 2, 3, 2).mean((2, 4)).round()  # both round halves to even
    np.testing.assert_array_equal(opened.splits["train"].pictures.numpy(), wanted)


def test_resume_is_the_tail_of_the_whole_pass():
    split = made()
    order = {"batch_size": 8, "shuffle": True, "seed": 3, "epoch": 1}
    whole, tail = list(split.batches(Order(**order))), list(split.batches(Order(**order, start=2)))
    assert len(whole) == 4 and len(tail) == 2
    assert all(
        a.inputs[0].equal(b.inputs[0]) and a.targets.equal(b.targets) for a, b in zip(whole[2:], tail, strict=True)
    )


def test_what_does_not_fit_is_refused(folder):
    with pytest.raises(DataError, match=r"pictures of \(8, 6\) pixels do not fit on a canvas of 7"):
        MovingImages(folder=folder, canvas=7, shrink=1).open()
    with pytest.raises(RecipeError, match=r"fastest: got 4; half a canvas at once .*; use at most 3"):
        MovingImages(folder=folder, canvas=8, fastest=4)


def test_new_pictures_are_made_into_clips(folder):
    source = MovingImages(folder=folder, frames=4, canvas=8)
    opened = source.open()
    new = source.read(folder / "t10k-images-idx3-ubyte.gz", opened.fitted, opened.facts)
    assert len(new) == 20 and new.labelled and new.clips(torch.arange(2)).shape == (2, 4, 1, 8, 8)
