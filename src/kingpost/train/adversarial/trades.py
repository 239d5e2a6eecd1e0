"""TRADES: clean accuracy and robustness as two terms of one loss."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt
from torch import nn

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.option import checked
from kingpost.source import Form
from kingpost.technique import Technique
from kingpost.train.adversarial.attack import (
    ATTACKABLE,
    Perturb,
    away_from,
    bare,
    divergence,
    outputs_in_use,
)
from kingpost.train.adversarial.pgd import pgd
from kingpost.train.augment.augmentation import check_form, check_range, normal


def traded(gradient: Gradient, perturb: Perturb, beta: float) -> Gradient:
    """A gradient of ``loss(x) + beta * KL(p(x) || p(x'))``, where ``x'`` is what ``perturb`` makes of ``x``.

    Both terms have a gradient through both passes, and both passes count in running statistics, as in the paper.
    """

    def trade(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        def both(model: nn.Module, piece: Batch) -> Loss:
            attacked = perturb(bare(model), objective, piece, step)
            loss = objective(model, piece)
            again = objective(bare(model), attacked)
            loss.data = loss.data + beta * divergence(loss.outputs, again.outputs)
            return loss

        return gradient(model, both, batch, step)

    return trade


@checked
class Trades(Technique):
    """Add ``beta * KL(p(x) || p(x'))`` to the loss, where ``x'`` maximises that divergence within ``epsilon`` of ``x``.

    ``x'`` is found by ``steps`` steps along the sign of the gradient, from ``x + 0.001 n``, ``n ~ N(0, 1)``. Helps to
    choose between clean accuracy (small beta) and robustness (large beta). Fails to come free: a step costs ``steps``
    + 1 more passes each way, and clean accuracy falls. Source: Zhang et al., arXiv 1901.08573.
    """

    epsilon: Annotated[float, Gt(0)] = 0.1
    """Largest change of any number of the input, in its own unit (standard deviations, if standardised)."""
    beta: Annotated[float, Ge(0)] = 6.0
    """Weight of the divergence; the paper's 1 / lambda."""
    steps: Annotated[int, Ge(1)] = 10
    """How many."""
    step_size: Annotated[float, Gt(0)] | None = None
    """Length of a step; null takes ``2.5 * epsilon / steps``."""
    low: float | None = None
    """Smallest value that an input can have, in its own unit; null is no bound."""
    high: float | None = None
    """Largest value that an input can have; null is no bound."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    reads: ClassVar[tuple[Form, ...]] = ATTACKABLE
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    neutral: ClassVar[dict[str, Any]] = {"beta": 0.0}
    example: ClassVar[dict[str, Any]] = {"steps": 2}
    conflicts: ClassVar[dict[str, str]] = dict.fromkeys(("fgsm", "pgd"), "one attack is trained on")

    def __post_init__(self) -> None:
        check_range(self.low, self.high)

    def perturb(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Batch:
        """The batch where the model's answer differs most from that on the batch."""
        x = batch.inputs[0]
        apart = away_from(outputs_in_use(model, objective, batch), objective)
        start = 0.001 * normal(step, "trades", batch, *x.shape[1:], dtype=x.dtype)
        size = self.step_size or 2.5 * self.epsilon / self.steps
        return pgd(model, apart, batch, self.epsilon, self.steps, size, "linf", start, self.low, self.high)

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the second term."""
        check_form(assembly.setting.data, self.reads)
        if self.beta == 0:
            return assembly
        return assembly.with_(gradient=traded(assembly.gradient, self.perturb, self.beta))
