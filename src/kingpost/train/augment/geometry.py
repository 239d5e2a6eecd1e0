"""Rotation, shift, scale and shear of whole batches of images, by one resampling.

Legend of shapes: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, between, with_first

Padding = Literal["zeros", "border"]


def matrix(turn: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """``scale * turn * shear`` as ``(B, 2, 2)``, for vectors (right, down).

    Args:
        turn: angle in radians, ``(B,)``; positive is counter-clockwise to the eye.
        scale: factor on lengths, ``(B,)``.
        shear: angle in radians by which upright lines lean, ``(B,)``.
    """
    cos, sin, lean = turn.cos(), turn.sin(), shear.tan()
    first = torch.stack([cos, cos * lean + sin], -1)
    second = torch.stack([-sin, cos - sin * lean], -1)
    return scale[:, None, None] * torch.stack([first, second], -2)


def warp(x_bchw: Tensor, matrix_b22: Tensor, shift_b2: Tensor, padding: Padding = "zeros") -> Tensor:
    """Images whose content is moved by ``p -> matrix p + shift``, with ``p`` measured from the middle.

    Each new pixel is read at the place that moves onto it, bilinearly from the four pixels around.

    Args:
        x_bchw: images.
        matrix_b22: of vectors (right, down), in pixels; must have an inverse.
        shift_b2: (right, down) in pixels.
        padding: what is read outside: zeros, or the nearest pixel of the border.
    """
    _, _, h, w = x_bchw.shape
    kind = {"dtype": x_bchw.dtype, "device": x_bchw.device}
    middle = torch.tensor([(w - 1) / 2, (h - 1) / 2], **kind)  # type: ignore[arg-type]
    columns, rows = torch.meshgrid(torch.arange(w, **kind), torch.arange(h, **kind), indexing="xy")  # type: ignore[call-overload]
    p_hw2 = torch.stack([columns, rows], -1) - middle
    moved = p_hw2 - shift_b2.to(x_bchw.dtype)[:, None, None]
    inverse = _inverse(matrix_b22).to(x_bchw.dtype)[:, None, None]
    source = (inverse * moved[..., None, :]).sum(-1) + middle
    grid = (2 * source + 1) / torch.tensor([w, h], **kind) - 1  # type: ignore[arg-type]
    return F.grid_sample(x_bchw, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _inverse(m_b22: Tensor) -> Tensor:
    (a, b), (c, d) = (row.unbind(-1) for row in m_b22.unbind(-2))
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    return adjugate / (a * d - b * c)[:, None, None]


@checked
class Rotate(Augmentation):
    """Turn each image about its middle by an angle from U(-degrees, degrees).

    Helps where things lean this way or that. Fails where the angle means something (6 and 9), and blurs images of
    few pixels. Source: common practice; Simard, Steinkraus and Platt, ICDAR 2003.
    """

    degrees: Annotated[float, Ge(0), Le(180)] = 15.0
    """Largest angle, either way."""
    padding: Padding = "zeros"
    """What comes in from outside: zeros (the mean of standardised data), or the pixels of the border."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"degrees": 0.0}

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Turned images."""
        x = batch.inputs[0]
        largest = math.radians(self.degrees)
        turn = between(step, "rotate", batch, -largest, largest, dtype=x.dtype)
        moved = matrix(turn, torch.ones_like(turn), torch.zeros_like(turn))
        return with_first(batch, warp(x, moved, x.new_zeros(len(x), 2), self.padding))


@checked
class Affine(Augmentation):
    """Shear, scale, turn and shift each image: ``p -> s R(a) S(b) p + t``, each drawn uniformly.

    Helps where size, place and slant of things vary. Fails where they mean something; strong shifts and scales push
    things out of the image. Source: Simard, Steinkraus and Platt, ICDAR 2003.
    """

    degrees: Annotated[float, Ge(0), Le(180)] = 10.0
    """Largest angle, either way."""
    translate: Annotated[float, Ge(0), Le(1)] = 0.1
    """Largest shift, as a part of the width (right) and of the height (down)."""
    scale: Annotated[float, Ge(0), Lt(1)] = 0.1
    """The factor on the size is drawn from 1 - scale .. 1 + scale."""
    shear: Annotated[float, Ge(0), Lt(90)] = 5.0
    """Largest angle in degrees by which upright lines lean."""
    padding: Padding = "zeros"
    """What comes in from outside: zeros (the mean of standardised data), or the pixels of the border."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0}

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Moved images."""
        x = batch.inputs[0]
        _, _, h, w = x.shape

        def draw(purpose: str, largest: float, middle: float = 0.0) -> Tensor:
            return between(step, f"affine {purpose}", batch, middle - largest, middle + largest, dtype=x.dtype)

        turn, lean = draw("turn", math.radians(self.degrees)), draw("shear", math.radians(self.shear))
        shift = torch.stack([draw("right", self.translate * w), draw("down", self.translate * h)], -1)
        moved = warp(x, matrix(turn, draw("scale", self.scale, middle=1.0), lean), shift, self.padding)
        return with_first(batch, moved)
