"""Mixup, flip and crop against loops over single samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contract.toys import Toy
from kingpost import seeds
from kingpost.assembly import Assembly, Batch, Step
from kingpost.train.assemble import assemble
from kingpost.train.augment.images import crop, flip
from kingpost.train.augment.mixup import mixup
from reference.plain import net, recipe


def images(count: int = 9, rows: int = 5, columns: int = 7) -> Tensor:
    return torch.randn(count, 2, rows, columns, generator=torch.Generator().manual_seed(1))


def mounted(technique: dict[str, Any], task: Any = "classification") -> Assembly:
    data = Toy(task=task)
    return assemble(recipe(net(), data=data, techniques=[technique]), data.open(), torch.device("cpu"))


def toy_batch(task: Any = "classification") -> Batch:
    split = Toy(task=task).open().splits["train"]
    return Batch(split.inputs, split.targets, 0, len(split))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["classes", "probabilities", "values", "values without an axis"])
def test_mixup_equals_a_loop(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x, extra = images(), torch.randn(9, 3, generator=draw)
    targets = {
        "classes": torch.randint(0, 4, (9,), generator=draw),
        "probabilities": torch.randn(9, 4, generator=draw).softmax(-1),
        "values": torch.randn(9, 2, generator=draw),
        "values without an axis": torch.randn(9, generator=draw),
    }[kind]
    partners = torch.randperm(9, generator=draw)
    mixed = mixup(Batch((x, extra), targets, 0, 9), 0.3, partners, classes=4)
    for i in range(9):
        j = int(partners[i])
        for given, got in zip((x, extra), mixed.inputs, strict=True):
            # lerp and the sum round differently in the last place of numbers around 1.
            torch.testing.assert_close(got[i], 0.3 * given[i] + 0.7 * given[j], rtol=0, atol=1e-15)
        if kind == "classes":
            expected = torch.zeros(4)
            expected[targets[i]] += 0.3
            expected[targets[j]] += 0.7
        else:
            expected = 0.3 * targets[i] + 0.7 * targets[j]
        torch.testing.assert_close(mixed.targets[i], expected, rtol=0, atol=1e-15)  # the same rounding


def test_mixup_with_weight_one_changes_nothing() -> None:
    batch = Batch((images(),), torch.arange(9), 0, 9)
    mixed = mixup(batch, 1.0, torch.randperm(9), classes=9)
    assert torch.equal(mixed.inputs[0], batch.inputs[0])
    assert torch.equal(mixed.targets, torch.eye(9))


def test_mixup_draws_its_weight_from_the_beta_distribution() -> None:
    """The technique's weight is found back from the mixed targets, and its mean square is that of Beta(a, a)."""
    a = mounted({"name": "mixup", "alpha": 0.4})
    batch = toy_batch().with_(targets=torch.arange(24) % 3)
    weights = []
    for index in range(600):
        mixed = a.batch(batch, Step(index=index, seed=7))
        rows = mixed.targets[torch.arange(24), batch.targets]
        unlike = rows[rows < 1]  # a sample whose partner has its class keeps the whole weight
        weights.append(float(unlike[0]) if len(unlike) else 1.0)
        assert torch.equal(unlike, unlike[:1].expand_as(unlike))  # one weight a batch
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)) = 0.139. The mean of 600 has a standard error of 0.0152;
    # its kurtosis is 3 - 6 / (2 a + 3) = 1.42, so the variance has one of 0.139 sqrt(0.42 / 600) = 0.0037. Four of
    # each are allowed.
    assert np.mean(weights) == pytest.approx(0.5, abs=4 * 0.0152)
    assert np.var(weights) == pytest.approx(1 / (4 * 1.8), abs=4 * 0.0037)


def test_flip_equals_a_loop() -> None:
    x, chosen = images(), torch.tensor([True, False, True, True, False, False, True, False, True])
    got = flip(x, chosen)
    for i in range(9):
        for column in range(7):
            assert torch.equal(got[i, :, :, column], x[i, :, :, 6 - column if chosen[i] else column])


