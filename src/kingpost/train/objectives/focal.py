"""The focal loss, and the polynomial loss: cross-entropy that cares less, or more, for samples that are easy.

Legend of shapes: ``B`` samples, ``C`` classes or labels.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.task import at_least_float32
from kingpost.technique import Technique
from kingpost.train.objectives.of_truth import CLASSES, added, of_truth, replaced

OTHERS = {
    "label-smoothing": "both replace the loss",
    "margin-loss": "both replace the loss",
    "class-weights": "both replace the loss",
}


def focal_loss(outputs: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """``-sum (1 - p_t)^gamma log p_t``, ``p_t`` the probability of the true class; scalar.

    Args:
        outputs: ``(B, ..., C)`` raw scores.
        targets: classes ``(B, ...)``, -100 is left out; or shares of classes ``(B, ..., C)``.
        gamma: 0 is cross-entropy.

    >>> float(focal_loss(torch.zeros(1, 2), torch.tensor([0]), gamma=1.0))  # half of ln 2
    0.3465735912322998
    """

    def term(log_p: Tensor) -> Tensor:
        least = torch.finfo(log_p.dtype).eps  # the root of 0 has no slope
        return -((-log_p.expm1()).clamp(min=least) ** gamma) * log_p

    return of_truth(outputs, targets, term)


def binary_focal_loss(outputs: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """The same for labels, each a question of its own: outputs and targets ``(B, C)``; scalar."""
    scores = at_least_float32(outputs)
    truth = targets.to(scores.dtype)
    log_p, log_q = F.logsigmoid(scores), F.logsigmoid(-scores)
    yes, no = truth * (gamma * log_q).exp() * log_p, (1 - truth) * (gamma * log_p).exp() * log_q
    return -(yes + no).sum()


def poly_term(outputs: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """``epsilon * sum (1 - p_t)``: what the polynomial loss adds to cross-entropy; scalar."""
    return epsilon * of_truth(outputs, targets, lambda log_p: -log_p.expm1())


@checked
class FocalLoss(Technique):
    """Replace the loss by ``-(1 - p_t)^gamma log p_t``: samples that are already right count for little.

    Validation losses are still those of the task.
    Helps where easy samples are so many that they drown the hard ones (a rare class, a small object), and gives less
    certain probabilities.
    Fails where labels are wrong: wrongly labelled samples stay hard, and count most. The gradient is smaller, so the
    learning rate may want to be higher.
    Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002.
    """

    gamma: Annotated[float, Ge(0)] = 2.0
    """Strength: 0 is cross-entropy."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    conflicts: ClassVar[dict[str, str]] = OTHERS
    neutral: ClassVar[dict[str, Any] | None] = None  # another formula at 0, so the last bit may differ
    tasks: ClassVar[tuple[str, ...]] = (*CLASSES, "multi-label")

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose loss is focal."""
        loss = binary_focal_loss if assembly.setting.task.name == "multi-label" else focal_loss
        return assembly.with_(objective=replaced(assembly.objective, lambda o, t: loss(o, t, self.gamma)))


@checked
class PolyLoss(Technique):
    """Add ``epsilon * (1 - p_t)`` to the loss, ``p_t`` the probability of the true class ("Poly-1").

    The first term of cross-entropy's series, ``sum_j (1 - p_t)^j / j``, gets the factor ``1 + epsilon``.
    Helps a little on many sets with ``epsilon`` of 1 to 2; negative values down to -1 are for very unequal classes.
    Fails to matter where samples are fitted: at ``p_t`` = 1 nothing is added.
    Source: Leng et al., "PolyLoss", arXiv 2204.12511.
    """

    epsilon: Annotated[float, Ge(-1)] = 1.0
    """Strength of the term, in nats."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    neutral: ClassVar[dict[str, Any]] = {"epsilon": 0.0}
    tasks: ClassVar[tuple[str, ...]] = CLASSES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose loss has the term."""
        return assembly.with_(objective=added(assembly.objective, lambda o, t: poly_term(o, t, self.epsilon)))
