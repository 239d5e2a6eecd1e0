"""Early stopping's rule against a counter, as a person would keep it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kingpost.train.regularise.early_stopping import has_stalled

scores = st.lists(st.floats(-10, 10) | st.integers(-3, 3).map(float), max_size=30)


def counted(scores: Sequence[float], patience: int, smallest_gain: float) -> bool:
    best, waited = float("-inf"), 0
    for score in scores:
        if score > best + smallest_gain:
            best, waited = score, 0
        else:
            waited += 1
    return waited >= patience


@given(scores, st.integers(1, 6), st.sampled_from([0.0, 0.5, 2.0]))
def test_equals_a_counter(scores: list[float], patience: int, smallest_gain: float) -> None:
    assert has_stalled(scores, patience, smallest_gain) == counted(scores, patience, smallest_gain)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.integers(1, 5))
def test_without_a_smallest_gain_the_age_of_the_first_best_decides(scores: list[int], patience: int) -> None:
    assert has_stalled(scores, patience) == (len(scores) - 1 - scores.index(max(scores)) >= patience)


@given(scores, st.integers(1, 6))
def test_a_record_never_stalls(scores: list[float], patience: int) -> None:
    assert not has_stalled([*scores, 11.0], patience)
