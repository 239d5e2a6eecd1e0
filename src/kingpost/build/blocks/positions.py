"""Positions: learned, sinusoidal and rotary embeddings, and biases on attention scores (T5, ALiBi).

Legend of shapes: ``B`` sequences, ``T`` positions of queries, ``S`` positions of keys, ``D`` width, ``H`` heads,
``d`` width of one head. Positions are int64, ``(T,)`` for all sequences alike or ``(B, T)`` for each its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]


class LearnedPositions(nn.Embedding):
    """One trained vector for each of the ``context`` positions: ``(T,)`` to ``(T, D)``."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__(context, width)


class SinusoidalPositions(nn.Module):
    """Fixed waves: ``sin(p w_i)`` at entry ``2i``, ``cos(p w_i)`` at ``2i + 1``, with ``w_i = base^(-2i / D)``.

    Has no parameters and no last position. Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762.

    Args:
        width: ``D``, even.
        base: of the wavelengths, which run from 2 pi to 2 pi times this.

    >>> (SinusoidalPositions(4)(torch.tensor([0, 1])) * 1000).int().tolist()
    [[0, 1000, 0, 1000], [841, 540, 9, 999]]
    """

    def __init__(self, width: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.width, self.base = _even(width, "width"), base

    def forward(self, positions: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``(..., T)`` to ``(..., T, D)`` in ``dtype``, by default the current one of torch."""
        dtype = dtype or torch.get_default_dtype()
        angles = _angles(positions, self.width, self.base, dtype)
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(dtype)


class Rotary(nn.Module):
    """Turns queries and keys by an angle that grows with the position, so that scores see only distances.

    Entries ``i`` and ``i + d/2`` of a head are turned by ``p base^(-2i / d)`` (the half-split order of Llama).
    Source: Su et al., "RoFormer", arXiv 2104.09864.

    Args:
        head_width: ``d``, even.
        base: of the wavelengths; a longer context wants a larger one.

    >>> turn = Rotary(2)(torch.tensor([0, 1]))
    >>> (rotate(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), turn) * 1000).int().tolist()
    [[1000, 0], [540, 841]]
    """

    def __init__(self, head_width: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.head_width, self.base = _even(head_width, "head width"), base

    def forward(self, positions: Tensor, dtype: torch.dtype | None = None) -> Rotation:
        """Cosines and sines, ``(T, d/2)`` or ``(B, 1, T, d/2)``; made once for all layers."""
        angles = _angles(positions, self.head_width, self.base, dtype or torch.get_default_dtype())
        angles = angles.unsqueeze(1) if positions.ndim == 2 else angles  # the same for all heads
        return angles.cos(), angles.sin()


def rotate(x_bhtd: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys ``(B, H, T, d)``, turned by what :class:`Rotary` gives."""
    cos, sin = rotation
    a, b = x_bhtd.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x_bhtd.dtype)


class RelativeBias(nn.Module):
    """A trained number for each head and bucket of distances, added to the scores.

    Half of the buckets hold one distance each, the rest ever wider ranges up to ``furthest``, and the last also
    everything beyond. Source: Raffel et al. (T5), arXiv 1910.10683.

    Args:
        heads: ``H``.
        buckets: how many; with ``both_ways``, half of them for each direction.
        furthest: distance from which all share one bucket.
        both_ways: whether keys after the query have buckets of their own (encoder), or count as distance 0.

    >>> RelativeBias(4)(torch.arange(3), torch.arange(5)).shape
    torch.Size([4, 3, 5])
    """

    def __init__(self, heads: int, buckets: int = 32, furthest: int = 128, both_ways: bool = True) -> None:
        super().__init__()
        self.buckets, self.furthest, self.both_ways = buckets, furthest, both_ways
        self.values = nn.Embedding(buckets, heads)

    def bucket(self, distance: Tensor) -> Tensor:
        """The bucket of each distance, key minus query."""
        half = self.buckets // 2 if self.both_ways else self.buckets
        offset = (distance > 0).long() * half if self.both_ways else torch.zeros_like(distance)
        n = distance.abs() if self.both_ways else (-distance).clamp(min=0)
        exact = half // 2
        growth = (n.clamp(min=1).float() / exact).log() / math.log(self.furthest / exact)
        far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
        return offset + torch.where(n < exact, n, far)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions ``(T,)`` and ``(S,)`` to a bias ``(H, T, S)``."""
        bias: Tensor = self.values(self.bucket(keys - queries[:, None]))
        return bias.permute(2, 0, 1)


def alibi(heads: int, queries: Tensor, keys: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A bias ``(H, T, S)`` that falls linearly with distance, with a fixed slope for each head.

    The slopes are ``2^(-8/H), 2^(-16/H), ...``. Source: Press, Smith and Lewis, arXiv 2108.12409.

    Args:
        heads: ``H``, a power of two.
        queries: positions ``(T,)``.
        keys: positions ``(S,)``.
        dtype: of the bias; by default the current one of torch.

    >>> alibi(2, torch.arange(2), torch.arange(3))[0].abs().tolist()
    [[0.0, 0.0625, 0.125], [0.0625, 0.0, 0.0625]]
    """
    if heads & (heads - 1):
        raise ValueError(f"the slopes of ALiBi are defined for a power of two of heads, got {heads}; use 4, 8 or 16")
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)], dtype=dtype, device=queries.device)
    return -slopes[:, None, None] * (keys - queries[:, None]).abs()


def _angles(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> Tensor:
    """``(..., T, width / 2)``, in 32 bits or more: half precision cannot tell position 257 from 256."""
    dtype = torch.promote_types(dtype, torch.float32)
    frequencies = base ** -(torch.arange(0, width, 2, dtype=dtype, device=positions.device) / width)
    return positions.to(dtype)[..., None] * frequencies


def _even(width: int, what: str) -> int:
    if width % 2:
        raise ValueError(f"the {what} is turned or waved in pairs, so it must be even, got {width}; use {width + 1}")
    return width
