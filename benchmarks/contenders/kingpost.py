"""kingpost at its own defaults."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn

from contenders.common import LEARNING_RATE, Job, StepClock, Trained, main, make_data, make_net


def run_kingpost(net: nn.Module, images: Tensor, labels: Tensor, job: Job, clock: StepClock, *, equal: bool) -> Trained:
    """Train ``net`` with ``kp.train(recipe)`` for exactly ``job.total_steps`` optimizer steps.

    The clock is ticked by torch after every ``optimizer.step``; nothing has to be done about it here.
    ``Trained.steps`` must be kingpost's own count, not ``clock.steps``.

    Args:
        net: the common network, with its initial weights.
        images: ``(N, 1, 28, 28)``.
        labels: ``(N,)``.
        job: batch size, steps and seed.
        clock: not used.
        equal: the mathematics of ``bare-indexed`` (all parameters decay, no validation), not the defaults.
    """
    import kingpost as kp

    lr = LEARNING_RATE
    recipe = kp.Recipe(
        name="overhead",
        data=kp.Arrays(inputs=images, targets=labels, validation=0.0),
        model=net,
        optimizer=kp.call(torch.optim.AdamW, lr=lr, fused=True) if equal else kp.AdamW(lr=lr),
        batch_size=job.batch_size,
        budget=kp.Budget(steps=job.total_steps),
        layout=kp.DataParallel(device="cpu", threads=job.threads),
        save=kp.Save(report=False),
        seed=job.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = kp.train(recipe, root=folder, quiet=True)
        return Trained(predict=net, steps=run.summary["step"])


def train(job: Job, clock: StepClock) -> Trained:
    """Train at kingpost's defaults."""
    return run_kingpost(make_net(job), *make_data(job), job, clock, equal=False)


if __name__ == "__main__":
    main(train, libraries=("kingpost",), note="its defaults")
