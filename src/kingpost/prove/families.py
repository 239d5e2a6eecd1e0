"""Several arms against one baseline: the family-wise error is held by Holm's rule on p values valid at every look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kingpost.prove.sequential import Look, Test


def looks(test: Test, differences: Mapping[str, Sequence[float]]) -> dict[str, Look]:
    """A look at every arm; an arm that is decided passes its share of ``alpha`` on to the others (Holm 1979)."""
    open_arms, done = dict(differences), {}
    while open_arms:
        share = replace(test, alpha=test.alpha / len(open_arms))
        seen = {arm: share.look(values) for arm, values in open_arms.items()}
        best = min(seen, key=lambda arm: seen[arm].p)
        if seen[best].p > share.alpha:
            return {arm: (done | seen)[arm] for arm in differences}
        done[best] = seen[best]
        del open_arms[best]
    return {arm: done[arm] for arm in differences}
