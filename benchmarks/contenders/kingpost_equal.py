"""kingpost with the same mathematics as the leanest plain loop."""

from __future__ import annotations

from contenders.common import Job, StepClock, Trained, main, make_data, make_net
from contenders.kingpost import run_kingpost


def train(job: Job, clock: StepClock) -> Trained:
    """Train as ``bare_indexed`` does."""
    return run_kingpost(make_net(job), *make_data(job), job, clock, equal=True)


if __name__ == "__main__":
    main(train, libraries=("kingpost",), note="same mathematics as bare-indexed")
