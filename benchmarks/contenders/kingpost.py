"""kingpost at its own defaults."""

from __future__ import annotations

from torch import Tensor, nn

from contenders.common import Job, NotRunnableError, StepClock, Trained, main, make_data, make_net


def run_kingpost(net: nn.Module, images: Tensor, labels: Tensor, job: Job, clock: StepClock, *, equal: bool) -> Trained:
    """Train ``net`` with ``kp.train(recipe)`` for exactly ``job.total_steps`` optimizer steps.

    The clock is ticked by torch after every ``optimizer.step``; nothing has to be done about it here.
    ``Trained.steps`` must be kingpost's own count, not ``clock.steps``.

    Args:
        net: the common network, with its initial weights.
        images: ``(N, 1, 28, 28)``.
        labels: ``(N,)``.
        job: batch size, steps and seed.
        clock: for ``clock.when_done``, should the run have to be stopped from outside.
        equal: the mathematics of ``bare-indexed`` (all parameters decay, no validation), not the defaults.
    """
    raise NotRunnableError("run_kingpost in benchmarks/contenders/kingpost.py is not written yet")


def train(job: Job, clock: StepClock) -> Trained:
    """Train at kingpost's defaults."""
    return run_kingpost(make_net(job), *make_data(job), job, clock, equal=False)


if __name__ == "__main__":
    main(train, libraries=("kingpost",), note="its defaults")
