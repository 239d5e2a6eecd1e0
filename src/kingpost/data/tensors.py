"""Samples held as tensors: batches by indexing, no worker processes, no Python per sample."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kingpost.assembly import Batch
from kingpost.source import Order, Split

CHUNK_BYTES = 8 * 2**20  # rows gathered at once when shuffling: few calls, and still in the cache


class TensorSplit(Split):
    """Samples in memory.

    Args:
        inputs: one tensor for each argument of the model, ``(N, ...)``.
        targets: ``(N, ...)``.
        labelled: whether the targets are known; if not, they are only placeholders.

    >>> split = TensorSplit((torch.arange(6.0).reshape(3, 2),), torch.tensor([0, 1, 0]))
    >>> [len(batch) for batch in split.batches(Order(batch_size=2))]
    [2, 1]
    """

    sharded = False

    def __init__(self, inputs: tuple[Tensor, ...], targets: Tensor, labelled: bool = True) -> None:
        self.inputs, self.targets, self.labelled = inputs, targets, labelled

    def __len__(self) -> int:
        return len(self.targets)

    def class_counts(self, classes: int) -> tuple[int, ...]:
        """Samples of each class."""
        if self.targets.ndim != 1 or self.targets.is_floating_point() or not len(self):
            return ()
        counts = self.targets.clamp(min=-1).add(1).bincount(minlength=classes + 1).tolist()
        return tuple(counts[1:]) if counts[0] == 0 and len(counts) == classes + 1 else ()

    def subset(self, indices: Tensor) -> TensorSplit:
        """The samples at ``indices``, copied."""
        return TensorSplit(tuple(x[indices] for x in self.inputs), self.targets[indices])

    def batches(self, order: Order) -> Iterator[Batch]:
        """Global batches; whoever asked takes its own rows after the whole batch was augmented."""
        size, samples = order.batch_size, len(self)
        if not order.shuffle:
            for first in range(order.start * size, samples, size):
                rows = slice(first, first + size)
                targets = self.targets[rows]
                yield Batch(tuple(x[rows] for x in self.inputs), targets, 0, len(targets))
            return
        if order.start * size >= samples:  # all done; splitting nothing would give one empty batch
            return
        indices = order.indices(samples, self.targets)
        for chunk in torch.split(indices[order.start * size :], size * self._batches_per_chunk(size)):
            inputs = [torch.split(x.index_select(0, chunk), size) for x in self.inputs]
            for *of_batch, targets in zip(*inputs, torch.split(self.targets.index_select(0, chunk), size), strict=True):
                yield Batch(tuple(of_batch), targets, 0, len(targets))

    def _batches_per_chunk(self, batch_size: int) -> int:
        bytes_per_sample = sum(x[:1].numel() * x.element_size() for x in self.inputs)
        return max(1, CHUNK_BYTES // max(1, bytes_per_sample * batch_size))
