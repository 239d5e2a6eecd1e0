"""The confidence penalty.

Legend of shapes: ``B`` samples, ``...`` positions, ``C`` classes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import Tensor

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.task import at_least_float32
from kingpost.technique import Technique
from kingpost.train.objectives.of_truth import CLASSES, IGNORED, added


def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """``-sum_i sum_c p_c log p_c`` in nats, scalar.

    Args:
        outputs: ``(B, ..., C)`` raw scores.
        targets: only says which positions are left out: those with -100.

    >>> import torch
    >>> entropy(torch.zeros(3, 2), torch.tensor([0, 1, -100]))  # two samples, ln 2 each
    tensor(1.3863)
    """
    log_p = at_least_float32(outputs).log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    if not targets.is_floating_point():
        entropies = entropies.where(targets != IGNORED, 0)
    return entropies.sum()


@checked
class ConfidencePenalty(Technique):
    """Subtract ``strength`` times the entropy of the prediction from the loss: ``L - strength * H(p)``.

    Helps as label smoothing does, without pulling the wrong classes to equal shares: certain answers cost something.
    Fails where probabilities must be sharp, and in nets that underfit and are not certain anyway.
    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions",
    arXiv 1701.06548.
    """

    strength: Annotated[float, Ge(0)] = 0.1
    """Nats of loss for a nat of entropy."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    tasks: ClassVar[tuple[str, ...]] = CLASSES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose loss is lower for uncertain predictions."""
        return assembly.with_(objective=added(assembly.objective, lambda o, t: -self.strength * entropy(o, t)))
