from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kingpost.report.thinning import BINS, thin

HISTORIES = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), float("inf")]), max_size=3000)


@given(HISTORIES)
def test_no_spike_is_lost_and_nothing_is_invented(values: list[float]) -> None:
    history = np.array(values, dtype=np.float64)
    thinned = thin(np.arange(len(history), dtype=np.float64), history)
    kept = history[np.isfinite(history)]
    assert thinned.left_out == len(history) - len(kept)
    assert len(thinned.low) <= 2 * BINS
    if len(kept):
        assert thinned.low.min() == kept.min() and thinned.high.max() == kept.max()
    assert (thinned.low <= thinned.high).all()


def test_the_running_mean_is_the_mean_of_what_is_near() -> None:
    values = np.random.default_rng(0).random(401)
    thinned = thin(np.arange(401.0), values)
    slow = [values[max(0, i - 5) : i + 5].mean() for i in range(401)]
    assert thinned.window == 10
    np.testing.assert_allclose(thinned.mean, slow, rtol=1e-10)  # differences of sums of 400 numbers
