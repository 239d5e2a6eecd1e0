"""Brightness, contrast, saturation and hue of whole batches of images.

Legend of shapes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, between, check_range, clamped, over, with_first

# Brightness Y and the two colour axes I and Q of red, green and blue, as the NTSC standard of 1953 rounds them.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def contrast(x: Tensor, factor_b: Tensor) -> Tensor:
    """Each image's distance from its own mean (over all pixels and channels) times its factor."""
    mean = x.mean(tuple(range(1, x.ndim)), keepdim=True)
    return mean + over(factor_b, x) * (x - mean)


def grey(x_b3hw: Tensor) -> Tensor:
    """The brightness ``0.299 R + 0.587 G + 0.114 B``, ``(B, 1, H, W)``."""
    weights = x_b3hw.new_tensor(YIQ[0])
    return (x_b3hw * weights[:, None, None]).sum(1, keepdim=True)


def saturation(x_b3hw: Tensor, factor_b: Tensor) -> Tensor:
    """Each image's distance from its own grey times its factor; 0 gives grey."""
    plain = grey(x_b3hw)
    return plain + over(factor_b, x_b3hw) * (x_b3hw - plain)


def hue(x_b3hw: Tensor, turn_b: Tensor) -> Tensor:
    """Colours turned about the axis of grey in YIQ space, by an angle in radians; brightness stays the same."""
    to = torch.tensor(YIQ, dtype=torch.float64)
    back = torch.linalg.inv(to)
    cos, sin, none = turn_b.double().cos(), turn_b.double().sin(), torch.zeros_like(turn_b, dtype=torch.float64)
    rows = ((none + 1, none, none), (none, cos, -sin), (none, sin, cos))
    in_yiq = torch.stack([torch.stack(row, -1) for row in rows], -2)
    turned = (back.to(in_yiq.device) @ in_yiq @ to.to(in_yiq.device)).to(x_b3hw.dtype)
    return torch.bmm(turned, x_b3hw.flatten(2)).view_as(x_b3hw)


@checked
class Colour(Augmentation):
    """Change each image's brightness (``x + b``), contrast, saturation and hue, in this order, each by its own draw.

    On standardised channels all four act on the standardised numbers. Helps where light and cameras differ. Fails
    where the colour is the class (ripe and unripe). Source: Howard, arXiv 1312.5402; the hue as a turn in YIQ space.
    """

    brightness: Annotated[float, Ge(0)] = 0.2
    """Largest shift of all pixels of an image, in the unit of the data (standard deviations, if standardised)."""
    contrast: Annotated[float, Ge(0), Le(1)] = 0.2
    """The factor on the distance from the image's mean is drawn from 1 - contrast .. 1 + contrast."""
    saturation: Annotated[float, Ge(0), Le(1)] = 0.0
    """The factor on the distance from grey is drawn from 1 - saturation .. 1 + saturation; needs three channels."""
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """Largest turn of the colours, as a part of the whole circle; needs three channels."""
    low: float | None = None
    """Smallest value that the result may have, in the unit of the data; null is no bound."""
    high: float | None = None
    """Largest value, alike."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {
        "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "low": None, "high": None,
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_range(self.low, self.high)

    def check(self, data: DataFacts) -> None:
        """Saturation and hue need red, green and blue."""
        channels = data.inputs[0][0][0]
        if channels != 3 and (self.saturation or self.hue):
            field = "saturation" if self.saturation else "hue"
            raise RecipeError(f"needs three channels, these images have {channels}", path=field, mend=f"{field}=0")

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Images in another light."""
        x = batch.inputs[0]

        def draw(purpose: str, largest: float, middle: float = 0.0) -> Tensor:
            return between(step, f"colour {purpose}", batch, middle - largest, middle + largest, dtype=x.dtype)

        x = x + over(draw("brightness", self.brightness), x)
        x = contrast(x, draw("contrast", self.contrast, middle=1.0))
        if self.saturation:
            x = saturation(x, draw("saturation", self.saturation, middle=1.0))
        if self.hue:
            x = hue(x, draw("hue", 2 * math.pi * self.hue))
        return with_first(batch, clamped(x, self.low, self.high))
