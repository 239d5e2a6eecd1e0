"""What a search has found: its trials, what mattered, the winner, and whether the winner is better indeed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kingpost.figure import readable
from kingpost.files import write_json, write_text
from kingpost.verdict import Decision, Verdict

TUNING, TRIALS_CSV, WINNER = "tuning.json", "trials.csv", "winner.yaml"
MOST_ROWS, MOST_KEYS, WIDTH = 5, 6, 20


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial of a search: ``finished``, ``pruned`` (ended early) or ``failed`` (diverged, or could not be built)."""

    number: int
    status: str
    score: float | None
    patch: str
    point: Mapping[str, Any]
    """As the study keeps it: the name of each axis, and its value."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """The patch in plain values."""
    seconds: float | None = None
    message: str = ""
    curve: tuple[tuple[float, float | None], ...] = ()
    """Percent of the budget, and the metric there."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The result of a search.

    ``optimism`` is by how much the search overrated the winner: its score there, less its mean on fresh seeds, in the
    metric's unit, turned so that more than 0 is flattering. The best of many noisy scores is overrated on average.
    """

    name: str
    folder: str
    metric: str
    higher_is_better: bool
    space: tuple[str, ...]
    budget: str
    sampler: str
    pruner: str
    trials: tuple[Tried, ...]
    importances: Mapping[str, float]
    importances_note: str
    start: float | None
    """What the start itself scored in the search."""
    winner: int | None
    patch: str
    verdict: Verdict | None = None
    test: Mapping[str, float] | None = None
    """Means on the test part over the seeds of the proof: ``baseline``, ``winner``, ``pairs``."""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    report: str = ""

    @property
    def decision(self) -> Decision:
        """That of the proof; without a proof there is no evidence."""
        return self.verdict.decision if self.verdict else "no evidence yet"

    @property
    def final(self) -> bool:
        """Whether more time would change nothing."""
        return self.verdict is None or self.verdict.final

    @property
    def score(self) -> float | None:
        """What the winner scored in the search."""
        return next((trial.score for trial in self.trials if trial.number == self.winner), None)

    @property
    def optimism(self) -> float | None:
        """By how much the search overrated the winner; None without fresh runs of it."""
        fresh = self.fresh("arm")
        if fresh is None or self.score is None:
            return None
        return (self.score - fresh) * (1 if self.higher_is_better else -1)

    def fresh(self, side: str) -> float | None:
        """The mean on fresh seeds of the ``arm`` (the winner) or of the ``baseline``; failed runs are left out."""
        values = [getattr(pair, side) for pair in self.verdict.pairs] if self.verdict else []
        whole = [value for value in values if value is not None]
        return statistics.fmean(whole) if whole else None

    def to_value(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            **vars(self),
            "decision": self.decision,
            "trials": [asdict(trial) for trial in self.trials],
            "verdict": self.verdict.to_value() if self.verdict else None,
            "score": self.score,
            "fresh": {"baseline": self.fresh("baseline"), "winner": self.fresh("arm")},
            "optimism": self.optimism,
        }

    def save_to(self, folder: Path) -> None:
        """Write ``tuning.json`` and ``trials.csv``."""
        write_json(folder / TUNING, self.to_value())
        keys = list(dict.fromkeys(key for trial in self.trials for key in trial.point))
        rows = [["trial", "status", self.metric, "seconds", *keys, "message"]]
        for one in self.trials:
            figures = ["" if value is None else f"{value!r}" for value in (one.score, one.seconds)]
            point = [str(one.point.get(key, "")) for key in keys]
            rows.append([str(one.number), one.status, *figures, *point, one.message])
        write_text(folder / TRIALS_CSV, "".join(",".join(map(_cell, row)) + "\n" for row in rows))

    def best(self, count: int) -> list[Tried]:
        """The best whole trials, best first; of equal ones the earlier."""
        sign = -1 if self.higher_is_better else 1
        whole = [trial for trial in self.trials if trial.status == "finished" and trial.score is not None]
        return sorted(whole, key=lambda trial: (sign * (trial.score or 0.0), trial.number))[:count]

    def __str__(self) -> str:
        lines = [self.headline(), *self._search(), *self._importances(), *self._honesty()]
        if self.verdict:
            told = str(self.verdict).splitlines()
            kept = ("because", "interval", "needed", "cost", "failed", "ledger")
            lines += ["", told[0], *(line for line in told if line.startswith(kept))]
        lines += [f"note       {note}" for note in self.notes[:3]]
        lines.append(f"written    {self.folder}")
        if self.report:
            lines.append(f"report     {self.report}")
        return "\n".join(lines)

    def headline(self) -> str:
        """The end of it in one line."""
        if self.winner is None:
            return f"{self.name}: NOTHING FOUND. No trial came to an end"
        if not self.patch:
            return f"{self.name}: NOTHING BETTER than the start was found in {len(self.trials)} trials"
        said = {
            "helps": "PROVED BETTER than the start",
            "hurts": "WORSE than the start, though it won the search",
            "no difference that matters": "NO BETTER than the start, though it won the search",
            "no evidence yet": "NOT PROVED to be better than the start",
        }[self.decision]
        return f"{self.name}: the winner of {len(self.trials)} trials is {said}"

    def _search(self) -> Iterator[str]:
        counts = {
            status: sum(one.status == status for one in self.trials) for status in ("finished", "pruned", "failed")
        }
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        took = f" in {readable(self.seconds, 'seconds')}" if self.seconds else ""
        yield f"trials     {told or 'none'}{took}; {self.sampler}, pruner {self.pruner}; {self.budget}"
        if self.patch:
            yield f"winner     {self.patch}"
        yield f"trial      {self.metric:>12}  patch"
        for one in self.best(MOST_ROWS):
            text = one.patch or "(the start)"
            yield f"{one.number:<10} {one.score:>12.5g}  {text if len(text) <= 90 else text[:87] + '...'}"
        for message in list(dict.fromkeys(one.message for one in self.trials if one.status == "failed"))[:2]:
            yield f"failed     {message}"[:118]

    def _importances(self) -> Iterator[str]:
        if not self.importances:
            yield f"importance none: {self.importances_note}"
            return
        yield f"importance {self.importances_note}"
        width = max(map(len, list(self.importances)[:MOST_KEYS]))
        for key, share in list(self.importances.items())[:MOST_KEYS]:
            yield f"           {key:<{width}}  {share:>4.0%} {'#' * round(WIDTH * share)}"

    def _honesty(self) -> Iterator[str]:
        if (optimism := self.optimism) is not None and self.score is not None and self.verdict:
            fresh, pairs = self.fresh("arm"), len(self.verdict.pairs)
            yield (
                f"optimism   {optimism:+.3g}: the search said {self.score:.4g}, "
                f"{pairs} fresh seeds say {fresh:.4g} ({self.metric})"
            )
        if self.test:
            base, winner = self.test["baseline"], self.test["winner"]
            yield f"test part  start {base:.4g}, winner {winner:.4g}: {winner - base:+.3g}, means over the fresh seeds"


def finite(value: float | None) -> float | None:
    """The value, or None where it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n\r') else text
