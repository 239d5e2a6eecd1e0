"""Long histories, made short enough to draw, without losing a spike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BINS = 500  # a lowest and a highest value each, so 1,000 points
WINDOWS = 40  # the running mean spans this part of the history


@dataclass(frozen=True)
class Thinned:
    """A history in bins.

    Args:
        steps: the middle of each bin.
        low: the smallest value in it.
        high: the greatest value in it.
        mean: the running mean over ``window`` steps, at the middle.
        per_bin: steps in a bin; 1 if nothing was thinned.
        window: steps that the running mean spans.
        left_out: steps whose value cannot be drawn (not finite, or not positive on a log axis).
    """

    steps: Array
    low: Array
    high: Array
    mean: Array
    per_bin: int
    window: int
    left_out: int

    def caption(self) -> str:
        """What was done to the history, in words; empty if nothing was."""
        parts = []
        if self.per_bin > 1:
            parts.append(f"Drawn as lowest and highest value of every {self.per_bin} steps.")
        if self.left_out:
            parts.append(f"{self.left_out:,} steps without a value that can be drawn are left out.")
        return " ".join(parts)


def thin(steps: Array, values: Array, positive: bool = False) -> Thinned:
    """A history in at most ``BINS`` bins, or as it is if it is short.

    >>> thinned = thin(np.arange(4000.0), np.arange(4000.0))
    >>> thinned.per_bin, thinned.low[0], thinned.high[0]
    (8, np.float64(0.0), np.float64(7.0))
    """
    fine = np.isfinite(values) & (values > 0 if positive else True)
    steps, kept = steps[fine], values[fine]
    window = max(1, len(kept) // WINDOWS)
    mean = _running_mean(kept, window)
    per_bin = 1 if len(kept) <= 2 * BINS else -(-len(kept) // BINS)
    starts = np.arange(0, len(kept), per_bin)
    middle = np.minimum(starts + per_bin // 2, len(kept) - 1)
    return Thinned(
        steps=steps[middle],
        low=np.minimum.reduceat(kept, starts) if len(kept) else kept,
        high=np.maximum.reduceat(kept, starts) if len(kept) else kept,
        mean=mean[middle],
        per_bin=per_bin,
        window=window,
        left_out=int((~fine).sum()),
    )


def _running_mean(values: Array, window: int) -> Array:
    """The mean over ``window`` values around each one; at the ends, over those that there are."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(at - window // 2, 0), np.minimum(at + (window + 1) // 2, len(values))
    mean: Array = (sums[last] - sums[first]) / (last - first)
    return mean
