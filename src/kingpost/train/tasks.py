"""The tasks: classification, regression, language modelling and multi-label.

Legend of shapes: ``B`` samples, ``C`` classes, ``T`` positions, ``V`` vocabulary, ``L`` labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kingpost.option import checked
from kingpost.source import DataFacts
from kingpost.task import Task, at_least_float32, check_shapes


@checked
class Classification(Task):
    """One class of several: softmax cross-entropy, in nats.

    Outputs ``(B, C)`` raw scores; targets ``(B,)`` int64, or ``(B, C)`` probabilities (mixed or smoothed).
    """

    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    target_dtype: ClassVar[torch.dtype | None] = torch.int64

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, summed over samples."""
        check_shapes(outputs, targets, outputs.shape[:1] if targets.ndim == 1 else outputs.shape)
        return F.cross_entropy(outputs, targets, reduction="sum")

    def items(self, targets: Tensor) -> int:
        """Samples."""
        return len(targets)

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One score a class."""
        return len(data.classes)

    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """Accuracy over all samples, and the mean of the classes' F1."""
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        classes = len(data.classes)
        return {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "f1_macro": MulticlassF1Score(classes, average="macro"),
        }

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probabilities, ``(B, C)``."""
        return at_least_float32(outputs).softmax(-1)

    def chance_loss(self, data: DataFacts) -> float | None:
        """``ln C``."""
        return math.log(len(data.classes))


@checked
class Regression(Task):
    """Real values: mean squared error. Outputs and targets ``(B, D)``, or targets ``(B,)`` for ``D`` = 1."""

    metric: ClassVar[str] = "r2"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "squared_error"

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error, summed over samples and dimensions."""
        if targets.ndim == 1 and outputs.ndim == 2 and outputs.shape[1] == 1:
            outputs = outputs.squeeze(1)
        check_shapes(outputs, targets, outputs.shape)
        return F.mse_loss(at_least_float32(outputs), targets, reduction="sum")

    def items(self, targets: Tensor) -> int:
        """Samples x dimensions."""
        return targets.numel()

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One unit a dimension of the target."""
        return math.prod(data.target_shape)

    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """Coefficient of determination, and the errors in the target's own unit."""
        from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score

        return {
            "r2": R2Score(),
            "mean_absolute_error": MeanAbsoluteError(),
            "root_mean_squared_error": MeanSquaredError(squared=False),
        }

    def predictions(self, outputs: Tensor) -> Tensor:
        """Values as they are."""
        return at_least_float32(outputs)

    def chance_loss(self, data: DataFacts) -> float | None:
        """1 where the target is standardised (the mean predictor's error is the variance)."""
        return None


@checked
class LanguageModelling(Task):
    """The next token at every position: cross-entropy in nats per token.

    Outputs ``(B, T, V)`` raw scores; targets ``(B, T)`` int64, where -100 is left out.
    """

    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    target_dtype: ClassVar[torch.dtype | None] = torch.int64
    one_by_one: ClassVar[bool] = False

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, summed over the positions that count."""
        check_shapes(outputs, targets, outputs.shape[:2])
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)

    def items(self, targets: Tensor) -> int:
        """Positions that count."""
        return int((targets != -100).sum())

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One score a token of the vocabulary."""
        return data.vocabulary

    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """Accuracy of the likeliest token; the nats per token are the loss itself."""
        from torchmetrics.classification import MulticlassAccuracy

        return {"token_accuracy": MulticlassAccuracy(data.vocabulary, average="micro", ignore_index=-100)}

    def predictions(self, outputs: Tensor) -> Tensor:
        """Raw scores with the tokens on axis 1, ``(B, V, T)``."""
        return at_least_float32(outputs).transpose(1, 2)

    def chance_loss(self, data: DataFacts) -> float | None:
        """``ln V``."""
        return math.log(data.vocabulary)


@checked
class MultiLabel(Task):
    """Any number of labels at once: binary cross-entropy in nats. Outputs and targets ``(B, L)``."""

    metric: ClassVar[str] = "average_precision"
    higher_is_better: ClassVar[bool] = True
    whole_targets: ClassVar[bool] = True

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, summed over samples and labels."""
        check_shapes(outputs, targets, outputs.shape)
        scores = at_least_float32(outputs)
        return F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), reduction="sum")

    def items(self, targets: Tensor) -> int:
        """Samples x labels."""
        return targets.numel()

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One score a label."""
        return len(data.classes)

    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """Mean over labels of average precision, and of F1 at one half."""
        from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

        labels = len(data.classes)
        return {
            "average_precision": MultilabelAveragePrecision(labels),
            "f1_macro": MultilabelF1Score(labels),
        }

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probabilities, ``(B, L)``."""
        return at_least_float32(outputs).sigmoid()

    def chance_loss(self, data: DataFacts) -> float | None:
        """``ln 2``."""
        return math.log(2)
