"""Orthogonal weights: they turn a signal and keep its length."""

from __future__ import annotations

import torch
from torch import Tensor

from kingpost.build.initialise.weights import Gain, Weight, WeightFill
from kingpost.option import checked


def orthogonal(shape: tuple[int, int, int], draw: torch.Generator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random matrices ``(G, O, I)`` whose shorter side is orthonormal, each uniform over all such matrices.

    Args:
        shape: ``(G, O, I)``.
        draw: source of the numbers.
        dtype: of the result; half precision is computed in 32 bits.
        device: of the result.

    >>> w = orthogonal((1, 3, 5), torch.Generator().manual_seed(0), torch.float64, torch.device("cpu"))[0]
    >>> torch.allclose(w @ w.T, torch.eye(3, dtype=torch.float64))
    True
    """
    _, o, i = shape
    wide = torch.promote_types(dtype, torch.float32)
    normal = torch.empty(shape, dtype=wide, device=device).normal_(generator=draw)
    q, r = torch.linalg.qr(normal if o >= i else normal.mT)
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None]  # without this, QR's own choice of signs is not uniform
    made: Tensor = q if o >= i else q.mT
    return made.to(dtype)


def in_center(weight: Weight, matrices: Tensor) -> Tensor:
    """Kernels ``(G, O, I, ...)`` that are zero but for their middle, which is ``matrices``.

    The middle of an even kernel is the place before it.
    """
    new = torch.zeros_like(weight.matrices, memory_format=torch.contiguous_format)
    middle = new
    for k in weight.matrices.shape[3:]:
        middle = middle.select(3, (k - 1) // 2)
    middle.copy_(matrices)
    return new


@checked
class Orthogonal(WeightFill):
    """``W W^T = gain^2 I`` (or ``W^T W``, for the shorter side): every direction keeps its length, in any depth.

    Gates of recurrent layers, query, key and value, and groups of a convolution are orthogonal each on its own. A
    kernel is flattened to a matrix. Fails for ReLU at gain 1, which loses half of the signal: use ``auto``.
    Source: Saxe, McClelland and Ganguli, arXiv 1312.6120.
    """

    gain: Gain = 1.0
    """Factor on the matrix; ``auto`` takes that of the activation that follows each layer."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Orthogonal."""
        w = weight.matrices
        return gain * orthogonal(weight.flat, draw, w.dtype, w.device).view(w.shape), f"{self.name}{because}"


@checked
class DeltaOrthogonal(WeightFill):
    """Convolutions that are an orthogonal matrix at the middle of the kernel and zero elsewhere: exact isometries.

    Length is kept at stride 1, odd kernels and no fewer outputs than inputs; with fewer, only the rows are
    orthonormal. Linear and recurrent layers are orthogonal. Source: Xiao et al., arXiv 1806.05393.
    """

    gain: Gain = 1.0
    """Factor on the matrix; ``auto`` takes that of the activation that follows each layer."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Orthogonal in the middle."""
        w = weight.matrices
        g, o, i = w.shape[:3]
        new = gain * orthogonal((g, o, i), draw, w.dtype, w.device)
        if w.ndim == 3:
            return new, f"orthogonal{because}"
        note = " (fewer outputs than inputs: only the rows are orthonormal)" if o < i else ""
        return in_center(weight, new), f"{self.name}{note}{because}"
