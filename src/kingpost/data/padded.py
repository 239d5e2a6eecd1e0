"""Sequences of different lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(lines: Sequence[Sequence[int]], length: int, filler: int) -> Tensor:
    """Lines of tokens as rows ``(N, length)`` int64; none may be longer.

    >>> padded([[5, 6], [7]], length=3, filler=0)
    tensor([[5, 6, 0],
            [7, 0, 0]])
    """
    rows = torch.full((len(lines), length), filler, dtype=torch.int64)
    sizes = torch.tensor([len(line) for line in lines], dtype=torch.int64)
    flat = torch.tensor([token for line in lines for token in line], dtype=torch.int64)
    rows[torch.arange(length) < sizes[:, None]] = flat
    return rows
