"""Early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique


def has_stalled(scores: Sequence[float], patience: int, smallest_gain: float = 0.0) -> bool:
    """Whether the best score is more than ``patience`` evaluations old; higher scores are better.

    >>> has_stalled([0.1, 0.5, 0.4, 0.5], patience=2), has_stalled([0.1, 0.5, 0.4], patience=2)
    (True, False)
    """
    best_at, best = 0, float("-inf")
    for index, score in enumerate(scores):
        if score > best + smallest_gain:
            best_at, best = index, score
    return len(scores) - 1 - best_at >= patience


@checked
class EarlyStopping(Technique):
    """Stop when the validation score has not improved for ``patience`` evaluations, and go back to the best weights.

    The weights of the best evaluation are in ``weights/best.safetensors``, with which the test part is judged; those of
    the last one in ``weights/last.safetensors``.
    Helps where the validation score turns: it saves time, and is a regulariser by itself.
    Fails on noisy scores with little patience, and picks the luckiest epoch: report the test part, not the
    validation score. Source: Prechelt, "Early Stopping - But When?", 1998.
    """

    patience: Annotated[int, Ge(1)] = 5
    """Evaluations without a gain before the run stops."""
    smallest_gain: Annotated[float, Ge(0)] = 0.0
    """What counts as a gain, in units of the score."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"stop"})
    neutral: ClassVar[dict[str, Any]] = {"patience": 10**9}
    example: ClassVar[dict[str, Any]] = {"patience": 1}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly that also stops when the score stalls."""
        inner = assembly.stop
        return assembly.with_(
            stop=lambda scores: inner(scores) or has_stalled(scores, self.patience, self.smallest_gain)
        )
