"""Schedules: the factor on the learning rate as a pure function of the step, so there is nothing to restore."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique

_TOUCHES: frozenset[Slot] = frozenset({"schedule"})


def cosine(step: int, total_steps: int, warmup_steps: int = 0, end: float = 0.0) -> float:
    """A linear rise over ``warmup_steps``, then half a cosine from 1 down to ``end``.

    The factor at the first step is ``1 / (warmup_steps + 1)``, and ``end`` is reached after the last step.
    Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983.

    >>> [round(cosine(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return end + (1 - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def one_cycle(step: int, total_steps: int, rise: float = 0.3, start: float = 0.04, end: float = 4e-6) -> float:
    """Half a cosine up from ``start`` to 1, then half a cosine down to ``end`` at the last step.

    Source: Smith and Topin, "Super-Convergence", arXiv 1708.07120.

    >>> [round(one_cycle(step, 10, rise=0.5, start=0.1), 2) for step in range(10)]
    [0.1, 0.23, 0.55, 0.87, 1.0, 0.9, 0.65, 0.35, 0.1, 0.0]
    """
    top = rise * total_steps - 1
    if step < top:  # the top may be at step 0, so it belongs to the fall
        low, high, progress = start, 1.0, step / top
    else:
        low, high, progress = 1.0, end, (step - top) / (total_steps - 1 - top)
    return high + (low - high) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@checked
class Constant(Technique):
    """The learning rate stays as it is, after an optional warm-up."""

    warmup: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Part of all steps in which the rate rises linearly from 0."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this schedule."""

        def schedule(step: int, total_steps: int) -> float:
            warmup_steps = round(self.warmup * total_steps)
            return min(1.0, (step + 1) / (warmup_steps + 1))

        return assembly.with_(schedule=schedule)


@checked
class Cosine(Technique):
    """Warm-up, then half a cosine down. Fails if the run is prolonged afterwards: the rate is spent."""

    warmup: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Part of all steps in which the rate rises linearly from 0."""
    end: Annotated[float, Ge(0), Le(1)] = 0.0
    """Factor that is reached after the last step."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this schedule."""
        return assembly.with_(
            schedule=lambda step, total_steps: cosine(step, total_steps, round(self.warmup * total_steps), self.end)
        )


@checked
class OneCycle(Technique):
    """Up and down once: the optimizer's rate is the peak. Fails if the peak is beyond the stable rate."""

    rise: Annotated[float, Gt(0), Lt(1)] = 0.3
    """Part of all steps that rises."""
    start: Annotated[float, Gt(0), Le(1)] = 0.04
    """Factor at the first step."""
    end: Annotated[float, Ge(0), Le(1)] = 4e-6
    """Factor at the last step."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this schedule."""
        return assembly.with_(
            schedule=lambda step, total_steps: one_cycle(step, total_steps, self.rise, self.start, self.end)
        )
