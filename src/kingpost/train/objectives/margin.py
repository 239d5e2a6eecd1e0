"""The margin loss of capsule networks.

Legend of shapes: ``B`` samples, ``C`` classes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Loss, Objective, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.task import at_least_float32
from kingpost.technique import Technique


def margin_loss(
    presence: Tensor, targets: Tensor, present: float = 0.9, absent: float = 0.1, down_weight: float = 0.5
) -> Tensor:
    """``T max(0, m+ - v)^2 + down_weight (1 - T) max(0, v - m-)^2``, summed over samples and classes; scalar.

    Args:
        presence: ``v``, the probability that a class is present (the length of its capsule), ``(B, C)``.
        targets: ``T``, classes ``(B,)`` int64, or shares of each class ``(B, C)``.
        present: ``m+``, above which a class that is there costs nothing.
        absent: ``m-``, below which a class that is not there costs nothing.
        down_weight: on classes that are absent, which are many.

    >>> import torch
    >>> margin_loss(torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
    tensor(0.)
    """
    there = targets if targets.is_floating_point() else F.one_hot(targets, presence.shape[1]).to(presence.dtype)
    missed = there * (present - presence).clamp(min=0).square()
    invented = (1 - there) * (presence - absent).clamp(min=0).square()
    return (missed + down_weight * invented).sum()


def with_margin(objective: Objective, present: float, absent: float, down_weight: float) -> Objective:
    """An objective whose data loss is the margin loss; outputs are log odds that a class is present."""

    def measure(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        presence = at_least_float32(loss.outputs).sigmoid()
        loss.data = margin_loss(presence, batch.targets, present, absent, down_weight)
        return loss

    return measure


@checked
class MarginLoss(Technique):
    """Replace the loss by ``T max(0, m+ - v)^2 + down_weight (1 - T) max(0, v - m-)^2``, ``v = sigmoid(output)``.

    Meant for ``capsule``, whose outputs are the log odds of its capsules' lengths, so that ``v`` is the length. Several
    classes may be present at once. Validation losses are still those of the task (softmax cross-entropy).
    Fails where probabilities are wanted: past its margins it has no gradient, and nothing drives them towards the
    truth. Source: Sabour, Frosst and Hinton, "Dynamic Routing Between Capsules", arXiv 1710.09829, equation 4.
    """

    present: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Probability above which a class that is there costs nothing."""
    absent: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability below which a class that is not there costs nothing."""
    down_weight: Annotated[float, Ge(0)] = 0.5
    """Factor on classes that are absent."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    conflicts: ClassVar[dict[str, str]] = {"label-smoothing": "both replace the loss; the margins already are soft"}
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label")
    example: ClassVar[dict[str, Any]] = {"down_weight": 0.4}

    def __post_init__(self) -> None:
        if self.absent >= self.present:
            raise RecipeError(f"got {self.absent}", path="absent", mend=f"less than present={self.present}")

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose loss is the margin loss."""
        return assembly.with_(objective=with_margin(assembly.objective, self.present, self.absent, self.down_weight))