@pytest.mark.parametrize("pixels", [0, 1, 3, 6])
def test_crop_equals_a_loop(pixels: int) -> None:
    x, draw = images(), torch.Generator().manual_seed(4)
    down, right = (torch.randint(0, 2 * pixels + 1, (9,), generator=draw) for _ in range(2))
    got = crop(x, down, right, pixels)
    assert got.shape == x.shape
    for i in range(9):
        for row in range(5):
            for column in range(7):
                r, c = row + int(down[i]) - pixels, column + int(right[i]) - pixels
                inside = 0 <= r < 5 and 0 <= c < 7
                expected = x[i, :, r, c] if inside else torch.zeros(2)
                assert torch.equal(got[i, :, row, column], expected), (i, row, column)


@pytest.mark.parametrize("technique", [{"name": "flip"}, {"name": "crop", "pixels": 2}], ids=lambda t: t["name"])
@pytest.mark.parametrize("parts", [2, 5, 24])
def test_pieces_draw_what_the_whole_draws(technique: dict[str, Any], parts: int) -> None:
    a, batch = mounted(technique), toy_batch()
    for index in range(4):
        whole = a.batch(batch, Step(index=index, seed=3)).inputs[0]
        pieces = [a.batch(piece, Step(index=index, seed=3)).inputs[0] for piece in batch.split(parts)]
        assert torch.equal(torch.cat(pieces), whole)
        assert not torch.equal(whole, batch.inputs[0])


@pytest.mark.parametrize("technique", ["flip", "crop", "mixup"])
def test_draws_depend_on_seed_and_step_and_nothing_else(technique: str) -> None:
    a, batch = mounted({"name": technique}), toy_batch()
    torch.manual_seed(1)
    one = a.batch(batch, Step(index=2, seed=3)).inputs[0]
    torch.manual_seed(2)
    torch.rand(5)
    np.random.default_rng(0).random()
    assert torch.equal(a.batch(batch, Step(index=2, seed=3, rank=1, ranks=2)).inputs[0], one)
    assert not torch.equal(a.batch(batch, Step(index=3, seed=3)).inputs[0], one)
    assert not torch.equal(a.batch(batch, Step(index=2, seed=4)).inputs[0], one)


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_flips_as_often_as_it_says(p: float) -> None:
    a, batch = mounted({"name": "flip", "p": p}), toy_batch()
    flipped = 0
    for index in range(100):
        got = a.batch(batch, Step(index=index, seed=0)).inputs[0]
        kept = (got == batch.inputs[0]).flatten(1).all(1)
        mirrored = (got == batch.inputs[0].flip(-1)).flatten(1).all(1)
        assert bool((kept ^ mirrored).all())
        flipped += int(mirrored.sum())
    # 2,400 draws: the standard deviation of the count is sqrt(2400 p (1 - p)) = 19.6; four of them.
    assert flipped == pytest.approx(2400 * p, abs=4 * (2400 * p * (1 - p)) ** 0.5)


def test_crop_reaches_every_place_equally_often() -> None:
    """An image with one bright pixel in the middle shows where the cut was."""
    a = mounted({"name": "crop", "pixels": 1})
    x = torch.zeros(24, 1, 8, 8)
    x[:, :, 4, 4] = 1
    batch = toy_batch().with_(inputs=(x,))
    counts = torch.zeros(3, 3)
    for index in range(150):
        where = a.batch(batch, Step(index=index, seed=0)).inputs[0].nonzero()
        assert len(where) == 24
        for row, column in where[:, 2:].tolist():
            counts[row - 3, column - 3] += 1
    # 3,600 draws on nine places: 400 each with a standard deviation of 18.9; five of them for the worst of nine.
    assert counts.min() > 400 - 5 * 18.9
    assert counts.max() < 400 + 5 * 18.9


def test_seeds_are_those_of_the_derivation() -> None:
    """So that a reader can redraw them: ``flip`` of step 2 comes from (seed, purpose, step)."""
    a, batch = mounted({"name": "flip"}), toy_batch()
    drawn = torch.rand(24, generator=torch.Generator().manual_seed(seeds.derive(3, "flip", 2)))
    expected = flip(batch.inputs[0], drawn < 0.5)
    assert torch.equal(a.batch(batch, Step(index=2, seed=3)).inputs[0], expected)
