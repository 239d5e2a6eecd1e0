"""The L2 penalty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Loss, Objective, Slot
from kingpost.option import checked
from kingpost.technique import Technique


def half_squared_norm(parameters: Iterable[Tensor]) -> Tensor:
    """``|w|^2 / 2`` over all tensors together, scalar; its gradient is ``w``.

    >>> half_squared_norm([torch.tensor([3.0, 4.0])])
    tensor(12.5000)
    """
    return torch.stack([p.square().sum() for p in parameters]).sum() / 2


def penalised(objective: Objective, strength: float) -> Objective:
    """An objective with ``strength * |w|^2 / 2`` over matrices and kernels added to the mean loss."""

    def penalise(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        weights = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]
        loss.penalty = loss.penalty + strength * half_squared_norm(weights)
        return loss

    return penalise


@checked
class L2(Technique):
    """Add ``strength * |w|^2 / 2`` to the loss; for plain SGD the same as weight decay.

    Fails with adaptive optimizers, which divide the penalty's gradient by its own size: use ``weight_decay`` of
    AdamW there. Source: Krogh and Hertz, "A Simple Weight Decay Can Improve Generalization", 1991.
    """

    strength: Annotated[float, Ge(0)] = 1e-4
    """Factor of the penalty, in units of the mean loss."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    example: ClassVar[dict[str, Any]] = {"strength": 0.1}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective is penalised."""
        return assembly.with_(objective=penalised(assembly.objective, self.strength))
