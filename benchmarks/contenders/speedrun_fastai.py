"""The speed run's default program in fastai, at a constant rate as the others."""

from __future__ import annotations

import fastai.callback.progress  # noqa: F401  # gives Learner its bar, as fastai.vision.all would, and no_bar()
from fastai.basics import Callback, CancelFitException, CancelValidException, DataLoaders, Learner
from fastai.losses import CrossEntropyLossFlat
from torch.utils.data import Subset, TensorDataset

from contenders.speedrun_common import (
    BATCH_SIZE,
    LEARNING_RATE,
    Clock,
    Job,
    Samples,
    evaluating,
    main,
    two_convolutions,
)


class Judge(Callback):
    """Judges after each epoch, off the clock, in place of fastai's validation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def before_validate(self) -> None:
        """After the last step of an epoch."""
        if self.clock.judge(evaluating(self.learn.model, self.clock.job.device), self.learn.epoch + 1):
            raise CancelFitException
        raise CancelValidException


def learner_for(job: Job, samples: Samples) -> Learner:
    """A Learner with its own Adam, silent."""
    data = TensorDataset(*samples)
    unused = Subset(data, range(64))  # fastai wants a validation part even if it is not to be looked at
    loaders = DataLoaders.from_dsets(data, unused, bs=BATCH_SIZE, num_workers=0, device=job.device)
    return Learner(loaders, two_convolutions(), loss_func=CrossEntropyLossFlat(), path=".")


def train(job: Job, samples: Samples, clock: Clock) -> None:
    """Train at a constant rate with no bar and no log."""
    learner = learner_for(job, samples)
    clock.go()
    with learner.no_bar(), learner.no_logging():
        learner.fit(job.epochs, lr=LEARNING_RATE, cbs=Judge(clock))


if __name__ == "__main__":
    main(train, note="its own Adam with decoupled decay 0.01, constant rate; num_workers=0")
