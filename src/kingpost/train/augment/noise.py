"""Gaussian noise on the input."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from kingpost.assembly import Batch, Step
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, check_range, clamped, normal, with_first


@checked
class GaussianNoise(Augmentation):
    """Add noise to every number of the input: ``x + std * n``, ``n ~ N(0, 1)``.

    For tables see ``feature-noise``, for series of features in different units ``jitter``. Helps against noise of the
    same kind, and smooths the net much as an L2 penalty on its slope does. Fails where fine texture matters, and
    gives no safety against attacks. Source: Bishop, "Training with Noise is Equivalent to Tikhonov Regularization",
    Neural Computation 7, 1995.
    """

    std: Annotated[float, Ge(0)] = 0.1
    """Standard deviation, in the unit of the data (which is standard deviations, if standardised)."""
    low: float | None = None
    """Smallest value that the result may have; null is no bound."""
    high: float | None = None
    """Largest value that the result may have; null is no bound."""

    reads: ClassVar[tuple[Form, ...]] = ("image", "clip", "series")
    neutral: ClassVar[dict[str, Any]] = {"std": 0.0, "low": None, "high": None}

    def __post_init__(self) -> None:
        check_range(self.low, self.high)

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Noisy inputs."""
        x = batch.inputs[0]
        noisy = x + self.std * normal(step, "gaussian noise", batch, *x.shape[1:], dtype=x.dtype)
        return with_first(batch, clamped(noisy, self.low, self.high))
