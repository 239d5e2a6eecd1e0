"""Gradient accumulation: a large batch in small pieces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import nn

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import merged


def accumulated(
    gradient: Gradient,
    micro_batches: int,
    local: Callable[[nn.Module], AbstractContextManager[object]] = lambda model: nullcontext(),
) -> Gradient:
    """A gradient that works through the batch in ``micro_batches`` pieces and adds up.

    Args:
        gradient: what each piece is given to.
        micro_batches: number of pieces.
        local: context for all pieces but the last, in which processes need not talk to one another.
    """

    def accumulate(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        *early, last = batch.split(micro_batches)
        losses = []
        with local(model):
            losses += [gradient(model, objective, piece, step) for piece in early]
        return merged([*losses, gradient(model, objective, last, step)])

    return accumulate


@checked
class Accumulate(Technique):
    """Split every batch into micro-batches and add up their gradients: ``g = sum_k g_k``, memory of one piece.

    Fails to be exact where samples of a batch see each other (batch norm) or where each piece draws anew
    (dropout). Costs the efficiency of the smaller batch. Source: common practice; described by
    Ott et al., "Scaling Neural Machine Translation", arXiv 1806.00187.
    """

    micro_batches: Annotated[int, Ge(1)] = 2
    """Number of pieces."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    neutral: ClassVar[dict[str, Any]] = {"micro_batches": 1}
    example: ClassVar[dict[str, Any]] = {"micro_batches": 4}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose gradient is accumulated."""
        return assembly.with_(gradient=accumulated(assembly.gradient, self.micro_batches, assembly.layout.local))
