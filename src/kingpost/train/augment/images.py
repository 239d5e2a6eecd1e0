"""Flips and crops of whole batches of images, on the device.

Legend of shapes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, uniform, with_first


def flip(x_bchw: Tensor, chosen: Tensor) -> Tensor:
    """The chosen images mirrored left to right; ``chosen`` is ``(B,)`` bool."""
    return torch.where(chosen[:, None, None, None], x_bchw.flip(-1), x_bchw)


def crop(x_bchw: Tensor, down: Tensor, right: Tensor, pixels: int) -> Tensor:
    """Each image padded by ``pixels`` zeros on all sides, and cut out at its own place.

    Args:
        x_bchw: images.
        down: ``(B,)`` row of the cut in the padded image, 0..2 * pixels; ``pixels`` is the middle.
        right: ``(B,)`` column of the cut, alike.
        pixels: width of the padding.
    """
    b, _, h, w = x_bchw.shape
    padded = F.pad(x_bchw, [pixels] * 4)
    rows = down[:, None] + torch.arange(h, device=x_bchw.device)
    columns = right[:, None] + torch.arange(w, device=x_bchw.device)
    images = torch.arange(b, device=x_bchw.device)
    return padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@checked
class Flip(Augmentation):
    """Mirror each image left to right with probability ``p``.

    Helps where a mirrored sample could have been in the data (photographs of things). Fails where left and right
    mean something (digits, text). Source: common practice; Krizhevsky et al., 2012.
    """

    p: Annotated[float, Ge(0), Le(1)] = 0.5
    """Probability."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Flipped images."""
        return with_first(batch, flip(batch.inputs[0], uniform(step, "flip", batch) < self.p))


@checked
class Crop(Augmentation):
    """Shift each image by up to ``pixels`` in both directions, zeros coming in.

    Helps where things may stand anywhere in the image. Fails where the position means something.
    Source: common practice; He et al., arXiv 1512.03385.
    """

    pixels: Annotated[int, Ge(0)] = 2
    """Largest shift."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"pixels": 0}
    example: ClassVar[dict[str, Any]] = {"pixels": 1}

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Shifted images."""
        places = 2 * self.pixels + 1
        down, right = (
            (uniform(step, f"crop {axis}", batch) * places).long().clamp(max=places - 1) for axis in ("down", "right")
        )
        return with_first(batch, crop(batch.inputs[0], down, right, self.pixels))
