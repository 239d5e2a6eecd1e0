"""Schedules that fall in steps: at equal distances, or at given places."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from annotated_types import Gt, Le, Lt, MinLen

from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.train.optimise.schedules import Curve


def step_decay(step: int, every_steps: int, factor: float) -> float:
    """``factor`` to the power of how many times ``every_steps`` have passed.

    >>> [step_decay(step, 2, 0.5) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return float(factor ** (step // every_steps))


def multi_step(step: int, milestones: Sequence[int], factor: float) -> float:
    """``factor`` to the power of how many milestones have been reached; they are sorted.

    >>> [multi_step(step, [1, 3], 0.1) for step in range(4)]
    [1.0, 0.1, 0.1, 0.010000000000000002]
    """
    return float(factor ** bisect.bisect_right(milestones, step))


@checked
class StepDecay(Curve):
    """Multiply the rate by ``factor`` each time another part ``every`` of the run is over: ``f(t) = factor^(t // n)``.

    Helps to repeat published recipes of convolutional nets (a tenth every 30 of 90 epochs is ``every: 0.3333``).
    Fails to be as good as a smooth fall of the same length in most comparisons; the drops are two knobs to tune.
    Source: He et al., "Deep Residual Learning", arXiv 1512.03385, section 4. Steps count from the start.
    """

    every: Annotated[float, Gt(0), Lt(1)] = 0.3333
    """Part of all steps between two drops."""
    factor: Annotated[float, Gt(0), Le(1)] = 0.1
    """What each drop multiplies the rate by."""

    continuous: ClassVar[bool] = False

    def check(self) -> None:
        """The first drop comes after the warm-up."""
        _check_after_warmup("every", self.every, self.warmup)

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The drops so far."""
        return step_decay(step, max(1, round(self.every * total_steps)), self.factor)


@checked
class MultiStep(Curve):
    """Multiply the rate by ``factor`` at each milestone: ``f(t) = factor^(milestones reached)``.

    Helps to repeat published recipes (half and three quarters of the run for nets on CIFAR).
    Fails to be as good as a smooth fall of the same length in most comparisons; each milestone is a knob.
    Source: He et al., "Deep Residual Learning", arXiv 1512.03385, section 4.2. Milestones count from the start,
    warm-up included.
    """

    milestones: Annotated[tuple[Annotated[float, Gt(0), Lt(1)], ...], MinLen(1)] = (0.5, 0.75)
    """Parts of all steps after which the rate drops, in order."""
    factor: Annotated[float, Gt(0), Le(1)] = 0.1
    """What each drop multiplies the rate by."""

    continuous: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"milestones": (0.5, 0.75), "factor": 0.2}

    def check(self) -> None:
        """Milestones are in order, and after the warm-up."""
        if any(a >= b for a, b in itertools.pairwise(self.milestones)):
            raise RecipeError(f"got {list(self.milestones)}, which do not rise", path="milestones", mend="sort them")
        _check_after_warmup("milestones", self.milestones[0], self.warmup)

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The drops so far."""
        return multi_step(step, [max(1, round(part * total_steps)) for part in self.milestones], self.factor)


def _check_after_warmup(field: str, first: float, warmup: float) -> None:
    if first <= warmup:
        raise RecipeError(
            f"the first drop, at {first}, is not after the warm-up of {warmup}", path=field, mend="lower warmup"
        )
