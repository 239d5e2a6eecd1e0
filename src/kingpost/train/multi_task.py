"""Several things predicted at once: classes and values side by side.

Legend of shapes: ``B`` samples, ``K`` heads, ``O`` outputs of all heads together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from kingpost.errors import RecipeError, nearest
from kingpost.option import checked
from kingpost.source import DataFacts
from kingpost.task import Task, at_least_float32


@checked
class MultiTask(Task):
    """Classes and values at once: the loss is the weighted sum of the heads' mean losses.

    A head of classes has softmax cross-entropy in nats, one of values squared error. Outputs ``(B, O)`` are those of
    all heads side by side; targets ``(B, K)`` hold a class number or a value for each head, as floating point.
    NaN is a missing label: the loss of this head is left out for this sample.
    """

    weights: dict[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    """Factor on a head's loss, by its name; 1 for those that are not named."""
    heads: tuple[tuple[str, Annotated[int, Ge(0)]], ...] = ()
    """Name of each head, and its number of classes (0 for a value); empty takes those of the data."""

    metric: ClassVar[str] = "score"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "weighted_sum"

    def for_data(self, data: DataFacts) -> Self:
        """The task with the heads of the data.

        Raises:
            RecipeError: the data has no heads, or a weight is for none of them.
        """
        heads = self.heads or tuple((head.name, len(head.classes)) for head in data.heads)
        if not heads:
            raise RecipeError(
                "this data does not say what its heads are",
                path="task.heads",
                mend="for example [[income, 2], [age, 0]]",
            )
        if unknown := sorted(set(self.weights) - {name for name, _ in heads}):
            raise RecipeError(
                f"no head '{unknown[0]}'", path="task.weights", mend=nearest(unknown[0], [name for name, _ in heads])
            )
        return self if heads == self.heads else self.with_(heads=heads)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The weighted loss of each head, summed over samples, ``(K,)``."""
        if targets.shape != (len(outputs), len(self.heads)) or outputs.shape[-1] != sum(self._widths()):
            raise RecipeError(
                f"the model gives {tuple(outputs.shape)} for targets {tuple(targets.shape)}; {len(self.heads)} heads "
                f"need outputs (B, {sum(self._widths())}) and targets (B, {len(self.heads)})",
                path="model",
                mend="check the model's last layer and the task",
            )
        scores = torch.split(at_least_float32(outputs), self._widths(), 1)
        losses = []
        for (name, classes), score, target in zip(self.heads, scores, targets.unbind(1), strict=True):
            known = ~target.isnan()
            wanted = target.where(known, 0.0)
            if classes:
                each = F.cross_entropy(score, wanted.long(), reduction="none")
            else:
                each = (score.squeeze(1) - wanted).square()
            losses.append(self.weights.get(name, 1.0) * each.where(known, 0.0).sum())
        return torch.stack(losses)

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The weighted losses of all heads, summed over heads and samples."""
        return self.losses(outputs, targets).sum()

    def items(self, targets: Tensor) -> int:
        """Samples; one with missing labels counts, too, so that pieces of a batch add up."""
        return len(targets)

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One score a class, one unit a value."""
        return sum(classes or 1 for _, classes in self.for_data(data).heads)

    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """``accuracy_NAME`` or ``r2_NAME`` of each head, their mean ``score``, and mean absolute errors."""
        from torchmetrics import MeanAbsoluteError, R2Score
        from torchmetrics.classification import MulticlassAccuracy

        metrics: dict[str, OfHead] = {}
        scores: list[OfHead] = []
        first = 0
        for column, (name, classes) in enumerate(self.for_data(data).heads):
            place = (column, first, classes)
            if classes:
                made = [f"accuracy_{name}"], [MulticlassAccuracy(classes, average="micro") for _ in range(2)]
            else:
                made = [f"r2_{name}", f"mean_absolute_error_{name}"], [R2Score(), MeanAbsoluteError(), R2Score()]
            names, found = made
            metrics |= {key: OfHead(metric, *place) for key, metric in zip(names, found[:-1], strict=True)}
            scores.append(OfHead(found[-1], *place))
            first += classes or 1
        return {"score": MeanOf(scores), **metrics}

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probabilities of classes, and values as they are, ``(B, O)``."""
        parts = torch.split(at_least_float32(outputs), self._widths(), 1)
        shown = [part.softmax(1) if classes else part for (_, classes), part in zip(self.heads, parts, strict=True)]
        return torch.cat(shown, 1)

    def chance_loss(self, data: DataFacts) -> float | None:
        """``ln C`` of each head of classes, and 1 of each value (which is standardised), weighted and added."""
        heads = self.for_data(data).heads
        return sum(self.weights.get(name, 1.0) * (math.log(classes) if classes else 1.0) for name, classes in heads)

    def _widths(self) -> list[int]:
        return [classes or 1 for _, classes in self.heads]


class OfHead:
    """A metric of one head: sees its columns alone, and leaves out samples whose label is missing.

    Args:
        metric: a ``torchmetrics`` object.
        column: of the head's targets.
        first: column of the head's first output.
        classes: of the head; 0 for a value.
    """

    def __init__(self, metric: Any, column: int, first: int, classes: int) -> None:
        self.metric, self.column, self.first, self.classes = metric, column, first, classes

    def to(self, device: torch.device) -> Self:
        """Its sums live there."""
        self.metric = self.metric.to(device)
        return self

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count samples; predictions ``(B, O)``, targets ``(B, K)``."""
        wanted = targets[:, self.column]
        known = ~wanted.isnan()
        if not known.any():
            return
        if self.classes:
            self.metric.update(predictions[known, self.first : self.first + self.classes], wanted[known].long())
        else:
            self.metric.update(predictions[known, self.first], wanted[known])

    def compute(self) -> Tensor:
        """The score of all samples that were counted, on all processes."""
        score: Tensor = self.metric.compute()
        return score


class MeanOf:
    """The mean of several metrics."""

    def __init__(self, metrics: Sequence[OfHead]) -> None:
        self.metrics = metrics

    def to(self, device: torch.device) -> Self:
        """Their sums live there."""
        for metric in self.metrics:
            metric.to(device)
        return self

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count samples in each of them."""
        for metric in self.metrics:
            metric.update(predictions, targets)

    def compute(self) -> Tensor:
        """Their mean."""
        return torch.stack([metric.compute() for metric in self.metrics]).mean()
