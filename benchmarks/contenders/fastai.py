"""fastai's Learner; only fastai.basics, which does without torchvision."""

from __future__ import annotations

import fastai.callback.progress  # noqa: F401  # gives Learner its bar, as fastai.vision.all would, and no_bar()
from fastai.basics import Callback, CancelFitException, CancelValidException, DataLoaders, Learner, Optimizer
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from contenders.common import LEARNING_RATE, Job, StepClock, Trained, main, make_data, make_net


class NoValidation(Callback):
    """Skips the validation after each epoch, which fastai has no option for."""

    def before_validate(self) -> None:
        """Cancel it."""
        raise CancelValidException


def _stop() -> None:
    raise CancelFitException


def ticking(optimizer: Optimizer, clock: StepClock) -> Optimizer:
    """The optimizer, whose every step ticks the clock; fastai's own is none of torch's."""
    step = optimizer.step

    def step_and_tick() -> None:
        step()
        clock.tick()

    optimizer.step = step_and_tick
    return optimizer


def train(job: Job, clock: StepClock) -> Trained:
    """Train at a constant rate with no bar and no log."""
    data = TensorDataset(*make_data(job))
    unused = Subset(data, range(64))  # fastai wants a validation part even if it is not to be looked at
    loaders = DataLoaders.from_dsets(data, unused, bs=job.batch_size, num_workers=0, device="cpu")

    def make_optimizer(parameters: list[list[nn.Parameter]], lr: float) -> Optimizer:
        return ticking(Adam(parameters, lr=lr), clock)

    net = make_net(job)
    learner = Learner(loaders, net, loss_func=CrossEntropyLossFlat(), opt_func=make_optimizer, path=".")
    clock.when_done = _stop
    with learner.no_bar(), learner.no_logging():
        learner.fit(job.epochs, lr=LEARNING_RATE, cbs=NoValidation())
    steps = {int(state["step"]) for state in learner.opt.state.values()}

    def predict(images: Tensor) -> Tensor:
        return learner.model.eval()(images)

    return Trained(predict=predict, steps=max(steps))


if __name__ == "__main__":
    main(
        train,
        libraries=("fastai",),
        torch_optimizer=False,
        note="its own Adam with decoupled decay, constant rate; num_workers=0 where its default is all cores",
    )
