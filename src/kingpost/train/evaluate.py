"""Judge a model on one part of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kingpost.assembly import Batch, Layout
from kingpost.source import DataFacts, Order, Split, original_units
from kingpost.task import Task


def outputs(
    model: nn.Module, split: Split, batch_size: int, device: torch.device, layout: Layout
) -> Iterator[tuple[Tensor, Batch]]:
    """Raw outputs and the batches they belong to, in the order of the data; the model must be in eval mode."""
    order = Order(batch_size=batch_size, rank=layout.rank, ranks=layout.ranks)
    for batch in split.batches(order):
        own = batch.to(device)
        if not split.sharded:
            own = shard(own, layout)
        if len(own):
            with torch.no_grad():
                yield model(*own.inputs), own


def shard(batch: Batch, layout: Layout) -> Batch:
    """The rows of a global batch that are this process's."""
    if layout.ranks == 1:
        return batch
    rows = len(batch)
    return batch.rows(rows * layout.rank // layout.ranks, rows * (layout.rank + 1) // layout.ranks)


def evaluate(
    model: nn.Module,
    split: Split,
    task: Task,
    facts: DataFacts,
    fitted: Mapping[str, Any],
    batch_size: int,
    device: torch.device,
    layout: Layout | None = None,
) -> dict[str, float]:
    """The mean loss and the task's metrics over a split, on all processes together.

    The model is put in eval mode and left in the mode it had. Regression metrics are in the target's own unit.
    """
    layout = layout or Layout()
    metrics = {name: metric.to(device) for name, metric in task.metrics(facts).items()}
    data, items, training = 0.0, 0, model.training
    model.eval()
    try:
        for raw, batch in outputs(model, split, batch_size, device, layout):
            data += float(task.criterion(raw, batch.targets))
            items += task.items(batch.targets)
            predictions, targets = in_own_unit(task.predictions(raw), batch.targets, fitted)
            targets = targets.long() if task.whole_targets else targets
            for metric in metrics.values():
                metric.update(predictions, targets)
    finally:
        model.train(training)
    loss = layout.total(data) / layout.total(items)
    return {"loss": loss, **{name: float(metric.compute()) for name, metric in metrics.items()}}


def in_own_unit(predictions: Tensor, targets: Tensor, fitted: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Predictions and targets as the source had them (a regression target may have been standardised)."""
    if targets.is_floating_point() and predictions.shape == (*targets.shape, 1):
        predictions = predictions.squeeze(-1)
    return original_units(predictions, fitted), original_units(targets, fitted)
