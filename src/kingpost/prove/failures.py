"""Runs that fail: the arm or chance? Without a difference, a pair with one failure is the toss of a fair coin."""

from __future__ import annotations

import math
from functools import lru_cache


def sign_tail(heads: int, tails: int) -> float:
    """Chance that a fair coin is at least so lopsided, to the side that it is.

    >>> sign_tail(3, 0)
    0.125
    """
    n = heads + tails
    return sum(math.comb(n, k) for k in range(max(heads, tails), n + 1)) / 2**n if heads != tails else 1.0


@lru_cache(maxsize=256)
def margins(budgets: tuple[float, ...]) -> tuple[int, ...]:
    """For a walk of fair steps: the smallest distances from 0 that it reaches with a chance of at most the budgets.

    ``budgets[m]`` is the chance that may be used up by step ``m + 1``.

    >>> margins((0.1, 0.1, 0.1, 0.1, 0.1))
    (2, 3, 4, 5, 4)
    """
    walk, spent, found = {0: 1.0}, 0.0, []
    for step, budget in enumerate(budgets, start=1):
        moved: dict[int, float] = {}
        for place, chance in walk.items():
            for there in (place - 1, place + 1):
                moved[there] = moved.get(there, 0.0) + chance / 2
        margin = step + 1
        while margin > 1 and spent + sum(c for place, c in moved.items() if abs(place) >= margin - 1) <= budget:
            margin -= 1
        spent += sum(c for place, c in moved.items() if abs(place) >= margin)
        walk = {place: c for place, c in moved.items() if abs(place) < margin}
        found.append(margin)
    return tuple(found)
