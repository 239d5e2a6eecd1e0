"""Views: changed copies of samples that still show the same thing.

Legend of shapes: ``B`` samples, ``C`` channels, ``H`` rows, ``W`` columns, ``T`` steps, ``F`` features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kingpost.assembly import Batch

Draws = tuple[Tensor, ...]


def drawn(batch: Batch, draw: torch.Generator, numbers: int) -> Tensor:
    """So many numbers in [0, 1) for each sample, ``(B, numbers)``: drawn for the global batch, then its own rows."""
    everything = torch.rand(batch.total, numbers, generator=draw, device=batch.targets.device)
    return everything[batch.first : batch.first + len(batch)]


def view(batch: Batch, draw: torch.Generator, crop: float, jitter: float, flip: float) -> Tensor:
    """A view of each sample of the batch's only input, by the number of its axes: image, series or row of numbers."""
    (x,) = batch.inputs
    u = drawn(batch, draw, 8).to(x.dtype)
    if x.ndim == 4:
        return jittered(resized_crop(x, u[:, :5], crop, flip), u[:, 5:7], jitter)
    if x.ndim == 3:
        return jittered(stretched(x, u[:, :2], crop), u[:, 2:4], jitter)
    partners = torch.randperm(len(x), generator=draw, device=x.device)
    return swapped(x, partners, drawn_like(batch, draw), 1 - crop)


def drawn_like(batch: Batch, draw: torch.Generator) -> Tensor:
    """A number in [0, 1) for each number of the first input."""
    x = batch.inputs[0]
    everything = torch.rand(batch.total, *x.shape[1:], generator=draw, device=x.device)
    return everything[batch.first : batch.first + len(batch)]


def resized_crop(x_bchw: Tensor, u: Tensor, smallest: float, flip: float) -> Tensor:
    """A random part of each image, brought back to the full size, and perhaps mirrored.

    Args:
        x_bchw: images.
        u: ``(B, 5)`` numbers in [0, 1): area, proportion, column, row, mirror.
        smallest: least part of the area; 1 takes all of it.
        flip: probability of mirroring left and right.
    """
    area = smallest + (1 - smallest) * u[:, 0]
    proportion = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3)).sqrt() if smallest < 1 else torch.ones_like(area)
    wide, high = (area.sqrt() * proportion).clamp(max=1), (area.sqrt() / proportion).clamp(max=1)
    centre_x, centre_y = (1 - wide) * (2 * u[:, 2] - 1), (1 - high) * (2 * u[:, 3] - 1)
    mirror = torch.where(u[:, 4] < flip, -1.0, 1.0).to(x_bchw.dtype)
    zero = torch.zeros_like(area)
    rows = torch.stack([wide * mirror, zero, centre_x], 1), torch.stack([zero, high, centre_y], 1)
    grid = F.affine_grid(torch.stack(rows, 1), list(x_bchw.shape), align_corners=False)
    return F.grid_sample(x_bchw, grid, padding_mode="reflection", align_corners=False)


def jittered(x: Tensor, u: Tensor, strength: float) -> Tensor:
    """Contrast and brightness changed at random: ``(x - m) c + m + b``, ``c`` in ``1 +- s``, ``b`` in ``+- s`` std.

    Args:
        x: ``(B, ...)``.
        u: ``(B, 2)`` numbers in [0, 1).
        strength: ``s``; 0 changes nothing.
    """
    axes = tuple(range(1, x.ndim))
    mean, std = x.mean(axes, keepdim=True), x.std(axes, keepdim=True)
    contrast, brightness = ((2 * u - 1) * strength).view(len(x), 2, *[1] * (x.ndim - 1)).unbind(1)
    return (x - mean) * (1 + contrast) + mean + brightness * std


def stretched(x_btf: Tensor, u: Tensor, shortest: float) -> Tensor:
    """A random stretch of each series, brought back to the full length by linear interpolation.

    Args:
        x_btf: series.
        u: ``(B, 2)`` numbers in [0, 1): length, place.
        shortest: least part of the length; 1 takes all of it.
    """
    steps = x_btf.shape[1]
    part = (shortest + (1 - shortest) * u[:, 0])[:, None]
    at = (torch.linspace(0, 1, steps, dtype=x_btf.dtype, device=x_btf.device) * part + (1 - part) * u[:, 1:2]) * (
        steps - 1
    )
    low = at.floor().clamp(0, steps - 1)
    high = (low + 1).clamp(max=steps - 1)
    weight = (at - low)[..., None]
    before, after = (x_btf.gather(1, place.long()[..., None].expand(-1, -1, x_btf.shape[2])) for place in (low, high))
    return before * (1 - weight) + after * weight


def swapped(x_bf: Tensor, partners: Tensor, u_bf: Tensor, part: float) -> Tensor:
    """Some numbers of each row replaced by those of another row, as in SCARF (Bahri et al., arXiv 2106.15147)."""
    return torch.where(u_bf < part, x_bf[partners], x_bf)
