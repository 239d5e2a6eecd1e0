"""Scales: mean and standard deviation, learned from the training part alone, kept as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CHUNK_ROWS = 4096  # rows that are widened to 64 bits at once
CONSTANT = 1e-10  # a spread this small beside the mean is rounding

Scale = dict[str, list[float]]


def fit(values: Tensor) -> Scale:
    """Mean and (population) standard deviation of each column, channel or feature; the spread of a constant is 1.

    Args:
        values: ``(N,)``, columns ``(N, C)``, series ``(N, T, C)``, images ``(N, C, H, W)`` or clips
            ``(N, T, C, H, W)``; all axes but ``C`` are averaged over.

    >>> fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    {'mean': [2.0, 5.0], 'std': [1.0, 1.0]}
    """
    columns = values if values.ndim > 1 else values[:, None]
    kept = _axis(columns)
    axes = [axis for axis in range(columns.ndim) if axis != kept]
    count = max(1, columns.numel() // max(1, columns.shape[kept]))
    chunks = torch.split(columns, CHUNK_ROWS)
    mean = _total([chunk.double().sum(axes) for chunk in chunks]) / count
    centre = mean.view(-1, *[1] * (columns.ndim - kept - 1))
    variance = _total([(chunk.double() - centre).square().sum(axes) for chunk in chunks]) / count
    std = variance.sqrt()
    std[std <= CONSTANT * mean.abs().clamp(min=1e-30)] = 1.0
    return {"mean": mean.tolist(), "std": std.tolist()}


def apply(values: Tensor, scale: Mapping[str, Sequence[float]]) -> Tensor:
    """Values less their mean, divided by their standard deviation; float32, same shape.

    >>> apply(torch.tensor([1.0, 3.0]), {"mean": [2.0], "std": [0.5]})
    tensor([-2.,  2.])
    """
    shape = [-1, *[1] * (values.ndim - _axis(values) - 1)]
    mean, std = (torch.tensor(scale[key], dtype=torch.float64).view(shape) for key in ("mean", "std"))
    if values.dtype == torch.float64:  # large numbers (years, prices) lose digits if they are narrowed first
        return ((values - mean) / std).float()
    return (values.float() - mean.float()).div_(std.float())


def _axis(values: Tensor) -> int:
    """The axis that has a scale for each of its places: the second, but the third where the second is time."""
    return 2 if values.ndim in (3, 5) else min(1, values.ndim - 1)


def _total(sums: list[Tensor]) -> Tensor:
    return torch.stack(sums).sum(0)
