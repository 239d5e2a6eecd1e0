"""Attacks that follow the gradient of the loss with respect to the input: one step (FGSM) or several (PGD)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt
from torch import Tensor, nn

from kingpost.assembly import Batch, Objective, Step
from kingpost.option import checked
from kingpost.train.adversarial.attack import (
    Attack,
    Norm,
    direction,
    in_use,
    input_gradient,
    project,
    within_ball,
)
from kingpost.train.augment.augmentation import check_range, with_first


def pgd(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    epsilon: float,
    steps: int,
    step_size: float,
    norm: Norm = "linf",
    start: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Batch:
    """The batch after ``steps`` times ``x <- project(x + step_size * direction(gradient))``.

    Args:
        model: what is attacked; it is looked at in eval mode, and gets no gradients.
        objective: the loss that is to rise.
        batch: its first input is changed.
        epsilon: radius of the ball, in the input's unit.
        steps: how many.
        step_size: length of one, in the input's unit.
        norm: of the ball.
        start: displacement to begin with, in the shape of the first input; None is none.
        low: smallest value that an input can have.
        high: largest value.
    """
    x = batch.inputs[0]
    moved = x if start is None else project(x + start, x, epsilon, norm, low, high)
    with in_use(model):
        for _ in range(steps):
            upwards = direction(input_gradient(model, objective, batch, moved), norm)
            moved = project(moved + step_size * upwards, x, epsilon, norm, low, high)
    return with_first(batch, moved.detach())


@checked
class FGSM(Attack):
    """Train on ``x + epsilon * sign(gradient)``, the loss's steepest rise in a box; costs one more pass each way.

    With a random start, ``d ~ U(-epsilon, epsilon)``, the step is 1.25 epsilon, and the sum is cut off at epsilon.
    Helps against attacks of one step, and cheaply against those of several. Fails by "catastrophic overfitting": late
    in training or at large epsilon the net learns to fool this one step, and PGD breaks it; measure with PGD. Accuracy
    on clean inputs falls. Source: Goodfellow et al., arXiv 1412.6572; with random start, Wong et al., arXiv 2001.03994.
    """

    epsilon: Annotated[float, Ge(0)] = 0.1
    """Largest change of any number of the input, in its own unit (standard deviations, if standardised)."""
    random_start: bool = True
    """Begin at a random place of the box."""
    step_size: Annotated[float, Gt(0)] | None = None
    """Length of the step; null takes epsilon, or 1.25 epsilon after a random start."""
    low: float | None = None
    """Smallest value that an input can have, in its own unit; null is no bound."""
    high: float | None = None
    """Largest value that an input can have; null is no bound."""

    conflicts: ClassVar[dict[str, str]] = {"pgd": "one attack is trained on"}
    neutral: ClassVar[dict[str, Any]] = {"epsilon": 0.0}

    def __post_init__(self) -> None:
        check_range(self.low, self.high)

    def perturb(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Batch:
        """One step up."""
        if self.epsilon == 0:
            return batch
        start = within_ball(step, "fgsm", batch, self.epsilon, "linf") if self.random_start else None
        size = self.step_size or (1.25 if self.random_start else 1.0) * self.epsilon
        return pgd(model, objective, batch, self.epsilon, 1, size, "linf", start, self.low, self.high)


@checked
class PGD(Attack):
    """Train on the worst input that ``steps`` steps of projected gradient ascent find within ``epsilon``.

    ``x <- project(x + step_size * direction(gradient))``: the sign and a box for ``linf``, the gradient at length 1 and
    a ball for ``l2``, each sample for itself. Helps against all attacks within the ball, the most reliably of all such
    trainings. Fails to come free: accuracy on clean inputs falls, and a step costs ``steps`` more passes each way.
    Source: Madry et al., arXiv 1706.06083.
    """

    epsilon: Annotated[float, Ge(0)] = 0.1
    """Radius, in the input's own unit (standard deviations, if standardised)."""
    norm: Norm = "linf"
    """linf: every number may change by epsilon; l2: all changes of a sample together have length epsilon."""
    steps: Annotated[int, Ge(1)] = 7
    """How many."""
    step_size: Annotated[float, Gt(0)] | None = None
    """Length of a step; null takes ``2.5 * epsilon / steps``."""
    random_start: bool = True
    """Begin at a random place of the ball."""
    low: float | None = None
    """Smallest value that an input can have, in its own unit; null is no bound."""
    high: float | None = None
    """Largest value that an input can have; null is no bound."""

    neutral: ClassVar[dict[str, Any]] = {"epsilon": 0.0}
    example: ClassVar[dict[str, Any]] = {"steps": 2}

    def __post_init__(self) -> None:
        check_range(self.low, self.high)

    def perturb(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Batch:
        """So many steps up."""
        if self.epsilon == 0:
            return batch
        start = within_ball(step, "pgd", batch, self.epsilon, self.norm) if self.random_start else None
        size = self.step_size or 2.5 * self.epsilon / self.steps
        return pgd(model, objective, batch, self.epsilon, self.steps, size, self.norm, start, self.low, self.high)
