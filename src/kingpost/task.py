"""What is being learned: how outputs are compared with targets, and how good they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from kingpost.assembly import Batch, Loss
from kingpost.errors import RecipeError
from kingpost.option import Option

if TYPE_CHECKING:
    from torch import nn

    from kingpost.assembly import Setting
    from kingpost.figure import Figure
    from kingpost.source import DataFacts, Dataset


class Task(Option):
    """Base of all tasks.

    Class attributes:
        metric: name of the score that chooses the best weights: ``loss``, or one of :meth:`metrics`.
        higher_is_better: direction of that score.
        unit: of the loss.
        whole_targets: whether metrics want the targets as whole numbers.
        target_dtype: of the targets as the data gives them; None for the dtype of the model.
        one_by_one: whether a prediction can be shown beside its target; if not, the report leaves them out.
        writes: whether :meth:`generate` gives a text for each sample.
        pretext: whether it makes its own targets (:meth:`pose`) and is only there to make features for another task.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    unit: ClassVar[str] = "nats"
    whole_targets: ClassVar[bool] = False
    target_dtype: ClassVar[torch.dtype | None] = None
    one_by_one: ClassVar[bool] = True
    writes: ClassVar[bool] = False
    pretext: ClassVar[bool] = False

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

    def for_data(self, data: DataFacts) -> Self:
        """The same task, knowing what it must of the data; most tasks need nothing.

        Raises:
            RecipeError: the task cannot work with this data.
        """
        return self

    def adapt(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The model with what this task needs instead of a head that is sized by ``outputs_per_sample``.

        Called before any technique; all other parameters must keep their names, for the runs that start from them.

        Raises:
            RecipeError: the model does not lend itself to this task.
        """
        return model

    def pose(self, batch: Batch, draw: torch.Generator) -> Batch:
        """The question that the model must answer: inputs and targets made from the samples; only if ``pretext``.

        Args:
            batch: as the data and the techniques give it.
            draw: on the batch's device; what belongs to samples is drawn for ``batch.total`` of them.
        """
        return batch

    def scaled_metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """Metrics fed with predictions and targets as the model has them; the others see the target's own unit."""
        return {}

    def figures(self, dataset: Dataset) -> Iterator[Figure]:
        """What a reader should compare the scores with (naive forecasts, say); shown in the plan."""
        return iter(())

    def generate(self, model: nn.Module, batch: Batch, dataset: Dataset) -> list[str]:
        """What the model writes for each sample on its own, without seeing the target; only if ``writes``.

        Called on the test part at the end of a run and by ``predict``, in eval mode, without gradients.
        """
        raise NotImplementedError(f"'{self.name}' writes no text")

    def text_scores(self, written: Sequence[str], wanted: Sequence[str]) -> Mapping[str, tuple[float, str]]:
        """Scores of generated texts by name, each with a note on how it was computed."""
        return {}

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


def check_shapes(outputs: Tensor, targets: Tensor, expected: torch.Size) -> None:
    """Refuse targets of another shape: broadcasting in a loss trains towards the wrong thing without a word.

    Raises:
        RecipeError: they differ.
    """
    if targets.shape != expected:
        raise RecipeError(
            f"the model gives {tuple(outputs.shape)}; targets should be {tuple(expected)}, got {tuple(targets.shape)}",
            path="model",
            mend="check the model's last layer and the task",
        )
