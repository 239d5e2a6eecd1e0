"""The sequential paired test: look after every pair, and be wrong no more often than was declared.

With ``p_n`` the two-sided p value that an ordinary paired t test would give after ``n`` pairs, the test watches

    u_n = p_n / w_n,    w_n = (n / max_pairs) ** patience,

and decides as soon as ``u_n`` is so small that, without a difference, it would ever be so in a share ``alpha`` of all
trials. The law of the smallest ``u_n`` does not depend on the spread and is integrated numerically (``student.py``),
so the error rate is right at three pairs as at three hundred. It gives p values that hold whenever one looks, and
repeated confidence intervals (Jennison and Turnbull 1989). Why this method: docs/decisions/0012.

A pair of which one run failed says nothing about the size of the difference, but it says who failed. So differences
are judged among the pairs that finished, and failures by themselves, with the error rate that the lost looks leave
over. Neither may speak against the other: an arm that seems to fail more often does not *help*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar, Literal

from kingpost.errors import RecipeError
from kingpost.prove import student
from kingpost.prove.failures import margins, sign_tail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Decision = Literal["helps", "hurts", "no difference that matters", "no evidence yet"]

FEWEST_PAIRS = 3
FUTILE = 0.05  # stop where the pairs left decide with a smaller chance than this
LEAST_SPREAD = 0.5  # in smallest effects; equal differences are a coarse metric, not certainty
DOUBT = 0.25  # failures this lopsided (one-sided p value) forbid a verdict for the side that fails


@dataclass(frozen=True)
class Look:
    """What the pairs seen so far say.

    Args:
        pairs: pairs seen, those with failed runs among them.
        decision: the answer.
        final: whether to stop: for effect, equivalence or futility, or because all pairs are used.
        reason: why, one sentence.
        difference: mean difference of the pairs of which both runs finished; NaN if there is none.
        lower: of the interval for it, which covers the truth at all looks together with confidence ``1 - alpha``.
        upper: of the same.
        p: p value that holds whenever one looks.
        more_pairs: pairs still needed for the power at the smallest effect; None if ``max_pairs`` does not reach.
    """

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
    """A sequential paired test, declared before the first run.

    Differences are arm minus baseline, one a seed, signed so that more is better; ``-inf`` if the arm's run failed,
    ``inf`` if the baseline's did, ``nan`` if both did.

    Args:
        smallest_effect: the smallest difference that matters, in the metric's unit.
        alpha: chance of *helps* or *hurts* where there is no difference, over all looks together.
        power: chance to find the smallest effect that ``more_pairs`` is reckoned for.
        min_pairs: the first look that may decide. Below 5, a coarse metric can look decided by chance (decision 0012).
        max_pairs: the last look.
        patience: how far the error rate is kept for later looks. 0 stops large effects soonest; with 30 nearly all is
            kept for ``max_pairs``, whose power is then that of a t test of fixed size.

    >>> print(Test(smallest_effect=0.5).look([1.2, 0.9, 1.4, 1.1, 0.8, 1.3]).decision)
    helps
    """

    smallest_effect: float
    alpha: float = 0.05
    power: float = 0.8
    min_pairs: int = 5
    max_pairs: int = 30
    patience: float = 1.0
    __test__: ClassVar[bool] = False  # pytest takes every class of this name for a test

    def __post_init__(self) -> None:
        if not 0 < self.smallest_effect < math.inf:
            raise RecipeError(f"got {self.smallest_effect}, expected a number above 0", path="smallest_effect")
        for path in ("alpha", "power"):
            if not 0 < getattr(self, path) < 1:
                raise RecipeError(f"got {getattr(self, path)}, expected a number between 0 and 1", path=path)
        if not FEWEST_PAIRS <= self.min_pairs <= self.max_pairs:
            problem = f"got {self.min_pairs}, expected {FEWEST_PAIRS} to max_pairs={self.max_pairs}"
            raise RecipeError(problem, path="min_pairs")
        if not 0 <= self.patience < math.inf:
            raise RecipeError(f"got {self.patience}, expected 0 or more", path="patience")

    def look(self, differences: Sequence[float]) -> Look:
        """What the pairs so far say; it depends on them and on nothing else."""
        pairs, values = len(differences), finished(differences)
        if pairs > self.max_pairs:
            raise RecipeError(f"got {pairs} pairs, expected at most max_pairs={self.max_pairs}", path="differences")
        n, worse, better = len(values), differences.count(-math.inf), differences.count(math.inf)
        mean = math.fsum(values) / n if n else math.nan
        failed = f"the arm failed in {worse}, the baseline in {better} of {pairs} pairs"
        lower, upper, p, spread = -math.inf, math.inf, 1.0, math.inf
        if n >= self.min_pairs:
            spread = self.spread(values)
            error = spread / math.sqrt(n)
            half = self.boundary(n) * error
            lower, upper, p = mean - half, mean + half, self.p_value(abs(mean) / error, n)
        decision, final, reason = self._judge(lower, upper, worse, better)
        if reason == "failures":
            p, reason = min(p, self.alpha), f"{failed}, more than chance explains"
        elif reason == "doubt":
            reason = f"finished pairs are decided, but {failed}"
        elif not n + worse + better and pairs >= self.min_pairs:
            final, reason = True, "both runs failed in every pair"
        if not final and pairs == self.max_pairs:
            final, reason = True, f"all {pairs} pairs are used" + (f"; {reason}" if reason else "")
        elif not final and not reason and (chance := self.chance(mean, spread, n, self.max_pairs - pairs)) < FUTILE:
            final, reason = True, f"the pairs left have a chance of {chance:.0%} to decide"
        more = 0 if decision != "no evidence yet" else self.planned(differences)
        attainable = more if pairs + more <= self.max_pairs else None
        reason = reason or f"looked at {pairs} of at most {self.max_pairs} pairs"
        return Look(pairs, decision, final, reason, mean, lower, upper, p, attainable)

    def _judge(self, lower: float, upper: float, worse: int, better: int) -> tuple[Decision, bool, str]:
        """Decision, whether it is final, and why, from the interval and the failures."""
        if worse + better and abs(worse - better) >= self.margin(worse + better):
            return "hurts" if worse > better else "helps", True, "failures"
        small, doubt = self.smallest_effect, sign_tail(worse, better) <= DOUBT
        if -small < lower and upper < small:
            verdict: Decision = "no difference that matters"
            reason, contradicted = f"the interval lies within ±{small:g}", worse != better
        elif lower > 0 or upper < 0:
            verdict = "helps" if lower > 0 else "hurts"
            reason, contradicted = "the interval excludes 0", (worse > better) == (lower > 0)
        else:
            return "no evidence yet", False, ""
        return ("no evidence yet", False, "doubt") if doubt and contradicted else (verdict, True, reason)

    def planned(self, differences: Sequence[float]) -> int:
        """About how many more pairs the power at the smallest effect needs, from the spread seen; it knows no maximum.

        A t test needs ``((z_alpha + z_power) * spread / effect) ** 2 + z_alpha ** 2 / 2`` pairs (Guenther 1981).
        """
        values = finished(differences)
        spread = self.spread(values) if len(values) > 1 else self.smallest_effect
        upper, power = NormalDist().inv_cdf(1 - self.alpha / 2), NormalDist().inv_cdf(self.power)
        needed = ((upper + power) * spread / self.smallest_effect) ** 2 + upper**2 / 2
        price = self.price * (len(differences) / len(values) if values else 1)
        return max(1, math.ceil(needed * price) - len(differences))

    @property
    def price(self) -> float:
        """Pairs in the longest case relative to a test with one look and the same power.

        The last look alone would need ``((t_last + z_power) / (t_alpha + z_power)) ** 2``; the looks before it win
        about half of that back (simulated: within 0.1 of the truth for 10 to 100 pairs).
        """
        power = NormalDist().inv_cdf(self.power)
        once = student.quantile(self.alpha, self.max_pairs - 1) + power
        return (1 + ((self.boundary(self.max_pairs) + power) / once) ** 2) / 2

    def spread(self, values: Sequence[float]) -> float:
        """Standard deviation of the differences, at least half of the smallest effect."""
        mean = math.fsum(values) / len(values)
        seen = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        return max(seen, LEAST_SPREAD * self.smallest_effect)

    def weight(self, pairs: int) -> float:
        """``w_n``: what the p value at a look is divided by."""
        return float((pairs / self.max_pairs) ** self.patience)

    @property
    def level(self) -> float:
        """The ``u_n`` that decides."""
        import numpy as np

        levels, errors = _table(self.min_pairs, self.max_pairs, self.patience)
        return float(np.exp(np.interp(math.log(self.alpha), np.log(errors[-1]), np.log(levels))))

    def boundary(self, pairs: int) -> float:
        """The t statistic that decides after ``pairs`` pairs.

        >>> [round(Test(smallest_effect=1).boundary(n), 2) for n in (5, 10, 30)]
        [6.78, 3.7, 2.59]
        """
        return student.quantile(self.level * self.weight(pairs), pairs - 1)

    def p_value(self, t: float, pairs: int) -> float:
        """The smallest ``alpha`` at which ``t`` would decide now; at least 1e-7."""
        import numpy as np

        levels, errors = _table(self.min_pairs, self.max_pairs, self.patience)
        level = max(student.tail(t, pairs - 1) / self.weight(pairs), 1e-9)
        return float(np.exp(np.interp(math.log(level), np.log(levels), np.log(errors[-1]))))

    def chance(self, mean: float, spread: float, finished: int, left: int) -> float:
        """Predictive chance that the last look decides, if the pairs left finish and are like those seen.

        Their mean is ``mean + spread * sqrt(1 / n - 1 / last) * T``, Student with ``n - 1`` degrees (flat prior). It
        only ever stops a trial without a verdict, so no error rate depends on it.
        """
        last = finished + left
        if last < self.min_pairs or finished < self.min_pairs:
            return float(last >= self.min_pairs)
        half = self.boundary(last) * spread / math.sqrt(last)
        scale = spread * math.sqrt(1 / finished - 1 / last)

        def above(x: float) -> float:
            one_side = student.tail(abs(x - mean) / scale, finished - 1) / 2
            return one_side if x > mean else 1 - one_side

        inside = max(self.smallest_effect - half, 0.0)
        return above(half) + 1 - above(-half) + max(0.0, above(-inside) - above(max(inside, -inside)))

    def margin(self, failures: int) -> int:
        """How many more failures on one side, of so many pairs with one failure, are more than chance explains.

        A pair that is lost takes a look with it, and frees the error rate that this look would have used.
        """
        import numpy as np

        levels, errors = _table(self.min_pairs, self.max_pairs, self.patience)
        used = [float(np.interp(self.level, levels, row)) for row in errors]
        lost = range(1, failures + 1)
        looks = (self.max_pairs - m - self.min_pairs for m in lost)
        return margins(tuple(self.alpha - (used[look] if look >= 0 else 0.0) for look in looks))[-1]


def finished(differences: Sequence[float]) -> list[float]:
    """The differences of the pairs of which both runs finished."""
    return [difference for difference in differences if math.isfinite(difference)]


@lru_cache(maxsize=64)
def _table(min_pairs: int, max_pairs: int, patience: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Levels, and for each look the chance that the smallest ``u_n`` until then is below them without a difference."""
    import numpy as np

    levels = np.geomspace(1e-7, 1, 71)
    return levels, student.crossing(lambda n: (n / max_pairs) ** patience, min_pairs, max_pairs, levels)
