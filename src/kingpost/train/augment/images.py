"""Flips and crops of whole batches of images, on the device.

Legend of shapes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from kingpost.assembly import Assembly, Batch, Slot, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique


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


def uniform(step: Step, purpose: str, batch: Batch) -> Tensor:
    """A number in [0, 1) for each sample, ``(B,)``: drawn for the global batch, so that pieces agree with the whole."""
    device = batch.targets.device
    drawn = torch.rand(batch.total, generator=step.generator(purpose, device), device=device)
    return drawn[batch.first : batch.first + len(batch)]


def _check_images(assembly: Assembly) -> None:
    shape = assembly.setting.data.inputs[0][0]
    if len(shape) != 3:
        raise RecipeError(
            f"needs images (channels, rows, columns), but a sample has the shape {shape}", mend="remove it"
        )


@checked
class Flip(Technique):
    """Mirror each image left to right with probability ``p``.

    Fails where left and right mean something (digits, text). Source: common practice; Krizhevsky et al., 2012.
    """

    p: Annotated[float, Ge(0), Le(1)] = 0.5
    """Probability."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"batch"})
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose training images are flipped."""
        _check_images(assembly)
        inner = assembly.batch

        def flipped(batch: Batch, step: Step) -> Batch:
            batch = inner(batch, step)
            images, *others = batch.inputs
            return batch.with_(inputs=(flip(images, uniform(step, "flip", batch) < self.p), *others))

        return assembly.with_(batch=flipped)


@checked
class Crop(Technique):
    """Shift each image by up to ``pixels`` in both directions, zeros coming in.

    Fails where the position means something. Source: common practice; He et al., arXiv 1512.03385.
    """

    pixels: Annotated[int, Ge(0)] = 2
    """Largest shift."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"batch"})
    neutral: ClassVar[dict[str, Any]] = {"pixels": 0}
    example: ClassVar[dict[str, Any]] = {"pixels": 1}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose training images are shifted."""
        _check_images(assembly)
        inner, places = assembly.batch, 2 * self.pixels + 1

        def cropped(batch: Batch, step: Step) -> Batch:
            batch = inner(batch, step)
            images, *others = batch.inputs
            down, right = (
                (uniform(step, f"crop {axis}", batch) * places).long().clamp(max=places - 1)
                for axis in ("down", "right")
            )
            return batch.with_(inputs=(crop(images, down, right, self.pixels), *others))

        return assembly.with_(batch=cropped)
