"""skorch: the network as a scikit-learn classifier."""

from __future__ import annotations

import torch
from skorch import NeuralNetClassifier
from torch import nn

from contenders.common import LEARNING_RATE, Job, StepClock, Trained, main, make_data, make_net


def _stop() -> None:
    raise KeyboardInterrupt  # how skorch is told to stop inside an epoch: fit() ends as usual


def train(job: Job, clock: StepClock) -> Trained:
    """Train from NumPy arrays with no validation part and no printing."""
    images, labels = make_data(job)
    net = make_net(job)
    classifier = NeuralNetClassifier(
        net,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=LEARNING_RATE,
        batch_size=job.batch_size,
        max_epochs=job.epochs,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    clock.when_done = _stop
    classifier.fit(images.numpy(), labels.numpy())
    optimizer_steps = {int(state["step"]) for state in classifier.optimizer_.state.values()}
    return Trained(predict=classifier.module_.eval(), steps=max(optimizer_steps))


if __name__ == "__main__":
    main(train, libraries=("skorch",), note="NumPy arrays, train_split=None; its default callbacks, silent")
