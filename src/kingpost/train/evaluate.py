"""Judge a model on one part of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kingpost import seeds
from kingpost.assembly import Batch, Layout
from kingpost.source import DataFacts, Dataset, Order, Split, original_units
from kingpost.task import Task


def outputs(
    model: nn.Module, split: Split, batch_size: int, device: torch.device, layout: Layout
) -> Iterator[tuple[Tensor, Batch]]:
    """Raw outputs and the batches they belong to, in the order of the data; the model must be in eval mode."""
    for _, own in _own(split, batch_size, device, layout):
        with torch.no_grad():
            yield model(*own.inputs), own


def questions(split: Split, task: Task, batch_size: int, device: torch.device, layout: Layout) -> Iterator[Batch]:
    """The batches of a split; a task that makes its own targets makes the same ones at each call."""
    for number, own in _own(split, batch_size, device, layout):
        yield task.pose(own, seeds.generator(0, "evaluation", number, device=device)) if task.pretext else own


def _own(split: Split, batch_size: int, device: torch.device, layout: Layout) -> Iterator[tuple[int, Batch]]:
    """The number of each batch, and this process's rows of it, in the order of the data."""
    order = Order(batch_size=batch_size, rank=layout.rank, ranks=layout.ranks)
    for number, batch in enumerate(split.batches(order)):
        own = batch.to(device)
        if not split.sharded:
            own = shard(own, layout)
        if len(own):
            yield number, own


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
    scaled = {name: metric.to(device) for name, metric in task.scaled_metrics(facts).items()}
    data, items, training = 0.0, 0, model.training
    model.eval()
    try:
        for batch in questions(split, task, batch_size, device, layout):
            with torch.no_grad():
                found = task.objective(model, batch)
            data += float(found.data)
            items += found.items
            if not (metrics or scaled):
                continue
            given = task.predictions(found.outputs)
            for metric in scaled.values():
                metric.update(like_targets(given, batch.targets), batch.targets)
            predictions, targets = in_own_unit(given, batch.targets, fitted)
            targets = targets.long() if task.whole_targets else targets
            for metric in metrics.values():
                metric.update(predictions, targets)
    finally:
        model.train(training)
    loss = layout.total(data) / layout.total(items)
    return {"loss": loss, **{name: float(metric.compute()) for name, metric in (scaled | metrics).items()}}


def in_own_unit(predictions: Tensor, targets: Tensor, fitted: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Predictions and targets as the source had them (a regression target may have been standardised)."""
    key = "prediction" if "prediction" in fitted else "target"
    return original_units(like_targets(predictions, targets), fitted, key), original_units(targets, fitted)


def like_targets(predictions: Tensor, targets: Tensor) -> Tensor:
    """Predicted values in the shape of the targets, where they are as many: ``(B, 1)`` for ``(B,)``, for example."""
    if targets.is_floating_point() and predictions.numel() == targets.numel():
        return predictions.reshape(targets.shape)
    return predictions


def write(
    model: nn.Module, split: Split, task: Task, dataset: Dataset, batch_size: int, device: torch.device
) -> list[str]:
    """What the model writes for each sample, in the order of the data; only if ``task.writes``.

    The model is put in eval mode and left in the mode it had.
    """
    written: list[str] = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in split.batches(Order(batch_size=batch_size)):
                written += task.generate(model, batch.to(device), dataset)
    finally:
        model.train(training)
    return written


def wanted_texts(split: Split, dataset: Dataset) -> tuple[list[str], list[str]]:
    """Source and target text of each sample: as the files have them, or else from the tokens."""
    if split.texts:
        return [source for source, _ in split.texts], [target for _, target in split.texts]
    sources, targets = [], []
    facts = dataset.facts
    special = (facts.padding, facts.begin, facts.end, -100)
    for batch in split.batches(Order(batch_size=1)):
        tokens = [token for token in batch.targets[0].tolist() if token not in special]
        targets.append(dataset.decode(tokens) if dataset.decode else " ".join(map(str, tokens)))
        sources.append(" ".join(str(token) for token in batch.inputs[0][0].tolist() if token not in special))
    return sources, targets
