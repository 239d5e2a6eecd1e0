"""Noise on the rows of tables.

Legend of shapes: ``B`` rows, ``F`` columns.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, normal, uniform, with_first

TABLES: tuple[Form, ...] = ("table", "features")


def swap_features(x_bf: Tensor, chosen_bf: Tensor, partners_bf: Tensor) -> Tensor:
    """Chosen cells replaced by the same column of another row.

    Args:
        x_bf: numbers or codes.
        chosen_bf: what is replaced, bool.
        partners_bf: the row that each cell would be taken from, int64.
    """
    return torch.where(chosen_bf, x_bf.gather(0, partners_bf), x_bf)


@checked
class FeatureNoise(Augmentation):
    """Add noise to the numbers of a table: ``x + std * n``, ``n ~ N(0, 1)``, in standard deviations of the column.

    Only columns that were standardised are changed, where the data says which those are: an indicator of a category
    stays 0 or 1, and codes stay codes. Helps on little data with noisy measurements. Fails where small differences
    decide (counts, thresholds). Source: Bishop, Neural Computation 7, 1995.
    """

    std: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of the noise, in standard deviations of the column."""

    reads: ClassVar[tuple[Form, ...]] = TABLES
    neutral: ClassVar[dict[str, Any]] = {"std": 0.0}

    def check(self, data: DataFacts) -> None:
        """There must be a column to change."""
        if data.scales and not any(self._scaled(data)):
            raise RecipeError("no column of this data is a standardised number", mend="remove it, or use feature-swap")

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Rows with noise."""
        x = batch.inputs[0]
        noise = normal(step, "feature-noise", batch, x.shape[1], dtype=x.dtype)
        return with_first(batch, x + self.std * x.new_tensor(self._scaled(data)) * noise)

    def _scaled(self, data: DataFacts) -> list[float]:
        """1 for each column that gets noise, else 0; numbers stand before codes."""
        columns = data.inputs[0][0][0]
        return [float(scale != (0.0, 1.0)) for scale in data.scales[:columns]] or [1.0] * columns


@checked
class FeatureSwap(Augmentation):
    """Replace each cell with probability ``p`` by the same column of another row of the batch (swap noise).

    Numbers and codes alike, so that each cell stays a value that occurs; targets stay. Helps nets on tables with many
    columns, and denoising. Fails where few columns decide, or where a combination becomes impossible. With streamed
    data on several devices, values come from the same device. Source: common practice (Jahrer, 1st place of Porto
    Seguro's Safe Driver Prediction, 2017); Ucar et al. (SubTab), arXiv 2110.04361.
    """

    p: Annotated[float, Ge(0), Le(1)] = 0.1
    """Probability of each cell."""

    reads: ClassVar[tuple[Form, ...]] = TABLES
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    example: ClassVar[dict[str, Any]] = {"p": 0.3}

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Rows with cells of other rows."""
        swapped = []
        for number, x in enumerate(batch.inputs):
            chosen = uniform(step, f"feature-swap {number}", batch, x.shape[1]) < self.p
            partners = uniform(step, f"feature-swap row {number}", batch, x.shape[1], dtype=torch.float64) * len(batch)
            swapped.append(swap_features(x, chosen, partners.long().clamp(max=len(batch) - 1)))
        return batch.with_(inputs=tuple(swapped))
