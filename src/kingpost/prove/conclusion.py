"""What the verdicts of a study say about its claim, by rule, and what the cards of techniques take from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kingpost.verdict import Decision

WORD: Mapping[Decision, str] = {
    "helps": "helps",
    "hurts": "harms",
    "no difference that matters": "neutral",
    "no evidence yet": "unproven",
}
Outcome = Literal["borne out", "borne out in part", "contradicted", "not decided", "no claim"]
SAYS = {"helps": "helps", "harms": "hurts", "neutral": "makes no difference that matters", "unproven": "lacks evidence"}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Conclusion:
    """What the trials say about the claim.

    Args:
        outcome: in a few words.
        sentence: the same with what it rests on.
    """

    outcome: Outcome
    sentence: str


def standing(row: Row) -> Literal["borne out", "contradicted", "not decided", "no claim"]:
    """What one arm's verdict says about what was claimed of it.

    >>> standing({"expect": ["helps"], "word": "neutral"})
    'contradicted'
    """
    if not row["expect"]:
        return "no claim"
    if row["word"] == "unproven":
        return "not decided"
    return "borne out" if row["word"] in row["expect"] else "contradicted"


def conclude(rows: Sequence[Row], to_come: Sequence[str] = ()) -> Conclusion:
    """What all rows together say about the claim; ``to_come`` are trials that have not been run yet.

    The rule: borne out if every arm that the claim speaks of came out as it says; contradicted if at least one
    did not and none did; borne out in part if some did, while others did not or are not decided; else not decided. As
    long as a trial is to come, it is not decided.

    >>> rows = [{"trial": "a", "arm": "he", "expect": ["helps"], "word": "helps", "claimed_difference": None}]
    >>> print(conclude(rows).sentence)
    Borne out: he helps.
    """
    if to_come:
        count = "a trial is" if len(to_come) == 1 else f"{len(to_come)} trials are"
        return Conclusion("not decided", f"Not decided: {count} still to be run ({', '.join(to_come)}).")
    spoken = [row for row in rows if row["expect"]]
    kinds = {kind: [row for row in spoken if standing(row) == kind] for kind in ("borne out", "contradicted")}
    open_ = [row for row in spoken if standing(row) == "not decided"]
    outcome: Outcome
    if not spoken:
        outcome = "no claim"
    elif len(kinds["borne out"]) == len(spoken):
        outcome = "borne out"
    elif kinds["borne out"]:
        outcome = "borne out in part"
    else:
        outcome = "contradicted" if kinds["contradicted"] else "not decided"
    several = len({row["trial"] for row in rows}) > 1
    told = [_told(group, several) for group in (kinds["borne out"], kinds["contradicted"], open_) if group]
    words = "; but ".join(told[:2]) + ("; and " + told[2] if len(told) > 2 else "")
    sizes = " ".join(_size(row, several) for row in spoken if row["claimed_difference"] is not None)
    first = "The trials test no claim" if outcome == "no claim" else outcome[0].upper() + outcome[1:]
    sentence = f"{first}: {words}." if words else f"{first}."
    return Conclusion(outcome, f"{sentence} {sizes}".strip())


def _told(rows: Sequence[Row], several: bool) -> str:
    by_word: dict[str, list[str]] = {}
    for row in rows:
        by_word.setdefault(row["word"], []).append(f"{row['arm']} ({row['trial']})" if several else row["arm"])
    return ", ".join(f"{_listed(names)} {_plural(SAYS[word], names)}" for word, names in by_word.items())


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _plural(words: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return words
    first, _, rest = words.partition(" ")
    return f"{ {'helps': 'help', 'hurts': 'hurt', 'makes': 'make', 'lacks': 'lack'}[first] } {rest}".strip()


def _size(row: Row, several: bool) -> str:
    """Whether the interval holds the difference that was claimed."""
    claimed, lower, upper = row["claimed_difference"], row["lower"], row["upper"]
    arm = f"{row['arm']} ({row['trial']})" if several else row["arm"]
    said = f"Claimed of {arm} is {claimed:+.2g}"
    if lower is None or upper is None:
        return f"{said}; there is no interval yet."
    where = "below" if upper < claimed else "above" if lower > claimed else "around"
    words = {
        "below": "the whole interval lies below that: the effect is smaller than claimed",
        "above": "the whole interval lies above that: the effect is larger than claimed",
        "around": "which the interval holds",
    }[where]
    return f"{said}, {words}." if where == "around" else f"{said}; {words}."


def mode_of(results: Mapping[str, Any]) -> str | None:
    """The rows that count: those of the full run if there is one, else of the quick one."""
    return next((mode for mode in ("full", "quick") if results.get(mode, {}).get("rows")), None)


def card_verdicts(every: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Technique (``kind/name``) -> what the studies found, one entry an arm.

    Args:
        every: the value of each study's ``results.json``.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for results in every:
        if (mode := mode_of(results)) is None:
            continue
        for key, arms in results["study"]["cards"].items():
            for row in _rows_of(results[mode]["rows"], [arms] if isinstance(arms, str) else arms):
                found.setdefault(key, []).append(_entry(row, results["name"], mode))
    return dict(sorted(found.items()))


def _rows_of(rows: Sequence[Row], arms: Sequence[str]) -> Iterator[Row]:
    for row in rows:
        if row["arm"] in arms or f"{row['trial']}/{row['arm']}" in arms:
            yield row


def _entry(row: Row, study: str, mode: str) -> dict[str, Any]:
    keys = ("word", "trial", "arm", "on", "note", "metric", "difference", "lower", "upper", "smallest_effect")
    return {
        **{key: row[key] for key in keys},
        "pairs": len(row["pairs"]),
        "study": study,
        "mode": mode,
        "date": row["measured"]["date"],
    }
