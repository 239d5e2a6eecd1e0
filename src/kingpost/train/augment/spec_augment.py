"""SpecAugment: bands of a spectrogram or series that are blanked, in time and in frequency.

Legend of shapes: ``B`` series, ``T`` steps, ``F`` features or frequencies, ``K`` bands.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, uniform, whole, with_first


def bands(start_bk: Tensor, width_bk: Tensor, length: int) -> Tensor:
    """Where any of K bands lies, ``(B, length)`` bool.

    >>> bands(torch.tensor([[1, 4]]), torch.tensor([[2, 0]]), 5).tolist()
    [[False, True, True, False, False]]
    """
    places = torch.arange(length, device=start_bk.device)
    inside = (places >= start_bk[..., None]) & (places < (start_bk + width_bk)[..., None])
    return inside.any(1)


@checked
class SpecAugment(Augmentation):
    """Set ``time_masks`` bands of steps and ``frequency_masks`` bands of features to 0, of random width and place.

    The width is a whole number drawn from 0 to the largest one, the place from all where the band fits. Zero is the
    mean of standardised data. Either kind alone is time masking or frequency masking; the paper's time warp is the
    technique ``time-warp``. Helps speech and sound, and series with sensors that fail. Fails on short series, where a
    band covers all that counts. Source: Park et al., arXiv 1904.08779.
    """

    time_masks: Annotated[int, Ge(0)] = 2
    """How many bands of steps."""
    time_width: Annotated[int, Ge(0)] = 8
    """Largest width in steps."""
    frequency_masks: Annotated[int, Ge(0)] = 2
    """How many bands of neighbouring features."""
    frequency_width: Annotated[int, Ge(0)] = 6
    """Largest width in features."""

    reads: ClassVar[tuple[Form, ...]] = ("series",)
    neutral: ClassVar[dict[str, Any]] = {"time_masks": 0, "frequency_masks": 0}
    example: ClassVar[dict[str, Any]] = {"time_width": 3, "frequency_width": 1}

    def check(self, data: DataFacts) -> None:
        """A band must fit."""
        steps, features = data.inputs[0][0]
        for field, masks, width, size, what in (
            ("time_width", self.time_masks, self.time_width, steps, "steps"),
            ("frequency_width", self.frequency_masks, self.frequency_width, features, "features"),
        ):
            if masks and width > size:
                raise RecipeError(f"got {width}, but a series has {size} {what}", path=field, mend=f"at most {size}")

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Series with bands of zeros."""
        x = batch.inputs[0]
        _, steps, features = x.shape
        in_time = self._draw(step, batch, "time", self.time_masks, self.time_width, steps)
        in_frequency = self._draw(step, batch, "frequency", self.frequency_masks, self.frequency_width, features)
        return with_first(batch, x.masked_fill(in_time[:, :, None] | in_frequency[:, None, :], 0.0))

    def _draw(self, step: Step, batch: Batch, axis: str, masks: int, widest: int, length: int) -> Tensor:
        width = whole(step, f"spec-augment {axis} width", batch, widest + 1, masks)
        drawn = uniform(step, f"spec-augment {axis} start", batch, masks, dtype=torch.float64)
        start = (drawn * (length - width + 1)).long().minimum(length - width)
        return bands(start, width, length)
