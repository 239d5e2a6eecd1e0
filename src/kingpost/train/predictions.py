"""What a model says about samples, and how it is written as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from kingpost.files import write_text
from kingpost.source import Head
from kingpost.train.ensemble.columns import Column


@dataclass(frozen=True)
class Predictions:
    """What a model says about samples.

    Args:
        values: probabilities ``(N, C)``, labels' probabilities ``(N, L)``, or values ``(N, D)`` or ``(N, H, C)`` in the
            target's unit; for a language model the mean loss of each sequence in nats per token, ``(N, 1)``; nothing,
            ``(N, 0)``, where the model writes texts.
        classes: names of the columns, empty for regression.
        task: name of the task.
        metrics: loss and metrics, if the targets are known.
        heads: what is predicted, for several things at once; then ``values`` has their columns side by side.
        targets: the truth, in the same unit, or None if it is not known.
        columns: names of the values' columns, for values.
        texts: source and written text of each sample, and the true one if it is known.
        notes: how some of the metrics were computed, by name.
        beside: more columns, one entry a sample: spread of members, entropies, sets or intervals.
    """

    values: Tensor
    classes: tuple[str, ...]
    task: str
    metrics: Mapping[str, float]
    heads: tuple[Head, ...] = ()
    targets: Tensor | None = None
    columns: tuple[str, ...] = ()
    texts: Sequence[tuple[str, ...]] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, Column] = field(default_factory=dict)

    def to_csv(self) -> str:
        """One line a sample; a class is given by name, with the probability of each, and with the true one if known."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["index", *self._header(), *self.beside])
        values = self.values.flatten(1).tolist()
        targets = self.targets.reshape(len(values), -1).tolist() if self.targets is not None else [[]] * len(values)
        for index, (row, target) in enumerate(zip(values, targets, strict=True)):
            more = [_cell(column[index]) for column in self.beside.values()]
            writer.writerow([index, *(self.texts[index] if self.texts else self._cells(row, target)), *more])
        return out.getvalue()

    def save_to(self, path: Path) -> None:
        """Write the CSV, whole or not at all."""
        write_text(path, self.to_csv())

    def _header(self) -> list[str]:
        known = self.targets is not None
        if self.task == "language-modelling":
            return ["nats_per_token"]
        if self.texts:
            return ["source", "predicted", "target"][: len(self.texts[0])]
        if self.heads:
            names = [column for head in self.heads for column in _columns(head)]
            return [*names, *(f"target_{head.name}" for head in self.heads if known)]
        if self.task == "classification":
            return ["predicted", *(["target"] if known else []), *(f"probability_{name}" for name in self.classes)]
        labels = self.task == "multi-label"
        named = self.classes if labels else self.columns
        kind = "probability" if labels else "value"
        return [*(f"{kind}_{name}" for name in named), *(f"target_{name}" for name in named if known)]

    def _cells(self, row: list[float], target: list[float]) -> list[str]:
        if self.heads:
            rest = iter(row)
            shown = [text for head in self.heads for text in _shown(head, [next(rest) for _ in range(head.outputs)])]
            return [*shown, *(_truth(head, value) for head, value in zip(self.heads, target, strict=False))]
        numbers = [f"{value:.6g}" for value in row]
        if self.task == "classification":
            return [_likeliest(self.classes, row), *(self.classes[int(number)] for number in target), *numbers]
        return numbers + [f"{value:.6g}" for value in target]


def _cell(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _columns(head: Head) -> list[str]:
    """Names of a head's columns: the class and the probability of each, or the value."""
    if not head.classes:
        return [f"value_{head.name}"]
    return [f"predicted_{head.name}", *(f"probability_{head.name}_{name}" for name in head.classes)]


def _shown(head: Head, values: list[float]) -> list[str]:
    """What stands in them."""
    named = [_likeliest(head.classes, values)] if head.classes else []
    return [*named, *(f"{value:.6g}" for value in values)]


def _truth(head: Head, value: float) -> str:
    """A head's target; empty where the label is missing."""
    if math.isnan(value):
        return ""
    return head.classes[int(value)] if head.classes else f"{value:.6g}"


def _likeliest(classes: Sequence[str], probabilities: Sequence[float]) -> str:
    return classes[max(range(len(classes)), key=probabilities.__getitem__)]
