"""Several arms against one baseline: the chance that any of them is wrongly judged is held at ``alpha`` (Holm 1979).

The p values of the sequential test hold whenever one looks, so Holm's rule holds at all looks at once: with ``m`` arms
open, the arm with the smallest p value is decided if ``p <= alpha / m``; it then passes its share on, and the next is
asked at ``alpha / (m - 1)`` (Ye, Li, Liu and Yao 2013; Maurer and Bretz 2013). It does not matter whether the arms are
independent: effects and interactions of a factorial design, from the same runs, are a family like any other. An arm
that is given up as futile or that makes no difference keeps its share, because nothing was rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kingpost.prove.sequential import Look, Test


def looks(test: Test, differences: Mapping[str, Sequence[float]]) -> dict[str, Look]:
    """A look at every arm; arms may have different numbers of pairs, as those that are decided need no more.

    ``p`` is Holm's adjusted p value, to be compared with ``test.alpha``. An interval has the confidence at which its
    arm was judged, ``1 - alpha / m`` with ``m`` arms still open, so it agrees with the verdict.

    >>> arms = {"a": [1.2, 0.9, 1.4, 1.1, 0.8, 1.3, 1.0], "b": [0.1, -0.9, 0.5, -1.3, 0.8, 0.2, 1.1]}
    >>> {arm: look.decision for arm, look in looks(Test(smallest_effect=0.5), arms).items()}
    {'a': 'helps', 'b': 'no evidence yet'}
    """
    undecided, seen, least = list(differences), {}, 0.0
    while undecided:
        m = len(undecided)
        share = replace(test, alpha=test.alpha / m)
        now = {arm: share.look(differences[arm]) for arm in undecided}
        least_by_arm = {arm: max(least, min(1.0, m * look.p)) for arm, look in now.items()}
        seen.update({arm: replace(look, p=least_by_arm[arm]) for arm, look in now.items()})
        first = min(undecided, key=lambda arm: now[arm].p)
        if now[first].p > share.alpha:
            break
        least = least_by_arm[first]
        undecided.remove(first)
    return {arm: seen[arm] for arm in differences}
