"""The speed run's default program in fastai, by ``fit_one_cycle`` as its users write; its length is given."""

from __future__ import annotations

import fastai.callback.schedule  # noqa: F401  # gives Learner its fit_one_cycle(), as fastai.vision.all would

from contenders.speedrun_common import LEARNING_RATE, Clock, Job, Samples, main
from contenders.speedrun_fastai import Judge, learner_for


def train(job: Job, samples: Samples, clock: Clock) -> None:
    """Train one cycle with no bar and no log."""
    learner = learner_for(job, samples)
    clock.go()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(job.epochs, LEARNING_RATE, cbs=Judge(clock))


if __name__ == "__main__":
    main(train, note="as fastai, but fit_one_cycle with peak 1e-3 over the epochs given")
