"""Label smoothing: targets that are never quite certain."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Loss, Objective, Slot
from kingpost.option import checked
from kingpost.task import at_least_float32
from kingpost.technique import Technique


def smooth_labels(targets: Tensor, strength: float, classes: int) -> Tensor:
    """Targets moved towards the uniform distribution: ``(1 - strength) * target + strength / classes``.

    Args:
        targets: classes ``(B,)`` or probabilities ``(B, classes)``.
        strength: 0 leaves them as they are, 1 makes them uniform.
        classes: how many there are.

    >>> smooth_labels(torch.tensor([1]), 0.2, 2)
    tensor([[0.1000, 0.9000]])
    """
    soft = targets if targets.is_floating_point() else F.one_hot(targets, classes).to(torch.get_default_dtype())
    return soft * (1 - strength) + strength / classes


def smoothed(objective: Objective, strength: float) -> Objective:
    """An objective that mixes the loss with the mean over all classes of the negative log probability.

    For cross-entropy this equals smoothing the targets, whatever shape they have, and needs no soft targets.
    Positions with target -100 are left out.
    """

    def smooth(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        uniform = -F.log_softmax(at_least_float32(loss.outputs), dim=-1).mean(-1)
        if not batch.targets.is_floating_point():
            uniform = uniform.masked_fill(batch.targets == -100, 0.0)
        loss.data = (1 - strength) * loss.data + strength * uniform.sum()
        return loss

    return smooth


@checked
class LabelSmoothing(Technique):
    """Aim for probability ``1 - strength + strength / C`` of the true class, and ``strength / C`` of the others.

    Fails where probabilities must be sharp (distillation from such a model is worse), and does nothing for
    regression. Source: Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567.
    """

    strength: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Part of the probability that is spread evenly over all classes."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    tasks: ClassVar[tuple[str, ...]] = ("classification", "language-modelling", "sequence-to-sequence")

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective is smoothed."""
        return assembly.with_(objective=smoothed(assembly.objective, self.strength))
