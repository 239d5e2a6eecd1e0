"""Gaussian blur of whole batches of images.

Legend of shapes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, between, uniform, with_first


def gaussian_blur(x_bchw: Tensor, sigma_b: Tensor, radius: int) -> Tensor:
    """Each image under its own bell curve, cut off at ``radius`` pixels; outside, the border's pixels go on.

    Args:
        x_bchw: images.
        sigma_b: standard deviation in pixels, above 0, ``(B,)``.
        radius: pixels on either side that count.
    """
    b, c, h, w = x_bchw.shape
    places = torch.arange(-radius, radius + 1, dtype=x_bchw.dtype, device=x_bchw.device)
    curve = (-(places**2) / (2 * sigma_b[:, None].to(x_bchw.dtype) ** 2)).exp()
    kernels = (curve / curve.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None]
    x = F.pad(x_bchw, [radius] * 4, mode="replicate").reshape(1, b * c, h + 2 * radius, w + 2 * radius)
    x = F.conv2d(x, kernels[:, :, :, None], groups=b * c)
    return F.conv2d(x, kernels[:, :, None, :], groups=b * c).view(b, c, h, w)


@checked
class GaussianBlur(Augmentation):
    """With probability ``p``, blur an image with a Gaussian of ``sigma`` drawn uniformly, cut off at 3 sigma.

    Helps where sharpness varies, and in contrastive learning. Fails where the class is in fine texture.
    Source: Chen et al. (SimCLR), arXiv 2002.05709, appendix A.
    """

    p: Annotated[float, Ge(0), Le(1)] = 0.5
    """Probability that an image is changed."""
    smallest: Annotated[float, Gt(0)] = 0.1
    """Smallest sigma in pixels."""
    largest: Annotated[float, Gt(0)] = 1.0
    """Largest sigma in pixels."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}

    def __post_init__(self) -> None:
        if self.smallest > self.largest:
            raise RecipeError(f"got {self.smallest}", path="smallest", mend=f"at most largest={self.largest}")

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Blurred images."""
        x = batch.inputs[0]
        sigma = between(step, "blur sigma", batch, self.smallest, self.largest, dtype=x.dtype)
        chosen = uniform(step, "blur", batch) < self.p
        blurred = gaussian_blur(x, sigma, math.ceil(3 * self.largest))
        return with_first(batch, torch.where(chosen[:, None, None, None], blurred, x))
