"""What augmentations share: the base class, and draws that belong to samples.

Legend of shapes: ``B`` samples of a batch; other axes are the sample's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kingpost.assembly import Assembly, Batch, Slot, Step
from kingpost.errors import RecipeError
from kingpost.net import FORMS
from kingpost.source import DataFacts, Form
from kingpost.technique import Technique


def uniform(step: Step, purpose: str, batch: Batch, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers in [0, 1) for each sample, ``(B, *shape)``: drawn for the global batch, so that pieces agree with it."""
    device = batch.targets.device
    drawn = torch.rand(batch.total, *shape, generator=step.generator(purpose, device), device=device, dtype=dtype)
    return drawn[batch.first : batch.first + len(batch)]


def between(
    step: Step, purpose: str, batch: Batch, low: float, high: float, *shape: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Numbers in [low, high) for each sample, ``(B, *shape)``, drawn as :func:`uniform` does."""
    return low + (high - low) * uniform(step, purpose, batch, *shape, dtype=dtype)


def normal(step: Step, purpose: str, batch: Batch, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers from N(0, 1) for each sample, ``(B, *shape)``, drawn as :func:`uniform` does."""
    device = batch.targets.device
    drawn = torch.randn(batch.total, *shape, generator=step.generator(purpose, device), device=device, dtype=dtype)
    return drawn[batch.first : batch.first + len(batch)]


def whole(step: Step, purpose: str, batch: Batch, count: int, *shape: int) -> Tensor:
    """Whole numbers 0..count - 1 for each sample, ``(B, *shape)`` int64, drawn as :func:`uniform` does."""
    return (uniform(step, purpose, batch, *shape, dtype=torch.float64) * count).long().clamp(max=count - 1)


def over(x_b: Tensor, like: Tensor) -> Tensor:
    """One number a sample ``(B,)``, shaped to stand over tensors ``(B, ...)`` of as many axes as ``like``."""
    return x_b.view(-1, *[1] * (like.ndim - 1))


def clamped(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """Held in ``low..high``; None is no bound.

    >>> clamped(torch.tensor([-2.0, 2.0]), None, 1.0)
    tensor([-2.,  1.])
    """
    return x if low is None and high is None else x.clamp(low, high)


def check_range(low: float | None, high: float | None) -> None:
    """Refuse a range whose end lies below its beginning.

    Raises:
        RecipeError: it does.
    """
    if low is not None and high is not None and low >= high:
        raise RecipeError(f"got {high}", path="high", mend=f"more than low={low}")


def check_form(data: DataFacts, reads: Sequence[Form]) -> None:
    """Refuse samples of a form that a technique cannot change.

    Raises:
        RecipeError: the form is another one.
    """
    if data.form not in reads:
        shapes = " and ".join(str(shape) for shape, _ in data.inputs)
        wanted = " or ".join(FORMS[form] for form in reads)
        raise RecipeError(
            f"needs {wanted}, but this data gives {FORMS[data.form]}, of shape {shapes}", mend="remove it"
        )


class Augmentation(Technique):
    """Base of techniques that change training batches.

    Class attributes:
        reads: the forms of samples that it can change.
    """

    touches: ClassVar[frozenset[Slot]] = frozenset({"batch"})
    reads: ClassVar[tuple[Form, ...]]

    @abstractmethod
    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """The changed batch: on the batch's device, all samples at once, drawing from ``step`` only."""

    def check(self, data: DataFacts) -> None:
        """Refuse data of the right form that it cannot change all the same.

        Raises:
            RecipeError: says why.
        """

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose training batches are changed."""
        inner, data = assembly.batch, assembly.setting.data
        check_form(data, self.reads)
        self.check(data)
        idle = self.neutral is not None and all(getattr(self, name) == value for name, value in self.neutral.items())

        def changed(batch: Batch, step: Step) -> Batch:
            batch = inner(batch, step)
            return batch if idle else self.change(batch, step, data)

        return assembly.with_(batch=changed)


def with_first(batch: Batch, x: Tensor) -> Batch:
    """The batch with another first input."""
    return batch.with_(inputs=(x, *batch.inputs[1:]))
