"""What is being learned: how outputs are compared with targets, and how good they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kingpost.assembly import Batch, Loss
from kingpost.option import Option

if TYPE_CHECKING:
    from torch import nn

    from kingpost.source import DataFacts


class Task(Option):
    """Base of all tasks.

    Class attributes:
        metric: name of the score that chooses the best weights: ``loss``, or one of :meth:`metrics`.
        higher_is_better: direction of that score.
        unit: of the loss.
        whole_targets: whether metrics want the targets as whole numbers.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    unit: ClassVar[str] = "nats"
    whole_targets: ClassVar[bool] = False

    @abstractmethod
    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, summed over all items; scalar."""

    @abstractmethod
    def items(self, targets: Tensor) -> int:
        """How many items the loss is summed over."""

    @abstractmethod
    def outputs_per_sample(self, data: DataFacts) -> int:
        """How many units the model's last layer needs."""

    @abstractmethod
    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """The metrics by column name: ``torchmetrics`` objects fed with ``(predictions, targets)``."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What the metrics and the user see: classes, probabilities or values, from raw outputs."""

    @abstractmethod
    def chance_loss(self, data: DataFacts) -> float | None:
        """The mean loss of a model that knows nothing but the number of classes; None if there is no such value."""

    def objective(self, model: nn.Module, batch: Batch) -> Loss:
        """Run the model and measure the loss: the plain objective that techniques wrap."""
        outputs = model(*batch.inputs)
        return Loss(self.criterion(outputs, batch.targets), self.items(batch.targets), outputs)

    def score(self, results: Mapping[str, float]) -> float:
        """The chosen metric of an evaluation, turned so that higher is better."""
        value = results[self.metric]
        return value if self.higher_is_better else -value


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision numbers widened to 32 bits, others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
