"""What a trial would take, before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kingpost.figure import readable
from kingpost.prove import retune as search
from kingpost.prove.arms import Change, Subject, make, named, read
from kingpost.prove.declaration import Asked, Declaration
from kingpost.prove.places import workers_for


@dataclass(frozen=True)
class Forecast:
    """What a trial would take, before anything is spent."""

    declaration: Declaration
    runs: tuple[int, int]
    tuning_runs: int
    seconds: tuple[float, float] | None
    memory_bytes: float | None
    workers: int

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        return {**vars(self), "declaration": self.declaration.to_value()}

    def __str__(self) -> str:
        d = self.declaration
        time_ = "unknown: no run has been timed"
        if self.seconds:
            low, high = (readable(value, "seconds") for value in self.seconds)
            time_ = f"{low} to {high}, {self.workers} runs at a time; sooner if the evidence is clear"
        tuning = f", {self.tuning_runs} of them for the small search" if d.retune else ""
        lines = [
            f"trial      {d.name}: {', '.join(d.arms)} against the baseline",
            f"metric     {d.metric}, {'more' if d.higher_is_better else 'less'} is better, of the {d.at} epoch",
            f"smallest   {d.smallest_effect:g} ({d.smallest_effect_reason})",
            f"errors     alpha {d.alpha:g}, power {d.power:g}",
            f"budget     {d.budget}",
            f"pairs      {d.min_pairs} to {d.max_pairs} ({d.max_pairs_reason})",
            f"runs       {self.runs[0]} to {self.runs[1]}{tuning}",
            f"time       {time_}",
        ]
        if self.memory_bytes:
            lines.append(f"memory     {readable(self.memory_bytes, 'bytes')} of tensors at once, besides the processes")
        return "\n".join(lines)


def forecast(
    subject: Subject,
    arms: Mapping[str, Change] | Change,
    *,
    seconds: float | None = None,
    workers: int | None = None,
    name: str | None = None,
    **asked: Any,
) -> Forecast:
    """What :func:`prove` would do with these arguments: runs, time and memory; nothing is written.

    Raises:
        RecipeError: as :func:`prove`.
    """
    tuples: dict[str, Any] = {key: tuple(asked.pop(key)) for key in ("retune", "factorial") if key in asked}
    wishes = Asked(**asked, **tuples)
    places = workers_for(subject, workers, wishes.threads)
    d = make(subject, read(subject, named(arms)), wishes, name, seconds, places)
    candidates = math.prod(len(next(iter(of_arm.values()))) for of_arm in d.retune.values()) if d.retune else 0
    tuning = len(d.work) * candidates * search.SEEDS
    each = [d.known[arm]["run_seconds"] for arm in d.work if arm in d.known]
    per_pair = sum(each) / max(1, min(places, len(each))) if each else 0.0
    before = tuning * (sum(each) / len(each)) / places if each else 0.0
    times = (before + d.min_pairs * per_pair, before + d.max_pairs * per_pair) if each else None
    memory = max((one["memory_bytes"] for one in d.known.values()), default=0) * min(places, len(d.work))
    runs = (tuning + d.min_pairs * len(d.work), tuning + d.max_pairs * len(d.work))
    return Forecast(d, runs, tuning, times, memory or None, places)
