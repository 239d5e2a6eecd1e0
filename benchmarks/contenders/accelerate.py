"""Accelerate: the plain loop with its objects prepared."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from contenders.common import LEARNING_RATE, Job, StepClock, Trained, first_steps, main, make_data, make_net


def train(job: Job, clock: StepClock) -> Trained:
    """Train with the loop of Accelerate's own introduction, logging the loss at every step."""
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(TensorDataset(*make_data(job)), batch_size=job.batch_size, shuffle=True)
    net = make_net(job)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    losses = []
    for images, labels in first_steps(loader, job):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return Trained(predict=net, steps=len(losses))


if __name__ == "__main__":
    main(train, libraries=("accelerate",), note="the bare loop, prepared; loss.item() at every step")
