"""Schedules that go up and down: one cycle, many cycles, cosines that start again."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.train.optimise.schedules import Curve


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


def triangular(step: int, cycle_steps: float, low: float, amplitude: float = 1.0) -> float:
    """Up from ``low`` to 1 in half a cycle and down again; ``amplitude`` shrinks the triangle towards ``low``.

    >>> [triangular(step, 4, 0.5) for step in range(5)]
    [0.5, 0.75, 1.0, 0.75, 0.5]
    """
    height = 1 - abs(2 * (step / cycle_steps % 1) - 1)
    return low + (1 - low) * amplitude * height


def cosine_restarts(step: int, first_steps: int, growth: int = 1, end: float = 0.0) -> float:
    """Half a cosine from 1 towards ``end``, again and again; each cycle is ``growth`` times as long as the one before.

    >>> [round(cosine_restarts(step, 2, growth=2), 3) for step in range(7)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """
    length = first_steps
    while step >= length and growth > 1:
        step, length = step - length, length * growth
    return end + (1 - end) * (1 + math.cos(math.pi * (step % length) / length)) / 2


@checked
class OneCycle(Curve):
    """Up and down once, by half cosines ``start -> 1 -> end``; the optimizer's rate is the peak.

    Helps short runs with normalised nets: a peak far above the usual rate regularises and saves epochs.
    Fails if the peak is beyond the stable rate: find that first with ``kingpost lr``.
    Source: Smith and Topin, "Super-Convergence", arXiv 1708.07120.
    """

    rise: Annotated[float, Gt(0), Lt(1)] = 0.3
    """Part of all steps that rises."""
    start: Annotated[float, Gt(0), Le(1)] = 0.04
    """Factor at the first step."""
    end: Annotated[float, Ge(0), Le(1)] = 4e-6
    """Factor at the last step."""

    def check(self) -> None:
        """It has its own warm-up."""
        if self.warmup > 0:
            raise RecipeError(
                "this schedule rises by itself", path="warmup", mend="set rise (part of the run) and start (factor)"
            )

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The cycle."""
        return one_cycle(step, total_steps, self.rise, self.start, self.end)


@checked
class Cyclic(Curve):
    """Triangles between ``low`` and 1: ``f(t) = low + (1 - low) * a(t) * (1 - |2 (t mod c) / c - 1|)``.

    Helps to find several good regions in one run, or where the best rate is known only within a factor of ten.
    Fails as the last word: the end of the run is better spent at falling rates; let the cycles end with it.
    Source: Smith, "Cyclical Learning Rates", arXiv 1506.01186.
    """

    cycle: Annotated[float, Gt(0), Le(1)] = 0.25
    """Part of all steps that one cycle takes, up and down; counted from the end of the warm-up."""
    low: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Factor at the bottom of each cycle; 1 is the top."""
    mode: Literal["triangular", "triangular2", "exp-range"] = "triangular"
    """The height a(t): always 1; halved after each cycle; or falling as ``end^(t / T)``."""
    end: Annotated[float, Gt(0), Le(1)] | None = None
    """Height after the last step; for the mode exp-range, and needed there."""

    example: ClassVar[dict[str, Any]] = {"cycle": 0.6, "mode": "triangular2"}

    def check(self) -> None:
        """Only one mode has an end."""
        if self.mode == "exp-range" and self.end is None:
            raise RecipeError("the mode exp-range needs it", path="end", mend="end: 0.1, for example")
        if self.mode != "exp-range" and self.end is not None:
            raise RecipeError(f"has no effect in mode {self.mode}", path="end", mend="remove it, or mode: exp-range")

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The cycles, after the warm-up."""
        step, steps = step - warmup_steps, max(1, total_steps - warmup_steps)
        cycle_steps = max(2, round(self.cycle * total_steps))
        amplitude = 0.5 ** (step // cycle_steps) if self.mode == "triangular2" else 1.0
        if self.end is not None:
            amplitude = self.end ** min(1.0, step / steps)
        return triangular(step, cycle_steps, self.low, amplitude)


@checked
class CosineRestarts(Curve):
    """Half a cosine down, and up again at once: ``f(t) = end + (1 - end) * (1 + cos(pi t_c / c)) / 2`` in each cycle.

    Helps to collect several good nets from one run, one at the end of each cycle (snapshot ensembles).
    Fails if the run ends in the middle of a cycle: the rate is still high; choose cycles that fill the run.
    Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983.
    """

    first: Annotated[float, Gt(0), Le(1)] = 0.25
    """Part of all steps that the first cycle takes; counted from the end of the warm-up."""
    growth: Annotated[int, Ge(1)] = 1
    """Each cycle is so many times as long as the one before."""
    end: Annotated[float, Ge(0), Le(1)] = 0.0
    """Factor towards which each cycle falls."""

    continuous: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"first": 0.5}

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The cycles, after the warm-up."""
        return cosine_restarts(step - warmup_steps, max(1, round(self.first * total_steps)), self.growth, self.end)
