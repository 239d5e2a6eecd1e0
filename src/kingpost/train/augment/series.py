"""Noise, scale and time of series.

Legend of shapes: ``B`` series, ``T`` steps, ``F`` features, ``K`` knots.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, normal, uniform, with_first

SERIES: tuple[Form, ...] = ("series",)
WHOLE_SERIES = ("classification", "regression", "multi-label")  # targets that do not go on from the series


def resample(x_btf: Tensor, places_bt: Tensor) -> Tensor:
    """Each series read at other times, linearly between its steps.

    Args:
        x_btf: series.
        places_bt: times in steps, within 0..T - 1.
    """
    last = x_btf.shape[1] - 1
    before = places_bt.floor().clamp(0, max(0, last - 1)).long()
    after = (before + 1).clamp(max=last)
    share = (places_bt - before).to(x_btf.dtype)[..., None]
    index = torch.arange(len(x_btf), device=x_btf.device)[:, None]
    return x_btf[index, before].lerp(x_btf[index, after], share)


def warped_times(speeds_bk: Tensor, steps: int) -> Tensor:
    """Times ``(B, steps)`` that run from 0 to ``steps - 1`` at a speed that changes linearly between knots.

    Args:
        speeds_bk: relative speed at evenly spaced knots, above 0; K at least 2.
        steps: how many.
    """
    knots = torch.linspace(0, speeds_bk.shape[1] - 1, steps, dtype=speeds_bk.dtype, device=speeds_bk.device)
    speed_bt = resample(speeds_bk[..., None], knots.expand(len(speeds_bk), -1))[..., 0]
    passed = ((speed_bt[:, 1:] + speed_bt[:, :-1]) / 2).cumsum(1)
    times = torch.cat([torch.zeros_like(passed[:, :1]), passed / passed[:, -1:]], 1) * (steps - 1)
    return times.clamp(max=steps - 1)


@checked
class Jitter(Augmentation):
    """Add noise in proportion to the spread of each feature within its own series: ``x + std * s_f * n``.

    ``n ~ N(0, 1)``, and ``s_f`` is the standard deviation of feature ``f`` over the steps of this series; a constant
    feature stays. Helps with noisy sensors. Fails where a small ripple is the signal.
    Source: Um et al., "Data Augmentation of Wearable Sensor Data", arXiv 1706.00527.
    """

    std: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of the noise, in those of the feature in this series."""

    reads: ClassVar[tuple[Form, ...]] = SERIES
    neutral: ClassVar[dict[str, Any]] = {"std": 0.0}

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Noisy series."""
        x = batch.inputs[0]
        spread = x.std(1, correction=0, keepdim=True)
        return with_first(batch, x + self.std * spread * normal(step, "jitter", batch, *x.shape[1:], dtype=x.dtype))


@checked
class Scaling(Augmentation):
    """Multiply each feature of each series by its own factor from N(1, std^2), the same at all steps.

    Helps where sensors differ in gain. Fails where the size is the class; not for forecasts, whose targets go on from
    the series at its own size. Source: Um et al., arXiv 1706.00527.
    """

    std: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of the factor."""

    reads: ClassVar[tuple[Form, ...]] = SERIES
    neutral: ClassVar[dict[str, Any]] = {"std": 0.0}
    tasks: ClassVar[tuple[str, ...]] = WHOLE_SERIES

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Larger and smaller series."""
        x = batch.inputs[0]
        factor = 1 + self.std * normal(step, "scaling", batch, 1, x.shape[2], dtype=x.dtype)
        return with_first(batch, x * factor)


@checked
class TimeWarp(Augmentation):
    """Let time run faster and slower: speeds ``exp(std * n)`` at ``knots`` places, linear between them.

    The first and the last step stay, and order is kept. Helps where the same thing happens at different speeds. Fails
    where the rhythm is the class; not for forecasts. Source: Um et al., arXiv 1706.00527, with lines for splines.
    """

    std: Annotated[float, Ge(0)] = 0.3
    """Standard deviation of the logarithm of the speed."""
    knots: Annotated[int, Ge(2)] = 4
    """Places at which a speed is drawn, both ends included."""

    reads: ClassVar[tuple[Form, ...]] = SERIES
    neutral: ClassVar[dict[str, Any]] = {"std": 0.0}
    tasks: ClassVar[tuple[str, ...]] = WHOLE_SERIES

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Series in another time."""
        x = batch.inputs[0]
        if x.shape[1] < 2:
            return batch
        speeds = (self.std * normal(step, "time-warp", batch, self.knots, dtype=x.dtype)).exp()
        return with_first(batch, resample(x, warped_times(speeds, x.shape[1])))


@checked
class WindowSlice(Augmentation):
    """Cut a window of ``share`` of each series at a random place, and stretch it to the whole length.

    Helps where the class shows in any part. Fails where it shows in one place only, or in the rhythm; not for
    forecasts. Source: Le Guennec, Malinowski and Tavenard, "Data Augmentation for Time Series Classification using
    Convolutional Neural Networks", 2016 (slices, stretched here so that nets see one length).
    """

    share: Annotated[float, Gt(0), Le(1)] = 0.9
    """Length of the window, as a part of the series."""

    reads: ClassVar[tuple[Form, ...]] = SERIES
    neutral: ClassVar[dict[str, Any]] = {"share": 1.0}
    tasks: ClassVar[tuple[str, ...]] = WHOLE_SERIES

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Stretched windows."""
        x = batch.inputs[0]
        last = x.shape[1] - 1
        start = uniform(step, "window-slice", batch, 1, dtype=x.dtype) * (1 - self.share) * last
        steps = torch.arange(last + 1, dtype=x.dtype, device=x.device)
        return with_first(batch, resample(x, (start + self.share * steps).clamp(max=last)))
