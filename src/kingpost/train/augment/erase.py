"""Rectangles of images that are covered up: cutout and random erasing.

Legend of shapes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, between, normal, uniform, whole, with_first


def rectangle(top: Tensor, left: Tensor, height: Tensor, width: Tensor, rows: int, columns: int) -> Tensor:
    """Where each image's rectangle lies, ``(B, 1, rows, columns)`` bool; what reaches outside is cut off.

    Args:
        top: first row, ``(B,)`` int64, may be negative.
        left: first column, alike.
        height: rows of the rectangle, ``(B,)``.
        width: columns, alike.
        rows: of the images.
        columns: of the images.
    """
    down, right = torch.arange(rows, device=top.device), torch.arange(columns, device=top.device)
    in_rows = (down >= top[:, None]) & (down < (top + height)[:, None])
    in_columns = (right >= left[:, None]) & (right < (left + width)[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


@checked
class Cutout(Augmentation):
    """Set a square of ``pixels`` x ``pixels`` to 0, its middle drawn anywhere in the image, so it may be cut off.

    Helps nets that lean on one part of a thing. Fails on small things, which it covers whole. Zero is the mean of
    standardised data. Source: DeVries and Taylor, arXiv 1708.04552.
    """

    pixels: Annotated[int, Ge(0)] = 8
    """Side of the square."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"pixels": 0}
    example: ClassVar[dict[str, Any]] = {"pixels": 3}

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Images with a hole."""
        x = batch.inputs[0]
        _, _, h, w = x.shape
        top, left = (
            whole(step, f"cutout {axis}", batch, size) - self.pixels // 2 for axis, size in (("y", h), ("x", w))
        )
        side = torch.full_like(top, self.pixels)
        return with_first(batch, x.masked_fill(rectangle(top, left, side, side, h, w), 0.0))


@checked
class RandomErasing(Augmentation):
    """With probability ``p``, cover a rectangle of random area, aspect and place with noise or zeros.

    The area is drawn uniformly, the logarithm of the aspect too; a side longer than the image is shortened. Helps
    against things that are partly hidden. Fails on small things, which it covers whole.
    Source: Zhong et al., "Random Erasing Data Augmentation", arXiv 1708.04896.
    """

    p: Annotated[float, Ge(0), Le(1)] = 0.5
    """Probability that an image is changed."""
    smallest: Annotated[float, Ge(0), Le(1)] = 0.02
    """Smallest area, as a part of the image."""
    largest: Annotated[float, Ge(0), Le(1)] = 0.33
    """Largest area."""
    aspect: Annotated[float, Gt(0), Le(1)] = 0.3
    """Height by width is drawn from ``aspect`` to ``1 / aspect``."""
    fill: Literal["noise", "zeros"] = "noise"
    """What covers it: N(0, 1) for each pixel and channel (of standardised data: its own spread), or 0."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}

    def __post_init__(self) -> None:
        if self.smallest > self.largest:
            raise RecipeError(f"got {self.smallest}", path="smallest", mend=f"at most largest={self.largest}")

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Images with a part covered."""
        x = batch.inputs[0]
        _, c, h, w = x.shape
        area = between(step, "erase area", batch, self.smallest, self.largest) * (h * w)
        lean = between(step, "erase aspect", batch, math.log(self.aspect), -math.log(self.aspect)).exp()
        height, width = ((area * lean).sqrt().round().clamp(max=h), (area / lean).sqrt().round().clamp(max=w))
        top = (uniform(step, "erase top", batch) * (h - height + 1)).floor()
        left = (uniform(step, "erase left", batch) * (w - width + 1)).floor()
        covered = rectangle(top.long(), left.long(), height.long(), width.long(), h, w)
        covered &= (uniform(step, "erase", batch) < self.p)[:, None, None, None]
        zeros = self.fill == "zeros"
        cover = x.new_zeros(()) if zeros else normal(step, "erase noise", batch, c, h, w, dtype=x.dtype)
        return with_first(batch, torch.where(covered, cover, x))
