"""Snapshot ensembles: several nets from one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Schedule, Slot, Step, Update
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique


def cycle_ends(total_steps: int, cycles: int) -> list[int]:
    """After how many steps each of nearly equal cycles ends.

    >>> cycle_ends(10, 3)
    [3, 6, 10]
    """
    return [total_steps * (cycle + 1) // cycles for cycle in range(cycles)]


def repeated(schedule: Schedule, cycles: int) -> Schedule:
    """The schedule run through anew in each cycle.

    >>> twice = repeated(lambda step, total_steps: 1 - step / total_steps, 2)
    >>> [twice(step, 4) for step in range(4)]
    [1.0, 0.5, 1.0, 0.5]
    """

    def repeat(step: int, total_steps: int) -> float:
        start = 0
        for end in cycle_ends(total_steps, cycles):
            if step < end:
                return schedule(step - start, end - start)
            start, last = end, end - start
        return schedule(step - start + last, last)  # beyond the end, as the last cycle itself goes on

    return repeat


class Kept:
    """Weights kept during a run, oldest first; on the processor, in whose memory there is most room.

    Args:
        most: how many to keep; None for all.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most, self.steps, self.weights = most, list[int](), list[dict[str, Tensor]]()

    def add(self, model: nn.Module, step: int) -> None:
        """Keep a copy of the model's parameters and buffers as they are after so many steps."""
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # tied ones once
        copy = {name: value.detach().to("cpu", copy=True) for name, value in named.items()}
        self.steps, self.weights = [*self.steps, step], [*self.weights, copy]
        if self.most is not None:
            self.steps, self.weights = self.steps[-self.most :], self.weights[-self.most :]

    def state_dict(self) -> dict[str, Any]:
        """All that is kept."""
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.steps = list(state["steps"])
        self.weights = [{name: value.to("cpu", copy=True) for name, value in one.items()} for one in state["weights"]]


def keeping(update: Update, kept: Kept, total_steps: int, cycles: int) -> Update:
    """An update that keeps the new weights at the end of each cycle."""
    ends = set(cycle_ends(total_steps, cycles))

    def keep(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        update(model, optimizer, step)
        within_budget(step, total_steps)
        if step.index + 1 in ends:
            kept.add(model, step.index + 1)

    return keep


def within_budget(step: Step, total_steps: int) -> None:
    """Refuse steps beyond the length that was planned with.

    Raises:
        RecipeError: the run is longer, which only a budget in seconds makes it.
    """
    if step.index >= total_steps:
        raise RecipeError(
            "with a budget in seconds nobody knows when the run ends", path="budget", mend="give it in steps or epochs"
        )


@checked
class Snapshots(Technique):
    """Run through the recipe's schedule ``cycles`` times, and keep the weights at the end of each cycle.

    With ``schedule: cosine`` the rate in a cycle of c steps is ``lr * (1 + cos(pi t / c)) / 2``, as published. The
    weights are in the run's state; ``kingpost predict RUN --snapshots`` lets all of them vote.
    Helps to get an ensemble for the price of one run: members that differ are worth more than longer training.
    Fails where a cycle is too short to converge, or under a constant rate: the members are then poor or nearly equal.
    Source: Huang et al., "Snapshot Ensembles: Train 1, get M for free", arXiv 1704.00109.
    """

    cycles: Annotated[int, Ge(1)] = 5
    """How often the schedule is run through, and how many nets are kept."""
    keep: Annotated[int, Ge(1)] | None = None
    """Only the last so many of them; null keeps all."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"schedule", "update", "state"})
    after: ClassVar[tuple[str, ...]] = ("sam", "clip")
    neutral: ClassVar[dict[str, Any]] = {"cycles": 1}
    example: ClassVar[dict[str, Any]] = {"cycles": 2}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly that keeps snapshots."""
        steps = assembly.setting.total_steps
        if self.cycles > steps:
            raise RecipeError(f"got {self.cycles}, but the run has {steps} steps", path="cycles", mend="take fewer")
        kept = Kept(self.keep)
        mounted = assembly.with_(
            schedule=repeated(assembly.schedule, self.cycles),
            update=keeping(assembly.update, kept, steps, self.cycles),
        )
        return mounted.with_state(self.name, kept)
