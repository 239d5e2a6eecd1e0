"""Virtual adversarial training: answers that stay the same in the direction in which they would change most.

Legend of shapes: ``B`` samples; other axes are the sample's own.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.option import checked
from kingpost.source import Form
from kingpost.technique import Technique
from kingpost.train.adversarial.attack import (
    ATTACKABLE,
    away_from,
    bare,
    direction,
    divergence,
    in_use,
    input_gradient,
    outputs_in_use,
)
from kingpost.train.augment.augmentation import check_form, normal, with_first
from kingpost.train.regularise.sam import frozen_statistics


def virtual_direction(
    model: nn.Module, objective: Objective, batch: Batch, start: Tensor, xi: float, iterations: int
) -> Tensor:
    """For each sample, the direction of length 1 in which the model's answer changes fastest.

    Power iteration ``d <- g / |g|`` with the gradient ``g`` of ``KL(p(x) || p(x + r))`` at ``r = xi * d``: for a small
    ``xi`` that is ``xi * H d``, with the Hessian ``H`` of the divergence at ``x``.

    Args:
        model: looked at in eval mode; it gets no gradients.
        objective: what gives the model's outputs.
        batch: its first input is moved.
        start: where the iteration begins, in the shape of the first input.
        xi: length at which the gradient is taken.
        iterations: how many.
    """
    x, d = batch.inputs[0], direction(start, "l2")
    apart = away_from(outputs_in_use(model, objective, batch), objective)
    with in_use(model):
        for _ in range(iterations):
            d = direction(input_gradient(model, apart, batch, x + xi * d), "l2")
    return d


def smoothed_at(gradient: Gradient, technique: VirtualAdversarial) -> Gradient:
    """A gradient of the loss plus ``strength * KL(p(x) || p(x + epsilon d))``, ``p(x)`` taken as constant."""
    t = technique

    def smooth(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        def with_divergence(model: nn.Module, piece: Batch) -> Loss:
            x, inner = piece.inputs[0], bare(model)
            start = normal(step, "virtual-adversarial", piece, *x.shape[1:], dtype=x.dtype)
            d = virtual_direction(inner, objective, piece, start, t.xi, t.iterations)
            loss = objective(model, piece)
            with frozen_statistics(inner):
                again = objective(inner, with_first(piece, x + t.epsilon * d))
            loss.data = loss.data + t.strength * divergence(loss.outputs.detach(), again.outputs)
            return loss

        return gradient(model, with_divergence, batch, step)

    return smooth


@checked
class VirtualAdversarial(Technique):
    """Add ``strength * KL(p(x) || p(x + epsilon d))``, with ``d`` the direction in which the answer changes fastest.

    ``d`` has length 1 over the whole sample, and is found by power iteration from a random start; no label is used.
    Helps on few samples, and smooths the answer around each. Fails where epsilon reaches over to the next class; under
    bf16 the direction is rough, since it is read from a small difference. Costs ``iterations`` + 1 more passes each
    way. Source: Miyato et al., arXiv 1704.03976.
    """

    epsilon: Annotated[float, Gt(0)] = 1.0
    """Length of the move (L2 over the sample), in the input's own unit (standard deviations, if standardised)."""
    strength: Annotated[float, Ge(0)] = 1.0
    """Weight of the divergence."""
    xi: Annotated[float, Gt(0)] = 0.1
    """Length at which the direction is looked for, in the same unit."""
    iterations: Annotated[int, Ge(1)] = 1
    """Of the power iteration."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    reads: ClassVar[tuple[Form, ...]] = ATTACKABLE
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the divergence added."""
        check_form(assembly.setting.data, self.reads)
        if self.strength == 0:
            return assembly
        return assembly.with_(gradient=smoothed_at(assembly.gradient, self))
