import numpy as np
import pytest

import kingpost as kp


@pytest.fixture
def tiny():
    """A recipe whose runs take a fraction of a second."""
    return kp.Recipe(
        name="tiny",
        data="digits",
        model={"name": "mlp", "widths": [8]},
        budget={"steps": 6},
        layout={"name": "data-parallel", "device": "cpu", "threads": 1},
    )


@pytest.fixture
def noisy():
    """An arm of a trial without runs: what it adds, how much it jumps, and the seeds at which it fails."""

    def score(seed, better=0.0, jumps=0.0, fails=()):
        if seed in fails:
            raise ArithmeticError("diverged")
        shared, own = np.random.default_rng(seed).normal(size=2)
        return 0.8 + 0.05 * shared + better + jumps * own

    return score
