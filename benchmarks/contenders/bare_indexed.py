"""The leanest honest loop: batches by indexing tensors, fused AdamW, the loss still kept at every step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from contenders.common import LEARNING_RATE, Job, StepClock, Trained, first_steps, main, make_data, make_net


class IndexedBatches:
    """Shuffled batches of tensors in memory; each pass is one epoch in a new order."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.labels)).split(self.batch_size):
            yield self.images.index_select(0, rows), self.labels.index_select(0, rows)


def train(job: Job, clock: StepClock) -> Trained:
    """Train with nothing that could be left out."""
    batches = IndexedBatches(*make_data(job), job.batch_size)
    net = make_net(job)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, fused=True)
    losses = []
    for images, labels in first_steps(batches, job):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Trained(predict=net, steps=len(losses))


if __name__ == "__main__":
    main(train, note="index_select from tensors, fused AdamW")
