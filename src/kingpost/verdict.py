"""The Verdict: the effect of one change, with its interval, its cost, and how it was found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from kingpost.errors import RunError, nearest
from kingpost.figure import readable
from kingpost.files import write_json

Decision = Literal["helps", "hurts", "no difference that matters", "no evidence yet"]

BY_WEIGHT: tuple[Decision, ...] = ("helps", "no evidence yet", "no difference that matters", "hurts")
MOST_SEEDS, MOST_ARMS = 8, 16  # rows that are printed; the file has all
VERDICT = "verdict.json"


@dataclass(frozen=True)
class Pair:
    """One seed in both arms; None is a run that failed or diverged, which is worse than any value."""

    seed: int
    baseline: float | None
    arm: float | None

    def difference(self, higher_is_better: bool) -> float:
        """Arm minus baseline, turned so that more is better; infinite if one of them failed, NaN if both did."""
        if self.arm is None or self.baseline is None:
            return math.nan if self.arm is self.baseline else -math.inf if self.arm is None else math.inf
        return (self.arm - self.baseline) * (1 if higher_is_better else -1)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one arm costs: medians over its runs."""

    runs: int
    failed: int = 0
    seconds: float | None = None
    """Of a whole run, evaluation included."""
    peak_memory_mebibytes: float | None = None
    """Of the device, or of the whole process on the processor."""
    parameters: int | None = None
    steps: int | None = None
    samples: int | None = None
    flops: float | None = None
    """Of all training steps, counted; evaluation is left out."""
    target_seconds: float | None = None
    """Until the metric was as good as the baseline's final median, over the runs that got there."""
    reached_target: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a trial says about one arm against the baseline.

    ``difference``, ``lower`` and ``upper`` are in the metric's unit, turned so that more than 0 is better. The interval
    has the declared confidence at whatever pair one stops.
    """

    trial: str
    arm: str
    patch: str
    decision: Decision
    final: bool
    reason: str
    difference: float
    lower: float
    upper: float
    p: float
    more_pairs: int | None
    pairs: tuple[Pair, ...]
    looks: tuple[Mapping[str, Any], ...]
    """``pairs``, ``difference``, ``lower`` and ``upper`` at each look, for the plot."""
    metric: str
    higher_is_better: bool
    smallest_effect: float
    alpha: float
    power: float
    budget: str
    costs: Mapping[str, Cost]
    """Of ``baseline`` and of ``arm``."""
    target: float | None = None
    same_weights: float | None = None
    """Part of the arm's starting weights that are the baseline's, at the first seed."""
    retuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ledger: str = ""
    ledger_row: int = 0
    ledger_sha256: str = ""
    report: str = ""

    @property
    def pairing_gain(self) -> float | None:
        """``(var(baseline) + var(arm)) / var(difference)``: how many times fewer pairs than unpaired runs are needed.

        None where there are fewer than three pairs, or no spread at all.
        """
        whole = [(pair.baseline, pair.arm) for pair in self.pairs if pair.baseline is not None and pair.arm is not None]
        if len(whole) < 3:
            return None
        spread = statistics.variance([b - a for a, b in whole])
        apart = statistics.variance([a for a, _ in whole]) + statistics.variance([b for _, b in whole])
        return apart / spread if spread > 0 else None

    def to_value(self) -> dict[str, Any]:
        """As plain values for JSON, where infinity is null; :meth:`from_value` is the inverse."""
        value = {
            **vars(self),
            "pairs": [asdict(pair) | {"difference": pair.difference(self.higher_is_better)} for pair in self.pairs],
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "pairing_gain": self.pairing_gain,
        }
        finite: dict[str, Any] = _finite(value)
        return finite

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Verdict:
        """A verdict from the values that :meth:`to_value` gives."""
        pairs = tuple(Pair(p["seed"], p["baseline"], p["arm"]) for p in value["pairs"])
        odd = {"lower": -math.inf, "upper": math.inf, "difference": math.nan}
        ends = {key: other if value[key] is None else value[key] for key, other in odd.items()}
        costs = {name: Cost(**cost) for name, cost in value["costs"].items()}
        lists = {key: tuple(value[key]) for key in ("looks", "notes")}
        rest = {key: item for key, item in value.items() if key in cls.__dataclass_fields__}
        return cls(**{**rest, **ends, **lists, "pairs": pairs, "costs": costs})

    def with_row(self, ledger: str, row: int, sha256: str) -> Verdict:
        """The verdict that knows its row in the ledger."""
        return replace(self, ledger=ledger, ledger_row=row, ledger_sha256=sha256)

    def headline(self) -> str:
        """The decision and its numbers in one line."""
        figures = f"{self.metric} {self._signed(self.difference)}"
        if math.isfinite(self.lower) and math.isfinite(self.upper):
            figures += f" [{self._signed(self.lower)}, {self._signed(self.upper)}]"
        return f"{self.arm}: {self.decision.upper()}. {figures} ({'n = ' + str(len(self.pairs))} pairs, p {self.p:.2g})"

    def __str__(self) -> str:
        lines = [self.headline(), *self._reading(), *self._costs(), *self._table(), *self.notes[:4]]
        if self.ledger_sha256:
            lines.append(f"ledger     {self.ledger}, row {self.ledger_row}, {self.ledger_sha256[:16]}")
        if self.report:
            lines.append(f"report     {self.report}")
        return "\n".join(lines)

    def _reading(self) -> Iterator[str]:
        yield f"patch      {self.patch}"
        yield f"because    {self.reason}"
        better = "" if self.higher_is_better else f"; {self.metric}: less is better, so + means less"
        yield f"interval   {1 - self.alpha:.0%}, valid at every look; matters from {self.smallest_effect:g} on{better}"
        if self.decision == "no evidence yet":
            more = (
                "no number of pairs that was declared"
                if self.more_pairs is None
                else f"about {self.more_pairs} more pairs"
            )
            yield f"needed     {more} for power {self.power:g}"
        yield f"budget     {self.budget}"
        for key, chosen in self.retuned.items():
            yield f"retuned    {key}: " + ", ".join(f"{arm} {value:g}" for arm, value in chosen.items())
        gain = self.pairing_gain
        if gain is not None:
            shared = "" if self.same_weights is None else f"; starting weights the same: {self.same_weights:.0%}"
            yield f"pairing    unpaired differences would have {gain:.2g} times the variance{shared}"

    def _costs(self) -> Iterator[str]:
        base, arm = self.costs.get("baseline"), self.costs.get("arm")
        if base is None or arm is None:
            return
        parts = [
            _ratio("time", base.seconds, arm.seconds, "seconds"),
            _ratio("memory", _bytes(base.peak_memory_mebibytes), _bytes(arm.peak_memory_mebibytes), "bytes"),
            _ratio("parameters", base.parameters, arm.parameters, ""),
            _ratio("compute", base.flops, arm.flops, "FLOPs"),
        ]
        if shown := " · ".join(filter(None, parts)):
            yield f"cost       {shown}"
        if self.target is not None and base.target_seconds is not None:
            late = "never" if arm.target_seconds is None else readable(arm.target_seconds, "seconds")
            first, counts = readable(base.target_seconds, "seconds"), f"{base.reached_target} of {base.runs}"
            counts += f" -> {arm.reached_target} of {arm.runs} runs"
            yield f"target     {self.metric} {self.target:.4g} after {first} -> {late}; got there: {counts}"
        if base.failed or arm.failed:
            yield f"failed     {base.failed} of {base.runs} -> {arm.failed} of {arm.runs} runs: it counts against them"

    def _table(self) -> Iterator[str]:
        if not self.pairs:
            return
        name = self.arm[:14]
        yield f"seed       {'baseline':>10} {name:>14} {'difference':>12}"
        for pair in self.pairs[:MOST_SEEDS]:
            difference = pair.difference(self.higher_is_better)
            yield (f"{pair.seed:<10} {_value(pair.baseline):>10} {_value(pair.arm):>14} {self._signed(difference):>12}")
        if (left := len(self.pairs) - MOST_SEEDS) > 0:
            yield f"           ... and {left} more in {VERDICT}"

    def _signed(self, value: float) -> str:
        digits = max(0, 1 - math.floor(math.log10(self.smallest_effect)))
        names = {math.inf: "better", -math.inf: "worse"}
        return f"{value:+.{digits}f}" if math.isfinite(value) else names.get(value, "none")


@dataclass(frozen=True)
class Verdicts:
    """All verdicts of a trial.

    Args:
        trial: its name.
        folder: where it lies; empty for one that left nothing.
        arms: one verdict an arm, in the order of declaration.
    """

    trial: str
    folder: str
    arms: tuple[Verdict, ...]

    def __getitem__(self, arm: str) -> Verdict:
        found = next((verdict for verdict in self.arms if verdict.arm == arm), None)
        if found is None:
            raise KeyError(f"no arm '{arm}'; {nearest(arm, (verdict.arm for verdict in self.arms))}")
        return found

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.arms)

    @property
    def decision(self) -> Decision:
        """Of the best arm: *helps* if any helps, else *no evidence yet* if any may, ..., *hurts* if all hurt."""
        return min((verdict.decision for verdict in self.arms), key=BY_WEIGHT.index)

    def to_value(self) -> dict[str, Any]:
        """As plain values for JSON; :meth:`from_value` is the inverse."""
        return {
            "trial": self.trial,
            "folder": self.folder,
            "decision": self.decision,
            "arms": [verdict.to_value() for verdict in self.arms],
        }

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Verdicts:
        """Verdicts from the values that :meth:`to_value` gives."""
        return cls(value["trial"], value["folder"], tuple(map(Verdict.from_value, value["arms"])))

    def save_to(self, folder: Path) -> None:
        """Write ``verdict.json``."""
        write_json(folder / VERDICT, self.to_value())

    @classmethod
    def open(cls, folder: Path | str) -> Verdicts:
        """Those of a trial's folder.

        Raises:
            RunError: it has none yet.
        """
        import json

        path = Path(folder) / VERDICT
        if not path.is_file():
            raise RunError(f"trial '{folder}' has no verdict yet; go on with: kingpost prove --resume {folder}")
        return cls.from_value(json.loads(path.read_text(encoding="utf-8")))

    def __str__(self) -> str:
        if len(self.arms) == 1:
            return str(self.arms[0])
        width = max(len(verdict.arm) for verdict in self.arms)
        lines = [f"{len(self.arms)} arms, error rate {self.arms[0].alpha:g} held over all of them together"]
        for one in self.arms[:MOST_ARMS]:
            figures = one.headline().partition(". ")[2]
            lines.append(f"{one.arm:<{width}}  {one.decision:<26}  {figures}")
        lines += [f"... and {len(self.arms) - MOST_ARMS} more in {VERDICT}"] if len(self.arms) > MOST_ARMS else []
        first = self.arms[0]
        lines += ["", *(line for line in first._reading() if line.startswith(("interval", "budget", "retuned")))]
        lines += dict.fromkeys(note for one in self.arms for note in one.notes)
        lines.append(f"ledger     {first.ledger}, rows from {first.ledger_row} on")
        lines += [f"report     {first.report}"] if first.report else []
        return "\n".join(lines)


def _ratio(name: str, base: float | None, arm: float | None, unit: str) -> str:
    if base is None or arm is None:
        return ""
    change = f" (x {arm / base:.3g})" if base and arm != base else ""
    same = readable(base, unit)
    return f"{name} {same} -> {readable(arm, unit)}{change}" if change else f"{name} {same}"


def _bytes(mebibytes: float | None) -> float | None:
    return None if mebibytes is None else mebibytes * 2**20


def _value(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4g}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
