"""Schedules: the factor on the learning rate as a pure function of the step, so there is nothing to restore.

Here is what all of them share: the warm-up, and one schedule after another. The curves are next door: those that
fall (``schedules_decay``), fall in steps (``schedules_drops``), go up and down (``schedules_cycles``), or follow the
scores (``schedules_plateau``).

Every length in a recipe is a fraction, so that it scales with the budget: a part of all steps of the run, or of this
schedule's share of the run if another one comes before or after it. The functions count in steps.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt
from pydantic import Field

from kingpost.assembly import Assembly, Schedule, Slot
from kingpost.errors import RecipeError
from kingpost.option import Kind, checked
from kingpost.technique import Technique

TOUCHES: frozenset[Slot] = frozenset({"schedule"})

# Fields that subclasses inherit say what they mean here: docstrings below a field are not inherited.
WarmUp = Annotated[float, Ge(0), Lt(1), Field(description="Part of all steps in which the rate rises linearly from 0.")]
Next = Annotated[
    Technique | None,
    Kind("schedule"),
    Field(description="The schedule that follows, if any, with a shape of its own."),
]
At = Annotated[
    float | None, Field(gt=0, lt=1, description="Part of all steps after which `then` takes over; needed with it.")
]  # fmt: skip


def warmed(schedule: Schedule, warmup_steps: int) -> Schedule:
    """A linear rise from 0 to what the schedule is after ``warmup_steps``; from there on the schedule itself.

    The first step has the share ``1 / (warmup_steps + 1)``, so that no step is wasted at rate 0.

    >>> rise = warmed(lambda step, total_steps: 1.0, 3)
    >>> [rise(step, 10) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def rise(step: int, total_steps: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1) * schedule(warmup_steps, total_steps)
        return schedule(step, total_steps)

    return rise


def chained(first: Schedule, second: Schedule, at: float) -> Schedule:
    """The first schedule over a part ``at`` of the steps, then the second; each sees only its own share.

    >>> both = chained(lambda step, total_steps: step / total_steps, lambda step, total_steps: 1.0, at=0.4)
    >>> [both(step, 5) for step in range(5)]
    [0.0, 0.5, 1.0, 1.0, 1.0]
    """

    def chain(step: int, total_steps: int) -> float:
        border = min(max(1, round(at * total_steps)), max(1, total_steps - 1))
        if step < border:
            return first(step, border)
        return second(step - border, max(1, total_steps - border))

    return chain


@checked
class Curve(Technique):
    """Base of the schedules that depend on nothing but the step; a subclass says what the curve is.

    Class attributes:
        continuous: whether the steps of the curve become ever smaller the longer the run is.
    """

    warmup: WarmUp = 0.0
    then: Next = None
    at: At = None

    touches: ClassVar[frozenset[Slot]] = TOUCHES
    continuous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.then is None) != (self.at is None):
            given, missing = ("at", "then") if self.then is None else ("then", "at")
            example = "then: {name: cosine}" if missing == "then" else "at: 0.5"
            raise RecipeError(f"has no effect without '{missing}'", path=given, mend=f"add for example {example}")
        if self.then is not None:
            object.__setattr__(self, "touches", TOUCHES | self.then.touches)
        self.check()

    def check(self) -> None:
        """Refuse fields that contradict one another.

        Raises:
            RecipeError: they do.
        """
        return

    @abstractmethod
    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The factor at a step from ``warmup_steps`` on, counted from the start of the schedule's share."""

    def of_step(self, step: int, total_steps: int) -> float:
        """The factor at a step of this schedule's share of the run, warm-up included."""
        warmup_steps = min(round(self.warmup * total_steps), total_steps - 1)
        return warmed(lambda t, steps: self.curve(t, steps, warmup_steps), warmup_steps)(step, total_steps)

    @property
    def reproducible(self) -> bool:
        """Whether the recipe's file alone can make it again."""
        return bool(getattr(self.then, "reproducible", True))

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this schedule, and the ones that follow it."""
        if self.then is None or self.at is None:
            return assembly.with_(schedule=self.of_step)
        after = self.then.mount(assembly)
        return after.with_(schedule=chained(self.of_step, after.schedule, self.at))


@checked
class Constant(Curve):
    """The learning rate stays as it is, times ``factor``, after an optional warm-up: ``f(t) = factor``.

    Helps in short trials, with optimizers that need no decay, and as a piece between other schedules.
    Fails to reach the lowest loss: the noise of the last steps is never averaged out by smaller ones.
    Source: Robbins and Monro, "A Stochastic Approximation Method", 1951, on why rates should fall.
    """

    factor: Annotated[float, Gt(0)] = 1.0
    """Factor on the optimizer's rate."""

    def curve(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """The same at each step."""
        return self.factor
