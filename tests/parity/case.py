"""One comparison with an implementation that none of us wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Largest relative errors, as :func:`relative` gives them."""

    outputs: float
    gradients: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared with what.

    Args:
        ours: the net or block and its options, as a reader would write it.
        reference: library and class that it is compared with.
        needs: module that must be installed, for the skip.
        compare: copies the weights over and compares; in 64 bits where the reference can.
        tolerance: on both errors.
        why: where the tolerance comes from.
    """

    ours: str
    reference: str
    needs: str
    compare: Callable[[], Errors]
    tolerance: float
    why: str


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a fraction of the largest value of the reference."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))


def largest(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest relative error over pairs of (ours, theirs)."""
    return max(relative(a, b) for a, b in pairs)
