"""RandAugment: a few operations on each image, drawn from a fixed list, all of one strength.

Legend of shapes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, over, uniform, whole, with_first
from kingpost.train.augment.colour import contrast, saturation
from kingpost.train.augment.geometry import warp

GEOMETRIC = ("rotate", "shear right", "shear down", "shift right", "shift down")
COLOURS = ("brightness", "contrast", "sharpness", "posterise", "solarise")
OPERATIONS = ("nothing", *GEOMETRIC, *COLOURS, "saturation")  # the last one for three channels only


def operate(x_bchw: Tensor, operation_b: Tensor, strength_b: Tensor) -> Tensor:
    """One operation on each image.

    Args:
        x_bchw: images.
        operation_b: which of ``OPERATIONS``, int64.
        strength_b: -1..1; the sign is the direction, where an operation has one.
    """
    n = len(OPERATIONS) if x_bchw.shape[1] == 3 else len(OPERATIONS) - 1
    strength_b = strength_b.to(x_bchw.dtype)
    moves = over((operation_b >= 1) & (operation_b <= len(GEOMETRIC)), x_bchw)
    out = torch.where(moves, _moved(x_bchw, operation_b, strength_b), x_bchw)
    for number in range(1 + len(GEOMETRIC), n):
        out = torch.where(over(operation_b == number, x_bchw), shade(OPERATIONS[number], x_bchw, strength_b), out)
    return out


def _moved(x: Tensor, operation_b: Tensor, strength_b: Tensor) -> Tensor:
    _, _, h, w = x.shape
    turn, lean_right, lean_down, right, down = (
        strength_b * (operation_b == number) * largest
        for number, largest in enumerate((math.radians(30), 0.3, 0.3, 0.45 * w, 0.45 * h), start=1)
    )
    cos, sin = turn.cos(), turn.sin()  # at most one of the five is not zero, so they need not be multiplied
    matrix = torch.stack([torch.stack([cos, sin + lean_right], -1), torch.stack([lean_down - sin, cos], -1)], -2)
    return warp(x, matrix, torch.stack([right, down], -1))


def shade(operation: str, x_bchw: Tensor, strength_b: Tensor) -> Tensor:
    """Images in other colours; "black" and "white" are each image's own smallest and largest value.

    Args:
        operation: of ``COLOURS``, or saturation.
        x_bchw: images.
        strength_b: -1..1.
    """
    factor = 1 + 0.9 * strength_b
    black, white = x_bchw.amin((1, 2, 3), keepdim=True), x_bchw.amax((1, 2, 3), keepdim=True)
    amount = over(strength_b.abs(), x_bchw)
    if operation == "brightness":
        return black + over(factor, x_bchw) * (x_bchw - black)
    if operation == "contrast":
        return contrast(x_bchw, factor)
    if operation == "saturation":
        return saturation(x_bchw, factor)
    if operation == "sharpness":
        smooth = _smooth(x_bchw)
        return smooth + over(factor, x_bchw) * (x_bchw - smooth)
    if operation == "posterise":  # 8 bits at strength 0, 4 bits at strength 1
        steps = 2 ** (8 - 4 * amount).round() - 1
        spread = (white - black).clamp(min=1e-12)
        return black + ((x_bchw - black) / spread * steps).round() / steps * spread
    assert operation == "solarise", operation
    threshold = white - amount * (white - black)
    return torch.where(x_bchw > threshold, black + white - x_bchw, x_bchw)


def _smooth(x: Tensor) -> Tensor:
    """The mean of each pixel (five times) and its eight neighbours; the border is left as it is."""
    c = x.shape[1]
    if min(x.shape[2:]) < 3:
        return x
    kernel = x.new_ones(c, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, kernel / 13, groups=c)
    return smooth


@checked
class RandAugment(Augmentation):
    """Apply ``operations`` operations, drawn anew for each image, all of strength ``magnitude`` of 10.

    Of: nothing, turn (30 degrees at 10), shear (0.3) and shift (0.45 of the side) in both directions, brightness,
    contrast, saturation (factor 1 +- 0.9), sharpness (the same), posterise (to 4 bits), solarise. The paper's
    equalise and auto-contrast are left out: they undo shifts and scales that standardised data do not show. Helps
    image classifiers, with two numbers to tune. Fails where one of these changes the class; costs about ten simple
    passes over the batch for each operation. Source: Cubuk et al., arXiv 1909.13719.
    """

    operations: Annotated[int, Ge(0)] = 2
    """How many, one after the other."""
    magnitude: Annotated[float, Ge(0), Le(10)] = 5.0
    """Strength of all of them; 10 is the strongest."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"operations": 0}

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Images after their operations."""
        x = batch.inputs[0]
        count = len(OPERATIONS) if x.shape[1] == 3 else len(OPERATIONS) - 1
        for number in range(self.operations):
            operation = whole(step, f"rand-augment {number}", batch, count)
            sign = torch.where(uniform(step, f"rand-augment sign {number}", batch) < 0.5, -1.0, 1.0)
            x = operate(x, operation, sign * (self.magnitude / 10))
        return with_first(batch, x)
