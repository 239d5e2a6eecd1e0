"""What is asked of the runs: each question is a weighted sum of arms, seed by seed, looked at in the order of seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kingpost.prove import families
from kingpost.prove.sequential import Look, Test

BASELINE = "baseline"
Outcomes = Mapping[tuple[str, int], float | None]  # (arm, seed) -> the metric; None for a run that failed


@dataclass(frozen=True)
class Question:
    """A contrast: the weighted sum of the arms' metrics; positive weights sum to 1, negative ones to -1."""

    name: str
    weights: Mapping[str, float]

    def side(self, sign: int, seed: int, outcomes: Outcomes) -> float | None:
        """The mean of the arms on one side at a seed; None if one of them failed."""
        parts = [(abs(w), outcomes[arm, seed]) for arm, w in self.weights.items() if w * sign > 0]
        values = [weight * value for weight, value in parts if value is not None]
        return sum(values) if len(values) == len(parts) else None

    def difference(self, seed: int, outcomes: Outcomes, higher_is_better: bool) -> float:
        """More is better; infinite where one side failed, NaN where both did."""
        arm, base = self.side(+1, seed, outcomes), self.side(-1, seed, outcomes)
        if arm is None or base is None:
            return math.nan if arm is base else -math.inf if arm is None else math.inf
        return (arm - base) * (1 if higher_is_better else -1)


def against_baseline(arms: Sequence[str]) -> list[Question]:
    """Each arm against the baseline."""
    return [Question(arm, {arm: 1.0, BASELINE: -1.0}) for arm in arms]


def cells(factors: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """All combinations of factors, by the name of the arm; without the empty one.

    >>> list(cells(["a", "b", "c"]))
    ['a', 'b', 'c', 'a+b', 'a+c', 'b+c', 'a+b+c']
    """
    sizes = range(1, len(factors) + 1)
    return {"+".join(some): some for size in sizes for some in itertools.combinations(factors, size)}


def effects(factors: Sequence[str]) -> list[Question]:
    """Main effects and interactions of a full factorial design (Box, Hunter and Hunter 1978).

    The main effect of ``a`` is the mean difference that it makes over all settings of the others; the interaction
    ``a x b`` is half of how much more it makes when ``b`` is there.

    >>> effects(["a", "b"])[2]
    Question(name='a x b', weights={'baseline': 0.5, 'a': -0.5, 'b': -0.5, 'a+b': 0.5})
    """
    every: dict[str, tuple[str, ...]] = {BASELINE: (), **cells(factors)}
    scale = 2.0 ** -(len(factors) - 1)
    return [
        Question(
            " x ".join(some),
            {cell: scale * math.prod(1 if f in there else -1 for f in some) for cell, there in every.items()},
        )
        for some in cells(factors).values()
    ]


@dataclass
class State:
    """How far the looks are, as it follows from the outcomes alone."""

    looks: dict[str, list[Look]] = field(default_factory=dict)
    differences: dict[str, list[float]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    pairs: int = 0

    @property
    def done(self) -> bool:
        """Whether every question has its answer."""
        return not self.open


def replay(
    questions: Sequence[Question],
    test: Test,
    seed_of: Callable[[int], int],
    outcomes: Outcomes,
    higher_is_better: bool,
) -> State:
    """Look after every seed whose runs are all there, in the order of seeds, whatever order they came in.

    An answered question keeps its answer and its pairs; it is not asked again.
    """
    state = State({q.name: [] for q in questions}, {q.name: [] for q in questions}, [q.name for q in questions])
    by_name = {question.name: question for question in questions}
    while state.open and state.pairs < test.max_pairs:
        seed = seed_of(state.pairs)
        asked = [by_name[name] for name in state.open]
        if any((arm, seed) not in outcomes for question in asked for arm in question.weights):
            break
        for question in asked:
            state.differences[question.name].append(question.difference(seed, outcomes, higher_is_better))
        state.pairs += 1
        seen = families.looks(test, state.differences)
        for question in asked:
            state.looks[question.name].append(seen[question.name])
        state.open = [name for name in state.open if not seen[name].final]
    return state
