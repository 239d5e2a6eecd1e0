"""What the runs of a trial cost, and when they were as good as the baseline came to be."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kingpost.verdict import Cost

Outcome = Mapping[str, Any]


def cost(outcomes: Sequence[Outcome], known: Mapping[str, Any], target: float | None, higher_is_better: bool) -> Cost:
    """Medians over the runs of one arm.

    Args:
        outcomes: as the workers wrote them.
        known: parameters, FLOPs of a step and samples of it, as far as they are known.
        target: the metric that counts as reached; None leaves that out.
        higher_is_better: direction of the metric.
    """
    fine = [one for one in outcomes if one["status"] == "finished"]
    steps = _median(one["steps"] for one in fine)
    times = [
        t for one in fine if target is not None and (t := _reached(one["curve"], target, higher_is_better)) is not None
    ]
    per_step, samples = known.get("flops_per_step"), known.get("samples_per_step")
    return Cost(
        runs=len(outcomes),
        failed=len(outcomes) - len(fine),
        seconds=_median(one["seconds"] for one in fine),
        peak_memory_mebibytes=_median(one["peak_memory_mebibytes"] for one in fine),
        parameters=round(known["parameters"]) if "parameters" in known else None,
        steps=None if steps is None else round(steps),
        samples=None if steps is None or samples is None else round(steps * samples),
        flops=None if steps is None or per_step is None else steps * per_step,
        target_seconds=_median(times),
        reached_target=len(times),
    )


def target_of(outcomes: Sequence[Outcome]) -> float | None:
    """The median metric at the end of the runs; None where no run has a history."""
    values = [one["value"] for one in outcomes if one["status"] == "finished" and one["curve"]]
    return statistics.median(values) if values else None


def _reached(curve: Sequence[Sequence[float | None]], target: float, higher_is_better: bool) -> float | None:
    """Seconds until the metric first was as good as the target."""
    for seconds, value in curve:
        if value is not None and (value >= target if higher_is_better else value <= target):
            return seconds
    return None


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None
