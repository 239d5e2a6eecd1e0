"""Mixup."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, Slot, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique


def mixup(batch: Batch, weight: float, partners: Tensor, classes: int = 0) -> Batch:
    """Each sample mixed with its partner: ``weight * x + (1 - weight) * x[partners]``, and the targets alike.

    Args:
        batch: floating-point inputs; targets are classes, probabilities or values.
        weight: part of the sample itself, in 0..1.
        partners: ``(B,)`` indices into the batch.
        classes: number of classes, if targets are classes.
    """
    targets = soft_targets(batch, classes)
    return batch.with_(
        inputs=tuple(x.lerp(x[partners], 1 - weight) for x in batch.inputs),
        targets=targets.lerp(targets[partners], 1 - weight),
    )


def soft_targets(batch: Batch, classes: int) -> Tensor:
    """Targets that can be mixed: classes become rows of 0 and 1 in the dtype of the input, others stay."""
    if batch.targets.is_floating_point():
        return batch.targets
    return F.one_hot(batch.targets, classes).to(batch.inputs[0].dtype)


@checked
class Mixup(Technique):
    """Train on ``w x_i + (1 - w) x_j`` with targets mixed alike, ``w ~ Beta(alpha, alpha)`` once a batch.

    Helps large nets that train long, and nets that are too sure of themselves. Fails on nets that underfit and on
    short runs. With streamed data on several devices, partners come from the same device.
    Source: Zhang et al., arXiv 1710.09412.
    """

    alpha: Annotated[float, Ge(0)] = 0.2
    """Strength: 0 never mixes, 1 mixes uniformly."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"batch"})
    neutral: ClassVar[dict[str, Any]] = {"alpha": 0.0}
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose training batches are mixed."""
        inner, data = assembly.batch, assembly.setting.data
        if any(not dtype.is_floating_point for _, dtype in data.inputs):
            raise RecipeError("whole numbers cannot be mixed, and an input of this data holds such", mend="remove it")

        def mix(batch: Batch, step: Step) -> Batch:
            batch = inner(batch, step)
            if self.alpha == 0:
                return batch
            weight = np.random.default_rng(seeds.derive(step.seed, "mixup", step.index)).beta(self.alpha, self.alpha)
            partners = torch.randperm(len(batch), generator=step.generator("mixup")).to(batch.targets.device)
            return mixup(batch, float(weight), partners, len(data.classes))

        return assembly.with_(batch=mix)
