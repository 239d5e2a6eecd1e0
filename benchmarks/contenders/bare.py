"""The loop that people write: DataLoader, default AdamW, the loss logged at every step."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from contenders.common import LEARNING_RATE, Job, StepClock, Trained, first_steps, main, make_data, make_net


def train(job: Job, clock: StepClock) -> Trained:
    """Train with the loop of the tutorials."""
    loader = DataLoader(TensorDataset(*make_data(job)), batch_size=job.batch_size, shuffle=True)
    net = make_net(job)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    losses = []
    for images, labels in first_steps(loader, job):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Trained(predict=net, steps=len(losses))


if __name__ == "__main__":
    main(train, note="DataLoader over a TensorDataset, default AdamW")
