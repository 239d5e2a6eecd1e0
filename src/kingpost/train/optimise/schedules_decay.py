"""Schedules that fall smoothly: polynomial, exponential, cosine, inverse square root, warm-up-stable-decay."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.train.optimise.schedules import Curve

Shape = Literal["linear", "cosine", "1-sqrt"]


def polynomial(step: int, total_steps: int, power: float = 1.0, end: float = 0.0) -> float:
    """From 1 down to ``end`` after the last step: ``end + (1 - end) * (1 - step / total_steps)^power``.

    >>> [polynomial(step, 4) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return end + (1 - end) * math.pow(1 - _progress(step, total_steps), power)


def exponential(step: int, total_steps: int, end: float = 0.01) -> float:
    """The same ratio at each step, ``end^(step / total_steps)``.

    >>> [round(exponential(step, 2, end=0.01), 6) for step in range(3)]
    [1.0, 0.1, 0.01]
    """
    return math.pow(end, _progress(step, total_steps))


def cosine(step: int, total_steps: int, warmup_steps: int = 0, end: float = 0.0) -> float:
    """A linear rise over ``warmup_steps``, then half a cosine from 1 down to ``end``.

    The factor at the first step is ``1 / (warmup_steps + 1)``, and ``end`` is reached after the last step.
    Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983.

    >>> [round(cosine(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = _progress(step - warmup_steps, total_steps - warmup_steps)
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2


def inverse_root(step: int, warmup_steps: int) -> float:
    """A linear rise over ``warmup_steps``, then ``sqrt((warmup_steps + 1) / (step + 1))``; 1 where they meet.

    >>> [round(inverse_root(step, 3), 3) for step in (0, 1, 3, 15)]
    [0.25, 0.5, 1.0, 0.5]
    """
    return min((step + 1) / (warmup_steps + 1), math.sqrt((warmup_steps + 1) / (step + 1)))


def stable_decay(step: int, total_steps: int, decay_steps: int, shape: Shape = "1-sqrt", end: float = 0.0) -> float:
    """1 until ``decay_steps`` are left, then down to ``end`` after the last step.

    >>> [stable_decay(step, 6, 4, "linear") for step in range(7)]
    [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    done = _progress(step - (total_steps - decay_steps), decay_steps)
    falls = {"linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2, "1-sqrt": math.sqrt(done)}
    return 1 - (1 - end) * falls[shape]


def _progress(step: int, total_steps: int) -> float:
    """Part of the steps that is done, 0..1; a step may come after the last where their number is an estimate."""
    return min(1.0, max(0.0, step / max(1, total_steps)))


@checked
class Polynomial(Curve):
    """Fall along a power of what is left: ``f(t) = end + (1 - end) * (1 - t / T)^power``; linear at power 1.

    Helps as the plain default for fine-tuning (linear, to zero) and for segmentation nets (power 0.9).
    Fails if the run is prolonged afterwards: the rate is spent.
    Source: Chen et al., "DeepLab", arXiv 1606.00915; linear to zero: Bergsma et al., arXiv 2502.15938.
    """

    power: Annotated[float, Gt(0)] = 1.0
    """Exponent: 1 is a straight line, more falls faster at the start."""
    end: Annotated[float, Ge(0), Le(1)] = 0.0
    """Factor that is reached after the last step."""

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The fall, after the warm-up."""
        return polynomial(step - warmup_steps, total_steps - warmup_steps, self.power, self.end)


@checked
class Exponential(Curve):
    """Shrink by the same ratio at each step: ``f(t) = end^(t / T)``.

    Helps where nothing is known of the run but how far the rate should fall.
    Fails to stay long enough at a high rate: half of the steps are spent below ``sqrt(end)``.
    Source: common practice; Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567, section 8.
    """

    end: Annotated[float, Gt(0), Le(1)] = 0.01
    """Factor that is reached after the last step."""

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The fall, after the warm-up."""
        return exponential(step - warmup_steps, total_steps - warmup_steps, self.end)


@checked
class Cosine(Curve):
    """Warm-up, then half a cosine down: ``f(t) = end + (1 - end) * (1 + cos(pi t / T)) / 2``.

    Helps nearly everywhere the length of the run is known; it has no knob that matters much.
    Fails if the run is prolonged afterwards: the rate is spent.
    Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983.
    """

    end: Annotated[float, Ge(0), Le(1)] = 0.0
    """Factor that is reached after the last step."""

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The fall, after the warm-up."""
        return cosine(step, total_steps, warmup_steps, self.end)


@checked
class InverseRoot(Curve):
    """Warm-up over ``w`` steps, then ``f(t) = sqrt((w + 1) / (t + 1))``, which never comes to an end.

    Helps long runs of transformers whose last step is not fixed: the fall depends on the warm-up alone.
    Fails to end at a small rate: after ten times the warm-up it is still a third of the peak. The warm-up is a part of
    the run, so another budget changes the whole curve.
    Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, section 5.3, with another peak.
    """

    example: ClassVar[dict[str, Any]] = {"warmup": 0.4}

    def check(self) -> None:
        """The warm-up is the scale of the curve, so it cannot be zero."""
        if self.warmup == 0:
            raise RecipeError(
                "got 0, but the warm-up is the time scale of this curve", path="warmup", mend="warmup: 0.1, for example"
            )

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The fall, after the warm-up."""
        return inverse_root(step, warmup_steps)


@checked
class WarmupStableDecay(Curve):
    """Warm-up, a long plateau at 1, and a short fall to ``end`` over the last part ``decay`` of all steps.

    Helps where a run may be prolonged: take a checkpoint of the plateau, and only the decay is done anew; with
    ``1-sqrt`` it is about as good as a cosine of the right length.
    Fails to show its loss early: it falls sharply only in the decay, so half-done runs look worse than they are.
    Source: Hu et al., "MiniCPM", arXiv 2404.06395; Haegele et al., arXiv 2405.18392 (the shape ``1-sqrt``).
    """

    decay: Annotated[float, Gt(0), Le(1)] = 0.2
    """Part of all steps in which the rate falls, at the end."""
    shape: Shape = "1-sqrt"
    """How it falls: linear, half a cosine, or as one minus the root of the part that is done."""
    end: Annotated[float, Ge(0), Le(1)] = 0.0
    """Factor that is reached after the last step."""

    example: ClassVar[dict[str, Any]] = {"warmup": 0.2, "decay": 0.5}

    def check(self) -> None:
        """The decay begins after the warm-up."""
        if self.warmup + self.decay > 1:
            raise RecipeError(
                f"warmup {self.warmup} and decay {self.decay} exceed the whole run",
                path="decay",
                mend="lower one",
            )

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The plateau and the fall; the warm-up keeps its steps if rounding would make the two overlap."""
        decay_steps = min(max(1, round(self.decay * total_steps)), total_steps - warmup_steps)
        return stable_decay(step, total_steps, decay_steps, self.shape, self.end)
