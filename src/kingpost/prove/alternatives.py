"""The methods that the sequential test was compared with (docs/decisions/0012), on many trials at once.

``d`` is an array of differences, ``trials x pairs``. Every method gives an :class:`Outcome`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kingpost.prove import student

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Spending = Callable[[float], float]  # share of the pairs -> share of alpha that may be used up by then


@dataclass(frozen=True)
class Outcome:
    """What each trial said: 1 helps, -1 hurts, 0 nothing; and after how many pairs."""

    sign: NDArray[np.int64]
    pairs: NDArray[np.int64]


def first_crossing(crossed: NDArray[np.bool_], means: Array, first_pair: int) -> Outcome:
    """The first look, of consecutive ones, at which a trial is decided, and for which side."""
    import numpy as np

    found, look = crossed.any(axis=1), crossed.argmax(axis=1)
    sign = np.sign(np.take_along_axis(means, look[:, None], axis=1)[:, 0])
    pairs = np.where(found, look + first_pair, first_pair + crossed.shape[1] - 1)
    return Outcome(np.where(found, sign, 0).astype(np.int64), pairs.astype(np.int64))


def statistics(d: Array) -> tuple[Array, Array, Array]:
    """Mean, standard deviation and t statistic of every prefix of two and more: ``trials x (pairs - 1)``."""
    import numpy as np

    n = np.arange(2, d.shape[1] + 1)
    means = d.cumsum(axis=1)[:, 1:] / n
    squares = (d * d).cumsum(axis=1)[:, 1:]
    spreads = np.sqrt(np.maximum(squares - n * means**2, 1e-300) / (n - 1))
    return means, spreads, means * np.sqrt(n) / spreads


def hwang_shih_decani(gamma: float) -> Spending:
    """``(1 - exp(-gamma s)) / (1 - exp(-gamma))``: 1 is like Pocock, -4 like O'Brien and Fleming (1990).

    >>> hwang_shih_decani(-4.0)(0.5)
    0.119...
    """
    return lambda share: math.expm1(-gamma * share) / math.expm1(-gamma)


def spending_boundaries(alpha: float, min_pairs: int, max_pairs: int, spending: Spending) -> Array:
    """Boundaries of ``|t|`` that use up ``alpha * spending(n / max_pairs)`` by look ``n``, exactly for normal pairs."""
    import numpy as np

    grid = np.geomspace(1e-9, 1, 181)
    used: dict[int, float] = {}
    for n in range(min_pairs, max_pairs + 1):
        errors = student.crossing(lambda k: used[k] / grid if k in used else 1.0, min_pairs, n, grid)[-1]
        target = alpha * spending(n / max_pairs)
        used[n] = float(np.exp(np.interp(math.log(target), np.log(errors), np.log(grid))))
    return np.array([student.quantile(p, n - 1) for n, p in used.items()])


def group_sequential_t(d: Array, min_pairs: int, boundaries: Array) -> Outcome:
    """A paired t test after every pair, against boundaries (Jennison and Turnbull 2000)."""
    means, _, t = statistics(d)
    return first_crossing(abs(t[:, min_pairs - 2 :]) >= boundaries, means[:, min_pairs - 2 :], min_pairs)


def confidence_sequence(d: Array, min_pairs: int, alpha: float, spread_of_effects: float = 1.0) -> Outcome:
    """The t test that may go on for ever: a mixture over the effect, in spreads (Lai 1976; Wang and Ramdas 2023).

    ``M_n = sqrt(c / (n + c)) (V / (V - S^2 / (n + c)))^(n/2)`` with sum ``S``, sum of squares ``V`` and
    ``c = 1 / spread_of_effects^2`` is a martingale without a difference, so it reaches ``1 / alpha`` with chance
    ``alpha`` at most.
    """
    import numpy as np

    n, c = np.arange(1, d.shape[1] + 1), spread_of_effects**-2
    total, squares = d.cumsum(axis=1), np.maximum((d * d).cumsum(axis=1), 1e-300)
    log = 0.5 * np.log(c / (n + c)) - n / 2 * np.log1p(-(total**2) / squares / (n + c))
    looked = slice(min_pairs - 1, None)
    return first_crossing(log[:, looked] >= -math.log(alpha), (total / n)[:, looked], min_pairs)


def sign_flip(d: Array, min_pairs: int, alpha: float, spending: Spending, flips: int = 2000, seed: int = 0) -> Outcome:
    """Sequential randomisation: whatever is symmetric around 0 might as well have had other signs (Fisher 1935).

    After each pair the sum is ranked among the sums under all sign patterns (``2 ** pairs``, or ``flips`` drawn ones)
    that would not have been decided before; the largest are decided, as many as the spending function allows.
    """
    import numpy as np

    pairs = d.shape[1]
    signs: NDArray[Any]
    if 2**pairs <= flips:
        signs = 1.0 - 2.0 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (flips, pairs))
        signs[0] = 1  # the pattern that was seen is one of them
    looks = np.arange(min_pairs, pairs + 1)
    budgets = [int(alpha * spending(n / pairs) * len(signs) + 1e-9) for n in looks]
    crossed = np.zeros((len(d), len(looks)), bool)
    for trial, row in enumerate(d):
        sums = np.round(abs(np.cumsum(signs * row, axis=1)), 9)
        alive, spent = np.ones(len(signs), bool), 0
        for look, (n, budget) in enumerate(zip(looks, budgets, strict=True)):
            if budget <= spent:
                continue
            here = sums[alive, n - 1]
            room = min(budget - spent, len(here) - 1)
            limit = np.partition(here, len(here) - 1 - room)[len(here) - 1 - room]  # ties with it stay
            decided = alive & (sums[:, n - 1] > limit)
            if decided[0]:
                crossed[trial, look] = True
                break
            alive &= ~decided
            spent += int(decided.sum())
    return first_crossing(crossed, d.cumsum(axis=1)[:, min_pairs - 1 :], min_pairs)


def fixed_t(d: Array, pairs: int, alpha: float) -> Outcome:
    """One paired t test after a fixed number of pairs."""
    means, _, t = statistics(d[:, :pairs])
    return first_crossing(abs(t[:, -1:]) >= student.quantile(alpha, pairs - 1), means[:, -1:], pairs)


def peeking_t(d: Array, min_pairs: int, alpha: float) -> Outcome:
    """What people do: a t test at ``alpha`` after every pair, until it is significant."""
    import numpy as np

    boundaries = np.array([student.quantile(alpha, n - 1) for n in range(min_pairs, d.shape[1] + 1)])
    return group_sequential_t(d, min_pairs, boundaries)
