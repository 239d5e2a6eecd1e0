"""The sequential paired test: look after every pair, and be wrong no more often than was declared.

With ``d_1 ... d_n`` the paired differences (arm minus baseline), ``t_n = mean / (spread / sqrt(n))`` and ``p_n`` the
two-sided p value that an ordinary paired t test would give at look ``n``, the test watches

    U_n = p_n / w_n,    w_n = (n / max_pairs) ** SHAPE,    and asks how small   min over all looks of U_n   may be.

When there is no difference, that minimum has one distribution whatever the spread, because the path ``t_2, t_3, ...``
is a Markov chain free of it: with ``b_n = sum / sqrt(sum of squares)``,

    b_{n+1} = (b_n + r) / sqrt(1 + r ** 2),    r = T_n / sqrt(n),    T_n Student with n degrees, independent of the past.

(The direction of a normal vector is independent of its length; Basu 1955.) So the distribution is integrated
numerically, one dimension at a time, as Armitage, McPherson and Rowe (1969) did for known spread: no simulation, no
normal approximation at three pairs. It yields the boundary for any error rate, p values that stay valid whenever one
looks, and repeated confidence intervals (Jennison and Turnbull 1989).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from kingpost.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Decision = Literal["helps", "hurts", "no difference that matters", "no evidence yet"]

SHAPE = 1.0  # how the error rate is shared out over the looks
FUTILE = 0.05  # stop when a decision by max_pairs is less likely than this
STEP, CELLS = 0.03, 200  # the grid of the integration: width of a cell in normal scores, number of cells


@dataclass(frozen=True)
class Look:
    """What the pairs seen so far say."""

    pairs: int
    decision: Decision
    final: bool
    reason: str
    difference: float
    lower: float
    upper: float
    p: float
    more_pairs: int | None


@dataclass(frozen=True, kw_only=True)
class Test:
    """A sequential paired test, declared before the first run."""

    smallest_effect: float
    alpha: float = 0.05
    power: float = 0.8
    min_pairs: int = 3
    max_pairs: int = 30

    def __post_init__(self) -> None:
        if not (math.isfinite(self.smallest_effect) and self.smallest_effect > 0):
            raise RecipeError(
                f"got {self.smallest_effect}, expected a number above 0", path="smallest_effect", mend="in the metric's unit"
            )
        for name in ("alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise RecipeError(f"got {getattr(self, name)}, expected a number between 0 and 1", path=name)
        if not 2 <= self.min_pairs <= self.max_pairs:
            raise RecipeError(
                f"got min_pairs={self.min_pairs}, max_pairs={self.max_pairs}, expected 2 <= min_pairs <= max_pairs",
                path="min_pairs",
            )

    def look(self, differences: Sequence[float]) -> Look:
        """The verdict of the pairs seen so far; it depends on nothing else."""
        n = len(differences)
        values = settled(differences)
        mean = sum(values) / n if n else 0.0
        if n > self.max_pairs:
            raise RecipeError(f"got {n} pairs, expected at most max_pairs={self.max_pairs}", path="differences")
        if n < self.min_pairs:
            reason = f"{n} of at least {self.min_pairs} pairs"
            return Look(n, "no evidence yet", False, reason, mean, -math.inf, math.inf, 1.0, self.min_pairs - n)
        spread = self.spread(values)
        p = self.p_value(abs(mean) * math.sqrt(n) / spread, n)
        half = self.boundary(n) * spread / math.sqrt(n)
        lower, upper, small = mean - half, mean + half, self.smallest_effect
        if -small < lower and upper < small:
            decision: Decision = "no difference that matters"
            return Look(n, decision, True, f"the interval lies within ±{small:g}", mean, lower, upper, p, 0)
        if lower > 0 or upper < 0:
            decision = "helps" if mean > 0 else "hurts"
            return Look(n, decision, True, f"the interval excludes 0 (p = {p:.2g})", mean, lower, upper, p, 0)
        more = self.planned(differences)
        attainable = more if n + more <= self.max_pairs else None
        if n == self.max_pairs:
            reason, final = f"all {n} pairs are used", True
        else:
            chance = self.chance(mean, spread, n)
            final = chance < FUTILE
            reason = f"a decision by pair {self.max_pairs} has a chance of {chance:.0%}" if final else "goes on"
        return Look(n, "no evidence yet", final, reason, mean, lower, upper, p, attainable)

    def planned(self, differences: Sequence[float]) -> int:
        """About how many more pairs the power at the smallest effect needs, from the spread seen."""
        values = settled(differences)
        normal = NormalDist()
        upper, power = normal.inv_cdf(1 - self.alpha / 2), normal.inv_cdf(self.power)
        effect = self.smallest_effect / self.spread(values) if len(values) > 1 else 1.0
        return max(1, math.ceil(((upper + power) / effect) ** 2 + upper**2 / 2) - len(values))

    def spread(self, values: Sequence[float]) -> float:
        """The standard deviation of the differences, at least a quarter of the smallest effect."""
        mean = sum(values) / len(values)
        seen = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        return max(seen, self.smallest_effect / 4)

    def boundary(self, pairs: int) -> float:
        """The t statistic that decides at this look."""
        level = _level(self.alpha, self.min_pairs, self.max_pairs)
        return student_quantile(level * (pairs / self.max_pairs) ** SHAPE, pairs - 1)

    def p_value(self, t: float, pairs: int) -> float:
        """The p value that stays valid whenever one looks: the smallest alpha at which ``t`` would decide now."""
        import numpy as np

        levels, errors = _errors(self.min_pairs, self.max_pairs)
        level = student_tail(t, pairs - 1) / (pairs / self.max_pairs) ** SHAPE
        return float(np.exp(np.interp(math.log(max(level, 1e-300)), np.log(levels), np.log(errors))))

    def chance(self, mean: float, spread: float, pairs: int) -> float:
        """The predictive chance that ``max_pairs`` pairs decide."""
        last, df = self.max_pairs, pairs - 1
        scale = spread * math.sqrt(1 / pairs - 1 / last)
        half = self.boundary(last) * spread / math.sqrt(last)

        def beyond(x: float) -> float:
            one = student_tail(abs(x) / scale, df) / 2
            return one if x > 0 else 1 - one

        inside = max(self.smallest_effect - half, 0.0)
        effect = beyond(half - mean) + beyond(half + mean)
        none = max(0.0, 1 - beyond(inside - mean) - beyond(inside + mean)) if inside else 0.0
        return effect + none


def settled(differences: Sequence[float]) -> list[float]:
    """The differences with every failed run counted as the largest difference seen."""
    if any(math.isnan(d) for d in differences):
        raise RecipeError("a difference is NaN", path="differences", mend="a failed run is -inf or inf, two are 0.0")
    worst = max((abs(d) for d in differences if math.isfinite(d)), default=0.0) or 1.0
    return [d if math.isfinite(d) else math.copysign(worst, d) for d in differences]


def student_tail(t: float, df: int) -> float:
    """Two-sided tail of Student's t: ``P(|T| >= t)``.

    >>> round(student_tail(2.262, 9), 4)
    0.05
    """
    import numpy as np

    return float(2 * _angle_cdf(np.array([-math.atan(t / math.sqrt(df))]), df)[0])


def student_quantile(p: float, df: int) -> float:
    """The ``t`` with ``P(|T| >= t) = p``.

    >>> round(student_quantile(0.05, 9), 3)
    2.262
    """
    import numpy as np

    return float(_quantiles(np.array([p]), df)[0])


def _quantiles(p: Array, df: int) -> Array:
    import numpy as np

    low, high = np.zeros_like(p), np.full_like(p, math.pi / 2)
    for _ in range(60):
        middle = (low + high) / 2
        above = 2 * _angle_cdf(-middle, df) > p
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(math.sqrt(df) * np.tan((low + high) / 2))


def _angle_cdf(angle: Array, df: int) -> Array:
    """Distribution function of ``atan(T / sqrt(df))``, whose density is as ``cos(angle) ** (df - 1)``."""
    import numpy as np

    cos, sin = np.cos(angle), np.sin(angle)
    if df % 2:
        total, term, first = angle / math.pi, cos * sin / math.pi, 2
    else:
        total, term, first = sin / 2, sin * cos * cos / 4, 3
    for k in range(first, df, 2):
        total = total + term
        term = term * cos * cos * (k / (k + 1))
    return np.asarray(np.clip(0.5 + total, 0, 1))


@lru_cache(maxsize=64)
def _errors(min_pairs: int, max_pairs: int) -> tuple[Array, Array]:
    """For a grid of levels: the chance, without a difference, that ``p_n <= level * w_n`` at any look."""
    import numpy as np

    normal = NormalDist()
    levels = np.geomspace(1e-7, 1.0, 71)
    edges = np.append(np.arange(CELLS) * STEP, 8.0)
    below = np.array([2 * normal.cdf(z) - 1 for z in edges])
    centres = (edges[:-1] + STEP / 2)
    tails = np.array([2 * normal.cdf(-z) for z in edges])
    middle = np.array([2 * normal.cdf(-z) for z in centres])
    mass = np.repeat(np.diff(below)[None], len(levels), 0)
    for n in range(min_pairs, max_pairs + 1):
        if n > min_pairs:
            mass = mass @ _transition(n - 1, middle, tails)
        limit = 1 - levels[:, None] * (n / max_pairs) ** SHAPE
        mass = mass * np.clip((limit - below[:-1]) / np.diff(below), 0, 1)
    return levels, 1 - mass.sum(1)


def _transition(n: int, centres: Array, tails: Array) -> Array:
    """Chances to go from the centre of each cell at ``n`` pairs to each cell at ``n + 1`` pairs (cells as p values)."""
    import numpy as np

    t = _quantiles(centres, n - 1)
    b = (t * math.sqrt(n) / np.sqrt(n - 1 + t * t))[:, None]
    t = _quantiles(tails, n)
    y = (t * math.sqrt(n + 1) / np.sqrt(n + t * t))[None]
    turn, reach = np.arctan(b), np.arcsin(np.minimum(y / np.sqrt(1 + b * b), 1))
    quarter = math.pi / 2
    upper = _angle_cdf(np.minimum(math.pi - reach - turn, quarter), n) - _angle_cdf(reach - turn, n)
    beyond = upper + _angle_cdf(np.maximum(-reach - turn, -quarter), n)
    beyond[:, 0], beyond[:, -1] = 1, 0
    return np.asarray(-np.diff(beyond, axis=1))


@lru_cache(maxsize=256)
def _level(alpha: float, min_pairs: int, max_pairs: int) -> float:
    """The level at which the chance of any false decision is ``alpha``."""
    import numpy as np

    levels, errors = _errors(min_pairs, max_pairs)
    return float(np.exp(np.interp(math.log(alpha), np.log(errors), np.log(levels))))
