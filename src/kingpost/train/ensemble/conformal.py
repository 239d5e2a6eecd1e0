"""Conformal prediction: sets and intervals that hold the truth with a stated probability.

A score says how badly a target fits a sample. The bound is the ``k``-th smallest score of ``n`` held-out samples,
``k = ceil((n + 1)(1 - alpha))``. If these and a new sample are exchangeable, the set of all targets whose score is
within the bound holds the truth with probability at least ``1 - alpha``, whatever the net is. Given the bound, the
coverage itself is distributed as ``Beta(k, n + 1 - k)``.

Legend of shapes: ``B`` samples, ``C`` classes.
Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Angelopoulos and Bates,
arXiv 2107.07511.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

SetMethod = Literal["aps", "raps", "lac"]


def bound(scores_n: Tensor, alpha: float) -> float:
    """The ``ceil((n + 1)(1 - alpha))``-th smallest score; infinite where ``n`` is too small for such a coverage.

    >>> bound(torch.arange(1.0, 10.0), 0.2), bound(torch.arange(1.0, 10.0), 0.05)
    (8.0, inf)
    """
    rank = rank_of(len(scores_n), alpha)
    return float(scores_n.sort().values[rank - 1]) if rank <= len(scores_n) else math.inf


def rank_of(samples: int, alpha: float) -> int:
    """Which of the sorted scores is the bound, counted from 1."""
    return math.ceil((samples + 1) * (1 - alpha) - 1e-9)  # 10 * (1 - 0.1) is a little more than 9


def class_scores(
    probabilities_bc: Tensor,
    method: SetMethod = "aps",
    seed: int = 0,
    penalty: float = 0.01,
    free: int = 5,
) -> Tensor:
    """How badly each class fits, ``(B, C)``.

    Args:
        probabilities_bc: of each class.
        method: ``lac``: ``1 - p`` (smallest sets on average, but easy samples pay for hard ones; sets can be empty).
            ``aps``: the probability of all likelier classes and a random part ``u`` of the class's own (sets grow with
            the difficulty). ``raps``: the same and a penalty on ranks beyond ``free``, against very long sets.
        seed: of ``u``, one number a sample.
        penalty: for each rank beyond ``free``.
        free: so many ranks cost nothing.

    Source: Sadinle, Lei and Wasserman, arXiv 1609.00451 (LAC); Romano, Sesia and Candes, arXiv 2006.02544 (APS);
    Angelopoulos et al., arXiv 2009.14193 (RAPS).
    """
    if method == "lac":
        return 1 - probabilities_bc
    sorted_bc, order = probabilities_bc.sort(dim=-1, descending=True, stable=True)
    draw = torch.rand(len(sorted_bc), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = sorted_bc.cumsum(-1) - sorted_bc + draw.to(sorted_bc) * sorted_bc
    if method == "raps":
        ranks = torch.arange(1, scores.shape[-1] + 1).to(scores)
        scores = scores + penalty * (ranks - free).clamp(min=0)
    return torch.empty_like(scores).scatter_(-1, order, scores)


def residual_scores(predicted: Tensor, targets: Tensor) -> Tensor:
    """``|y - f(x)|``: intervals of one width everywhere."""
    return (targets - predicted).abs()


def quantile_scores(low: Tensor, high: Tensor, targets: Tensor) -> Tensor:
    """``max(low - y, y - high)``: how far beyond given quantiles the truth lies; less than 0 between them.

    Source: Romano, Patterson and Candes, "Conformalized Quantile Regression", arXiv 1905.03222.
    """
    return torch.maximum(low - targets, targets - high)


def proportion_interval(hits: int, samples: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion from ``hits`` of ``samples`` independent draws.

    Source: Clopper and Pearson, Biometrika 26, 1934.

    >>> [round(bound, 4) for bound in proportion_interval(9, 10)]
    [0.555, 0.9975]
    """
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _root(lambda p: _upper_tail(hits, samples, p) - tail)
    high = 1.0 if hits == samples else _root(lambda p: _upper_tail(hits + 1, samples, p) - (1 - tail))
    return low, high


def coverage_range(calibration: int, test: int, alpha: float, level: float = 0.95) -> tuple[float, float]:
    """Between which values the coverage measured on ``test`` samples lies with probability ``level``.

    Both samples are random: the hits are beta-binomial, ``BetaBinomial(test, k, n + 1 - k)``, for scores without ties.

    >>> low, high = coverage_range(1000, 1000, 0.1)
    >>> 0.86 < low < 0.9 < high < 0.93
    True
    """
    a = float(rank_of(calibration, alpha))
    b = calibration + 1 - a
    if b <= 0:
        return 1.0, 1.0
    hits = torch.arange(test + 1, dtype=torch.float64)
    log = _log_choose(test, hits) + _log_beta(hits + a, test - hits + b) - _log_beta(torch.tensor(a), torch.tensor(b))
    cumulative = log.exp().cumsum(0)
    tail = (1 - level) / 2
    low, high = (int((cumulative < edge).sum()) for edge in (tail, 1 - tail))
    return low / test, min(high, test) / test


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of a proportion is zero, by halving."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _upper_tail(hits: int, samples: int, p: float) -> float:
    """Probability of at least so many hits."""
    k = torch.arange(hits, samples + 1, dtype=torch.float64)
    return float((_log_choose(samples, k) + k * math.log(p) + (samples - k) * math.log1p(-p)).exp().sum())


def _log_choose(n: int, k: Tensor) -> Tensor:
    return math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
