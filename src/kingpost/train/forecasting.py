"""The task of forecasting: the next steps of a series, and the naive forecasts that any model must beat.

Legend of shapes: ``B`` windows, ``T`` steps that are read, ``H`` steps ahead, ``C`` columns predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from kingpost.figure import Figure
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Order
from kingpost.task import Task, at_least_float32, check_shapes

WINDOWS_AT_ONCE = 1024


@checked
class Forecasting(Task):
    """The steps after a window: mean squared error, in standardised units where the data is standardised.

    Outputs ``(B, H * C)``, the columns of a step side by side, or in the shape of the targets; targets ``(B, H)`` or
    ``(B, H, C)``. ``mse`` and ``mae`` are in standardised units, as tables in papers are; the other errors in the
    target's own unit. The plan shows the errors of naive forecasts on the same windows.
    """

    season: Annotated[int, Ge(1)] = 24
    """Steps after which the series repeats itself, for the naive forecast (24 for hours of a day)."""

    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "squared_error"

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error, summed over windows, steps and columns."""
        if outputs.shape != targets.shape and outputs.shape == (len(targets), targets[:1].numel()):
            outputs = outputs.reshape(targets.shape)
        check_shapes(outputs, targets, outputs.shape)
        return F.mse_loss(at_least_float32(outputs), targets, reduction="sum")

    def items(self, targets: Tensor) -> int:
        """Windows x steps x columns."""
        return targets.numel()

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One unit for each step and column."""
        return math.prod(data.target_shape)

    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """Errors in the unit of the target; with several columns, the mean absolute error of each."""
        from torchmetrics import MeanAbsoluteError, MeanSquaredError

        if len(data.target_shape) < 2:
            return {
                "mean_absolute_error": MeanAbsoluteError(),
                "root_mean_squared_error": MeanSquaredError(squared=False),
            }
        columns = data.target_shape[-1]
        names = data.targets or tuple(map(str, range(columns)))
        return {
            f"mean_absolute_error_{name}": _column_error(MeanAbsoluteError, column) for column, name in enumerate(names)
        }

    def scaled_metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """``mse`` and ``mae`` as the model sees the target."""
        from torchmetrics import MeanAbsoluteError, MeanSquaredError

        return {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}

    def predictions(self, outputs: Tensor) -> Tensor:
        """Values as they are."""
        return at_least_float32(outputs)

    def chance_loss(self, data: DataFacts) -> float | None:
        """Unknown: the naive forecasts in the plan say more."""
        return None

    def figures(self, dataset: Dataset) -> Iterator[Figure]:
        """Errors of the naive forecasts on the test part, or else on validation."""
        part = next((part for part in ("test", "validation") if part in dataset.splits), None)
        if part is None:
            return
        for name, errors in naive_errors(dataset, part, self.season).items():
            reason = f"mae {errors['mae']:.4g}; {name}, on the {part} part, as the model has it"
            yield Figure("naive forecast mse", errors["mse"], "", reason)


def naive_errors(dataset: Dataset, part: str, season: int = 24) -> dict[str, dict[str, float]]:
    """Errors of two forecasts that learn nothing: the last value again, and the last season again.

    Args:
        dataset: of a series, with names of the columns.
        part: ``test`` for example.
        season: steps after which the series repeats itself; left out if the context is shorter.

    Returns:
        By name of the forecast: ``mse`` and ``mae``, in the unit of the data as it is given to the model.
        Empty if the data does not say which of the columns read are those predicted.
    """
    facts, split = dataset.facts, dataset.splits[part]
    if not facts.targets or any(name not in facts.features for name in facts.targets):
        return {}
    columns = [facts.features.index(name) for name in facts.targets]
    horizon = facts.target_shape[0]
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in split.batches(Order(batch_size=WINDOWS_AT_ONCE)):
        past_btc, future = batch.inputs[0][:, :, columns], batch.targets.reshape(len(batch), horizon, len(columns))
        forecasts = {"the last value again": past_btc[:, -1:].expand_as(future)}
        if season <= past_btc.shape[1]:
            where = past_btc.shape[1] - season + torch.arange(horizon) % season
            forecasts[f"the last {season} steps again"] = past_btc[:, where]
        for name, forecast in forecasts.items():
            wrong = (forecast - future).double()
            sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + torch.stack(
                [wrong.square().sum(), wrong.abs().sum()]
            )
        count += future.numel()
    return {name: {"mse": float(both[0]) / count, "mae": float(both[1]) / count} for name, both in sums.items()}


def _column_error(metric: Any, column: int) -> Any:
    """A metric of one column of ``(B, H, C)``."""

    class OfColumn(metric):  # type: ignore[misc]
        def update(self, predictions: Tensor, targets: Tensor) -> None:
            super().update(predictions[..., column].contiguous(), targets[..., column].contiguous())

    return OfColumn()
