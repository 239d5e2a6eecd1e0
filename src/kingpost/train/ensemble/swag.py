"""SWA-Gaussian: a normal distribution of weights around the path of the last part of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from kingpost import seeds
from kingpost.assembly import Assembly, Slot, Step, Update
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.ensemble.snapshots import within_budget


class Moments:
    """Running moments of a model's trained parameters, by name, and its last deviations from their mean.

    Args:
        rank: how many deviations are kept.

    >>> model, moments = nn.Linear(1, 1), Moments(rank=2)
    >>> for _ in range(3):
    ...     moments.add(model)
    >>> moments.count, len(moments.deviations["weight"])
    (3, 2)
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.count = rank, 0
        self.mean: dict[str, Tensor] = {}
        self.variance: dict[str, Tensor] = {}
        self.deviations: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Count the model's present weights (Welford's sums: a small spread of large weights keeps its digits)."""
        self.count += 1
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            if name not in self.mean:
                self.mean[name], self.variance[name] = torch.zeros_like(p), torch.zeros_like(p)
                self.deviations[name] = []
            before = p - self.mean[name]
            self.mean[name] += before / self.count
            after = p - self.mean[name]
            self.variance[name] += (before * after - self.variance[name]) / self.count
            self.deviations[name] = [*self.deviations[name], after][-self.rank :]

    def sample(self, generator: torch.Generator, scale: float = 1.0) -> dict[str, Tensor]:
        """Weights drawn from the normal distribution; ``scale`` multiplies its covariance.

        ``mean + sqrt(scale / 2) * (sqrt(variance) * z1 + D z2 / sqrt(K - 1))``, where the ``K`` columns of ``D`` are
        the deviations and ``z2`` is common to all parameters.

        Raises:
            ValueError: fewer than two sets of weights were counted.
        """
        if self.count < 2:
            raise ValueError(f"a spread needs at least 2 sets of weights, got {self.count}")
        columns = len(next(iter(self.deviations.values())))
        common = torch.randn(columns, generator=generator)
        drawn = {}
        for name, mean in self.mean.items():
            own = torch.randn(mean.shape, generator=generator).to(mean)
            spread = self.variance[name].clamp(min=0).sqrt() * own
            if columns > 1:
                low_rank = torch.stack(self.deviations[name], -1) @ common.to(mean)
                spread = spread + low_rank / math.sqrt(columns - 1)
            drawn[name] = mean + math.sqrt(scale / 2) * spread
        return drawn

    def samples(self, count: int, seed: int, scale: float = 1.0) -> list[dict[str, Tensor]]:
        """Several draws, each with a seed of its own."""
        return [self.sample(seeds.generator(seed, "swag", member), scale) for member in range(count)]

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance, "deviations": self.deviations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from these sums."""
        self.count = state["count"]
        self.mean = {name: value.clone() for name, value in state["mean"].items()}
        self.variance = {name: value.clone() for name, value in state["variance"].items()}
        self.deviations = {name: [row.clone() for row in rows] for name, rows in state["deviations"].items()}


def collecting(update: Update, moments: Moments, first: int, every: int, total_steps: int) -> Update:
    """An update that counts the new weights after step ``first`` and each ``every`` steps from there."""

    def collect(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        update(model, optimizer, step)
        within_budget(step, total_steps)
        done = step.index + 1
        if done >= first and (done - first) % every == 0:
            moments.add(model)

    return collect


@checked
class SWAG(Technique):
    """Fit a normal distribution to the weights of the last part of a run: ``N(mean, (diag + D D^T / (K - 1)) / 2)``.

    The run itself is left as it is; ``kingpost predict RUN --swag --samples 20`` draws nets that vote.
    Helps to know where a net is unsure for little more than one training; best with a constant, high rate at the end.
    Fails under a rate that falls to zero, where the path stands still and the spread is too small, and for nets with
    batch norm costs a pass over training data for each net drawn.
    Source: Maddox et al., "A Simple Baseline for Bayesian Uncertainty in Deep Learning", arXiv 1902.02476.
    """

    start: Annotated[float, Ge(0), Lt(1)] = 0.75
    """Part of all steps after which weights are counted."""
    collections: Annotated[int, Ge(2)] = 40
    """How many sets of weights are counted, evenly spread from there to the end."""
    rank: Annotated[int, Ge(2)] = 20
    """Columns of D: how many of the last deviations are kept, each as large as the model."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update", "state"})
    after: ClassVar[tuple[str, ...]] = ("sam", "clip")
    example: ClassVar[dict[str, Any]] = {"start": 0.3, "collections": 4, "rank": 2}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly that collects the moments."""
        steps = assembly.setting.total_steps
        first = max(1, round(self.start * steps))
        if steps - first + 1 < 2:
            raise RecipeError(f"a run of {steps} steps leaves fewer than 2 to count", path="start", mend="start sooner")
        moments = Moments(self.rank)
        every = max(1, (steps - first) // (self.collections - 1))
        update = collecting(assembly.update, moments, first, every, steps)
        return assembly.with_(update=update).with_state(self.name, moments)
