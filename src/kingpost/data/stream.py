"""Samples that do not fit in memory: loaded when they are needed, each rank only its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from kingpost import seeds
from kingpost.assembly import Batch
from kingpost.source import Order, Split


class StreamSplit(Split):
    """A map-style torch dataset of ``(input, target)`` or ``((input, ...), target)`` pairs.

    The batches do not depend on the number of workers: what a sample draws from torch's default generator
    follows from (seed, epoch, its index). Workers end with the pass, or when its iterator is closed.

    Args:
        samples: the dataset; it is sent to the workers.
        workers: processes that load beside this one; 0 loads in this one.

    >>> split = StreamSplit([(torch.ones(2) * i, i) for i in range(5)])
    >>> [batch.targets.tolist() for batch in split.batches(Order(batch_size=2, start=1))]
    [[2, 3], [4]]
    """

    sharded = True

    def __init__(self, samples: MapDataset[Any], workers: int = 0) -> None:
        self.samples, self.workers = samples, workers

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def batches(self, order: Order) -> Iterator[Batch]:
        """The rank's contiguous rows of each global batch; skipped batches are not loaded."""
        shares = [
            _share(part, order) for part in torch.split(order.indices(len(self)), order.batch_size)[order.start :]
        ]
        loader: DataLoader[Any] = DataLoader(
            _Seeded(self.samples, order),
            batch_sampler=[rows.tolist() or [spare] for rows, spare, _, _ in shares],
            num_workers=self.workers,
            generator=order.generator("workers", order.rank),
        )
        for (inputs, targets), (rows, _, first, total) in zip(loader, shares, strict=True):
            several = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
            yield Batch(several, targets, first, total).rows(0, len(rows))


def _share(part: Tensor, order: Order) -> tuple[Tensor, int, int, int]:
    """The rank's rows of a global batch, a sample that gives the shapes if it has none, and their place."""
    rows = len(part)
    first, last = (rows * rank // order.ranks for rank in (order.rank, order.rank + 1))
    return part[first:last], int(part[0]), first, rows


class _Seeded(MapDataset[Any]):
    """A dataset in which what a sample draws at random depends on nothing but (seed, epoch, index)."""

    def __init__(self, samples: MapDataset[Any], order: Order) -> None:
        self.samples, self.order = samples, order

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> object:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeds.derive(self.order.seed, "sample", self.order.epoch, index))
            return self.samples[index]
