"""Augmentations of images against loops over single pixels, and their draws against what is expected of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contract.toys import Toy
from kingpost.assembly import Assembly, Batch, Step
from kingpost.errors import RecipeError
from kingpost.source import DataFacts
from kingpost.train.assemble import assemble
from kingpost.train.augment.augmentation import Augmentation
from kingpost.train.augment.blur import GaussianBlur, gaussian_blur
from kingpost.train.augment.colour import YIQ, Colour, contrast, grey, hue, saturation
from kingpost.train.augment.cutmix import CutMix, cutmix, draw_box
from kingpost.train.augment.erase import Cutout, RandomErasing, rectangle
from kingpost.train.augment.geometry import Affine, Rotate, matrix, warp
from kingpost.train.augment.noise import GaussianNoise
from kingpost.train.augment.rand_augment import OPERATIONS, RandAugment, operate, shade
from reference.plain import net, recipe

FACTS = DataFacts(task="classification", inputs=(((3, 7, 9), torch.float64),), classes=("a", "b", "c"))
# Sums and products of a few numbers near 1 in another order: some units in the last place.
ROUNDING = 1e-13


def images(count: int = 6, channels: int = 3, rows: int = 7, columns: int = 9) -> Tensor:
    return torch.randn(count, channels, rows, columns, generator=torch.Generator().manual_seed(1))


def batch(x: Tensor | None = None) -> Batch:
    x = images() if x is None else x
    return Batch((x,), torch.arange(len(x)) % 3, 0, len(x))


def step(index: int = 2) -> Step:
    return Step(index=index, seed=3)


def change(technique: Augmentation, b: Batch, at: Step) -> Tensor:
    return technique.change(b, at, FACTS).inputs[0]


ALL: list[Augmentation] = [
    Rotate(), Affine(), Colour(saturation=0.3, hue=0.1), RandAugment(), CutMix(), Cutout(pixels=3),
    RandomErasing(p=0.8), GaussianBlur(p=0.8), GaussianNoise(),
]  # fmt: skip


@pytest.mark.parametrize("technique", ALL, ids=lambda t: t.name)
def test_draws_depend_on_seed_and_step_and_nothing_else(technique: Augmentation) -> None:
    b = batch()
    given = b.inputs[0].clone()
    torch.manual_seed(1)
    one = change(technique, b, step())
    torch.manual_seed(2)
    assert torch.equal(change(technique, b, Step(index=2, seed=3, rank=1, ranks=2)), one)
    assert not torch.equal(change(technique, b, step(5)), one)
    assert not torch.equal(change(technique, b, Step(index=2, seed=4)), one)
    assert torch.equal(b.inputs[0], given), "it changed the samples themselves"
    assert one.shape == given.shape
    assert one.dtype == given.dtype


@pytest.mark.parametrize("technique", [t for t in ALL if t.name != "cutmix"], ids=lambda t: t.name)
@pytest.mark.parametrize("parts", [2, 6])
def test_pieces_draw_what_the_whole_draws(technique: Augmentation, parts: int) -> None:
    b = batch()
    pieces = [change(technique, piece, step()) for piece in b.split(parts)]
    # Convolutions and products of matrices sum in another order for other numbers of images.
    torch.testing.assert_close(torch.cat(pieces), change(technique, b, step()), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", ["rotate", "cutout", "gaussian-noise"])
def test_other_forms_are_refused(name: str) -> None:
    data = Toy(form="tokens")
    encoder: Any = {"name": "encoder", "depth": 1, "width": 8, "heads": 2}
    with pytest.raises(RecipeError, match=r"needs images .* but this data gives sequences of tokens"):
        assemble(recipe(encoder, data=data, techniques=[name]), data.open(), torch.device("cpu"))


# ---- geometry


def read(image: Tensor, row: float, column: float, padding: str) -> Tensor:
    """The image at a place between pixels, by the four around; ``(C,)``."""
    _, h, w = image.shape
    if padding == "border":
        row, column = min(max(row, 0.0), h - 1.0), min(max(column, 0.0), w - 1.0)
    total = torch.zeros(len(image))
    top, left = math.floor(row), math.floor(column)
    for r in (top, top + 1):
        for c in (left, left + 1):
            weight = (1 - abs(row - r)) * (1 - abs(column - c))
            if 0 <= r < h and 0 <= c < w:
                total += weight * image[:, r, c]
    return total


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_warp_equals_a_loop(padding: Any) -> None:
    x, draw = images(4), torch.Generator().manual_seed(2)
    turn, lean = (torch.randn(4, generator=draw) * 0.5 for _ in range(2))
    scale, shift = 1 + 0.3 * torch.rand(4, generator=draw), torch.randn(4, 2, generator=draw)
    got = warp(x, matrix(turn, scale, lean), shift, padding)
    for i in range(4):
        a, b, s = float(turn[i]), float(lean[i]), float(scale[i])
        rotation = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
        forward = s * rotation @ np.array([[1, math.tan(b)], [0, 1]])
        for row in range(7):
            for column in range(9):
                p = np.array([column - 4, row - 3]) - shift[i].numpy()
                right, down = np.linalg.solve(forward, p) + np.array([4, 3])
                expected = read(x[i], down, right, padding)
                torch.testing.assert_close(got[i, :, row, column], expected, rtol=0, atol=1e-12)  # places round too


def test_a_positive_angle_turns_counter_clockwise() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 4] = 1  # right of the middle
    quarter = matrix(torch.tensor([math.pi / 2]), torch.ones(1), torch.zeros(1))
    got = warp(x, quarter, torch.zeros(1, 2))
    expected = torch.zeros(5, 5)
    expected[0, 2] = 1  # above it
    torch.testing.assert_close(got[0, 0], expected, rtol=0, atol=ROUNDING)


def test_rotate_and_affine_stay_within_their_bounds() -> None:
    """A bright pixel far out shows the angle, the shift and the factor."""
    x = torch.zeros(200, 1, 41, 41)
    x[:, :, 20, 35] = 1
    where = torch.stack(torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij"), -1) - 20

    def centres(got: Tensor) -> Tensor:
        weights = got[:, 0] / got[:, 0].sum((1, 2), keepdim=True)
        return (weights[..., None] * where).sum((1, 2))

    down, right = centres(change(Rotate(degrees=30), batch(x), step())).unbind(-1)
    angles = torch.rad2deg(torch.atan2(-down, right))
    # Bilinear reading moves the centre of a single pixel by up to a third of a pixel: 1.5 degrees at 15 pixels.
    assert float(angles.abs().max()) < 31.5
    # U(-30, 30): a deviation of 17.3; 200 draws, four standard errors; those of the deviation are about 0.55.
    assert float(angles.mean()) == pytest.approx(0, abs=4 * 17.3 / 200**0.5)
    assert float(angles.std()) == pytest.approx(17.3, abs=4 * 0.55 + 0.5)
    moved = change(Affine(degrees=0, translate=0.1, scale=0, shear=0), batch(x), step())
    away = centres(moved) - torch.tensor([0.0, 15.0])
    assert float(away.abs().max()) < 4.1 + 1e-9  # a shift without scale keeps the centre exactly
    assert float(away.abs().max()) > 3.5
    larger = centres(change(Affine(degrees=0, translate=0, scale=0.2, shear=0), batch(x), step()))[:, 1] / 15
    assert float(larger.min()) > 0.77
    assert float(larger.max()) < 1.23


def test_no_motion_changes_nothing_but_rounding() -> None:
    x = images()
    still = matrix(torch.zeros(6), torch.ones(6), torch.zeros(6))
    torch.testing.assert_close(warp(x, still, torch.zeros(6, 2)), x, rtol=0, atol=ROUNDING)


# ---- colour


def test_colour_functions_equal_loops() -> None:
    x, draw = images(4), torch.Generator().manual_seed(3)
    factor, turn = torch.rand(4, generator=draw) * 2, torch.randn(4, generator=draw)
    yiq = np.array(YIQ)
    got = {"contrast": contrast(x, factor), "saturation": saturation(x, factor), "hue": hue(x, turn)}
    for i in range(4):
        f, mean = float(factor[i]), float(x[i].mean())
        cos, sin = math.cos(float(turn[i])), math.sin(float(turn[i]))
        rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        for row in range(7):
            for column in range(9):
                rgb = x[i, :, row, column].numpy()
                y = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
                wanted = {
                    "contrast": mean + f * (rgb - mean),
                    "saturation": y + f * (rgb - y),
                    "hue": np.linalg.solve(yiq, rotation @ yiq @ rgb),
                }
                for name, expected in wanted.items():
                    found = got[name][i, :, row, column].numpy()
                    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, err_msg=name)
    torch.testing.assert_close(grey(got["hue"]), grey(x), rtol=0, atol=1e-12)  # a turn of hue keeps the brightness
    torch.testing.assert_close(hue(x, torch.full((4,), 2 * math.pi)), x, rtol=0, atol=1e-12)


def test_colour_stays_within_its_bounds() -> None:
    x = torch.zeros(500, 1, 4, 4)
    b = batch(x)
    shift = change(Colour(brightness=0.3, contrast=0), b, step())[:, 0, 0, 0]
    assert float(shift.abs().max()) <= 0.3
    assert float(shift.mean()) == pytest.approx(0, abs=4 * 0.173 / 500**0.5)  # U(-0.3, 0.3) has a deviation of 0.173
    x[:, :, :2] = 1
    x[:, :, 2:] = -1
    factor = change(Colour(brightness=0, contrast=0.4), b, step())[:, 0, 0, 0]
    assert 0.6 <= float(factor.min()) < 0.7
    assert 1.3 < float(factor.max()) <= 1.4
    held = change(Colour(brightness=1.0, contrast=1.0, low=-0.5, high=0.5), b, step())
    assert (float(held.min()), float(held.max())) == (-0.5, 0.5)
    with pytest.raises(RecipeError, match=r"hue: needs three channels, these images have 1"):
        mounted({"name": "colour", "hue": 0.1})


def mounted(technique: dict[str, Any]) -> Assembly:
    data = Toy()
    return assemble(recipe(net(), data=data, techniques=[technique]), data.open(), torch.device("cpu"))


# ---- erased and mixed parts


def test_rectangles_equal_a_loop() -> None:
    top, left = torch.tensor([-2, 0, 4, 6]), torch.tensor([3, -1, 0, 8])
    height, width = torch.tensor([4, 7, 1, 9]), torch.tensor([2, 3, 0, 9])
    got = rectangle(top, left, height, width, 7, 9)
    for i in range(4):
        for row in range(7):
            for column in range(9):
                inside = top[i] <= row < top[i] + height[i] and left[i] <= column < left[i] + width[i]
                assert bool(got[i, 0, row, column]) == bool(inside)


def test_cutout_covers_a_square_around_any_pixel() -> None:
    x = torch.ones(2000, 1, 8, 8)
    holes = change(Cutout(pixels=3), batch(x), step()) == 0
    size = holes.flatten(1).sum(1)
    assert {int(n) for n in size.unique()} == {4, 6, 9}  # in a corner, at a side, inside
    # Every pixel is the middle with probability 1/64. A pixel inside is covered by nine of them, a corner by four.
    share = holes.double().mean(0)[0]
    assert float(share[4, 4]) == pytest.approx(9 / 64, abs=4 * (9 / 64 * 55 / 64 / 2000) ** 0.5)
    assert float(share[0, 0]) == pytest.approx(4 / 64, abs=4 * (4 / 64 * 60 / 64 / 2000) ** 0.5)


def test_random_erasing_keeps_to_its_area_and_aspect() -> None:
    x = torch.ones(1000, 1, 60, 60)
    t = RandomErasing(p=0.7, smallest=0.05, largest=0.2, aspect=0.5, fill="zeros")
    covered = change(t, batch(x), step())[:, 0] == 0
    chosen = covered.flatten(1).any(1)
    assert float(chosen.double().mean()) == pytest.approx(0.7, abs=4 * (0.21 / 1000) ** 0.5)
    height = covered.any(2).sum(1)[chosen].double()
    width = covered.any(1).sum(1)[chosen].double()
    assert torch.equal(covered.flatten(1).sum(1)[chosen], (height * width).long()), "not a rectangle"
    # Sides are rounded to whole pixels: by half a pixel of at least 9.
    assert float((height * width).min()) >= 0.05 * 3600 * 0.88
    assert float((height * width).max()) <= 0.2 * 3600 * 1.12
    assert float((height / width).min()) > 0.5 * 0.88
    assert float((height / width).max()) < 2 * 1.12
    # U(0.05, 0.2): mean 0.125, deviation 0.0433; about 700 draws.
    assert float((height * width / 3600).mean()) == pytest.approx(0.125, abs=4 * 0.0433 / 700**0.5 + 0.001)
    noise = change(t.with_(fill="noise"), batch(x), step())[:, 0][covered]
    assert float(noise.mean()) == pytest.approx(0, abs=4 / len(noise) ** 0.5)
    assert float(noise.std()) == pytest.approx(1, abs=4 / (2 * len(noise)) ** 0.5)


def test_cutmix_equals_a_loop() -> None:
    b, partners, box = batch(), torch.tensor([3, 2, 0, 1, 5, 4]), (1, 5, 2, 9)
    got = cutmix(b, box, partners, classes=3)
    for i in range(6):
        share = torch.zeros(3)
        for row in range(7):
            for column in range(9):
                own = not (1 <= row < 5 and 2 <= column < 9)
                source = i if own else int(partners[i])
                assert torch.equal(got.inputs[0][i, :, row, column], b.inputs[0][source, :, row, column])
                share[b.targets[source]] += 1 / 63
        torch.testing.assert_close(got.targets[i], share, rtol=0, atol=ROUNDING)


def test_cutmix_boxes_have_the_area_that_was_drawn() -> None:
    draw = np.random.default_rng(0)
    areas = []
    for _ in range(2000):
        top, bottom, left, right = draw_box(draw, 0.75, 40, 60)
        assert 0 <= top <= bottom <= 40
        assert 0 <= left <= right <= 60
        areas.append((bottom - top) * (right - left) / 2400)
    assert max(areas) == 0.25
    # A side of length L whose middle is uniform in the image keeps on average 1 - 1/8 of it (half of it times L / 2
    # over each border, L = half the image): (1/2 * 7/8)^2. The spread of one area is below 0.07.
    assert np.mean(areas) == pytest.approx((0.5 * 7 / 8) ** 2, abs=4 * 0.07 / 2000**0.5 + 0.005)


def test_cutmix_mixes_as_often_as_it_says() -> None:
    b, t = batch(), CutMix(p=0.3)
    mixed = sum(t.change(b, step(i), FACTS) is not b for i in range(1000))
    assert mixed == pytest.approx(300, abs=4 * 210**0.5)


# ---- blur and noise


def test_blur_equals_a_loop() -> None:
    x, sigma, radius = images(3), torch.tensor([0.3, 0.9, 2.5]), 3
    got = gaussian_blur(x, sigma, radius)
    for i in range(3):
        bell = [math.exp(-(d**2) / (2 * float(sigma[i]) ** 2)) for d in range(-radius, radius + 1)]
        bell = [value / sum(bell) for value in bell]
        for row in range(7):
            for column in range(9):
                expected = torch.zeros(3)
                for dr, wr in zip(range(-radius, radius + 1), bell, strict=True):
                    for dc, wc in zip(range(-radius, radius + 1), bell, strict=True):
                        r, c = min(max(row + dr, 0), 6), min(max(column + dc, 0), 8)
                        expected += wr * wc * x[i, :, r, c]
                torch.testing.assert_close(got[i, :, row, column], expected, rtol=0, atol=ROUNDING)
    flat = torch.full((2, 3, 5, 5), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, torch.ones(2), 3), flat, rtol=0, atol=ROUNDING)


def test_gaussian_noise_has_its_deviation_and_its_range() -> None:
    x = torch.zeros(50, 1, 20, 20)
    noise = change(GaussianNoise(std=0.3), batch(x), step())
    assert float(noise.mean()) == pytest.approx(0, abs=4 * 0.3 / 20000**0.5)
    assert float(noise.std()) == pytest.approx(0.3, abs=4 * 0.3 / 40000**0.5)
    held = change(GaussianNoise(std=0.3, low=-0.2, high=0.1), batch(x), step())
    assert torch.equal(held, noise.clamp(-0.2, 0.1))


# ---- RandAugment


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=OPERATIONS)
def test_each_operation_is_what_it_says(number: int) -> None:
    """One image, one operation, written out anew."""
    x, strength = images(2), 0.6
    got = operate(x, torch.tensor([number, 0]), torch.tensor([strength, strength]))
    assert torch.equal(got[1], x[1]), "the image with 'nothing' was changed"
    name, image = OPERATIONS[number], x[0]
    low, high, factor = image.min(), image.max(), 1 + 0.9 * strength
    if 1 <= number <= 5:
        a = math.radians(30) * strength
        forward, shift = {
            "rotate": (np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]), (0, 0)),
            "shear right": (np.array([[1, 0.3 * strength], [0, 1]]), (0, 0)),
            "shear down": (np.array([[1, 0], [0.3 * strength, 1]]), (0, 0)),
            "shift right": (np.eye(2), (0.45 * strength * 9, 0)),
            "shift down": (np.eye(2), (0, 0.45 * strength * 7)),
        }[name]
        expected = torch.empty_like(image)
        for row in range(7):
            for column in range(9):
                right, down = np.linalg.solve(forward, np.array([column - 4, row - 3]) - shift) + np.array([4, 3])
                expected[:, row, column] = read(image, down, right, "zeros")
    elif name == "brightness":
        expected = low + factor * (image - low)
    elif name == "contrast":
        expected = image.mean() + factor * (image - image.mean())
    elif name == "saturation":
        plain = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        expected = plain + factor * (image - plain)
    elif name == "sharpness":
        smooth = image.clone()
        for row in range(1, 6):
            for column in range(1, 8):
                around = image[:, row - 1 : row + 2, column - 1 : column + 2].sum((1, 2))
                smooth[:, row, column] = (around + 4 * image[:, row, column]) / 13
        expected = smooth + factor * (image - smooth)
    elif name == "posterise":
        levels = 2 ** round(8 - 4 * strength) - 1
        expected = low + ((image - low) / (high - low) * levels).round() / levels * (high - low)
        assert len(got[0].unique()) <= levels + 1
    elif name == "solarise":
        expected = torch.where(image > high - strength * (high - low), low + high - image, image)
    else:
        expected = image
    torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-12)


def test_rand_augment_draws_all_operations_alike() -> None:
    """Grey images know one operation less."""
    x = images(3000, 1, 4, 4)
    technique, seen = RandAugment(operations=1, magnitude=7.0), []
    for index in range(2):
        got = change(technique, batch(x), step(index))
        seen.append(float((got == x).flatten(1).all(1).double().mean()))
    # 'nothing' is one of eleven; contrast and the like change every image of random numbers.
    assert np.mean(seen) == pytest.approx(1 / 11, abs=4 * (1 / 11 * 10 / 11 / 6000) ** 0.5)
    twice = change(RandAugment(operations=2), batch(x), step())
    assert twice.isfinite().all()


@pytest.mark.parametrize("operation", ["posterise", "solarise"])
def test_some_operations_keep_the_range(operation: str) -> None:
    x = images()
    for strength in (-1.0, -0.3, 0.0, 0.5, 1.0):
        got = shade(operation, x, torch.full((6,), strength))
        assert bool((got >= x.amin((1, 2, 3), keepdim=True) - ROUNDING).all())
        assert bool((got <= x.amax((1, 2, 3), keepdim=True) + ROUNDING).all())
