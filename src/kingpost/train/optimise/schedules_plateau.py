"""The schedule that follows the scores: cut the rate when they no longer rise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Lt

from kingpost.assembly import Assembly, Schedule, Slot, Stop
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.optimise.schedules import WarmUp, warmed


def plateau_factor(
    scores: Sequence[float],
    factor: float,
    patience: int,
    smallest_gain: float = 0.0,
    cooldown: int = 0,
    lowest: float = 0.0,
) -> float:
    """The factor on the rate after these scores: multiplied by ``factor`` whenever ``patience`` of them bring no gain.

    Args:
        scores: of all evaluations so far; higher is better.
        factor: of each cut.
        patience: evaluations without a gain before a cut.
        smallest_gain: what counts as a gain, in units of the score.
        cooldown: evaluations after a cut in which nothing is counted.
        lowest: the factor does not fall below it.

    >>> plateau_factor([0.5, 0.5, 0.5, 0.6, 0.6], factor=0.1, patience=2)
    0.1
    """
    now, best, waited, resting = 1.0, float("-inf"), 0, 0
    for score in scores:
        waited = 0 if score > best + smallest_gain else waited + 1
        best = score if waited == 0 else best
        if resting:
            resting, waited = resting - 1, 0
        if waited >= patience:
            now, waited, resting = max(lowest, now * factor), 0, cooldown
    return now


class PlateauState:
    """What the schedule and the evaluations share: the present factor, and from which score on to count."""

    def __init__(self) -> None:
        self.factor, self.passed_over, self.begun = 1.0, 0, False

    def state_dict(self) -> dict[str, Any]:
        """The three of them."""
        return {"factor": self.factor, "passed_over": self.passed_over, "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.factor, self.passed_over, self.begun = state["factor"], state["passed_over"], state["begun"]


@checked
class OnPlateau(Technique):
    """Multiply the rate by ``factor`` when ``patience`` evaluations bring no gain: ``f = factor^(cuts so far)``.

    Helps where nobody knows how long the run should be: the data decide when the rate falls.
    Fails on noisy scores with little patience: the rate is spent by chance. Early stopping needs the greater patience.
    Source: common practice; PyTorch's ReduceLROnPlateau, whose patience is one less for the same cuts.
    """

    warmup: WarmUp = 0.0
    factor: Annotated[float, Gt(0), Lt(1)] = 0.1
    """What each cut multiplies the rate by."""
    patience: Annotated[int, Ge(1)] = 10
    """Evaluations without a gain before a cut, as in early-stopping."""
    smallest_gain: Annotated[float, Ge(0)] = 0.0
    """What counts as a gain, in units of the score."""
    cooldown: Annotated[int, Ge(0)] = 0
    """Evaluations after a cut in which none is counted."""
    lowest: Annotated[float, Ge(0), Lt(1)] = 0.0
    """The factor never falls below this."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"schedule", "stop", "state"})
    continuous: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"patience": 1, "factor": 0.5, "smallest_gain": 10.0}  # a cut in the toy's run

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose rate follows the scores; it never stops the run."""
        state = PlateauState()
        mounted = assembly.with_(schedule=self._schedule(state), stop=self._watching(assembly.stop, state))
        return mounted.with_state(self.name, state)

    def _schedule(self, state: PlateauState) -> Schedule:
        def schedule(step: int, total_steps: int) -> float:
            state.begun = True  # behind another schedule it is not asked before its turn
            warmup_steps = min(round(self.warmup * total_steps), total_steps - 1)
            return warmed(lambda step, total_steps: state.factor, warmup_steps)(step, total_steps)

        return schedule

    def _watching(self, inner: Stop, state: PlateauState) -> Stop:
        def stop(scores: Sequence[float]) -> bool:
            if not state.begun:
                state.passed_over = len(scores)
            own = scores[state.passed_over :]
            state.factor = plateau_factor(
                own, self.factor, self.patience, self.smallest_gain, self.cooldown, self.lowest
            )
            return inner(scores)

        return stop
