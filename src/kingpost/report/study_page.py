"""The page of a study, ``README.md``, and the plot of its intervals; from the value of its ``results.json``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from kingpost.figure import readable

DASH = "-"
NOTE = "<!-- Generated from results.json: do not edit. Write it again with: python docs/generate.py --quick -->\n"
PLOT = "intervals.svg"
AXIS = "difference / smallest effect that matters (shaded: does not matter)"
COLOURS = {"helps": "#2a7a4b", "harms": "#b3402a", "neutral": "#44617b", "unproven": "#8a8a8a"}
TICKS = (0, 1, 3, 10, 30, 100, 300, 1000)
LEFT, WIDE, RIGHT, HIGH, TOP = 250, 430, 20, 24, 30  # pixels
Row = Mapping[str, Any]


def study_page(name: str, text: Mapping[str, Any], rows: Sequence[Row], mode: str, sentence: str) -> str:
    """The page in Markdown.

    Args:
        name: of the study.
        text: what it says of itself: question, claim, source, ...
        rows: one for each arm of each trial.
        mode: ``quick`` or ``full``.
        sentence: what the verdicts say about the claim.
    """
    return "\n".join([NOTE, *_top(text, sentence, mode), *_middle(text, rows), *_bottom(name, text, rows, mode)]) + "\n"


def _top(text: Mapping[str, Any], sentence: str, mode: str) -> Iterator[str]:
    yield f"# {text['question']}\n"
    yield f"**Claim** ({text['source']}): {text['claim']}\n"
    yield f"**{sentence}**\n"
    if mode == "quick":
        yield (
            "These are the results of the quick run: less data, shorter training or fewer pairs than the study "
            "declares for a full one. A full run takes their place.\n"
        )


def _middle(text: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    yield f"![Differences and their intervals, in units of the smallest effect that matters]({PLOT})\n"
    yield result_table(rows)
    yield "\nWhat was asked, and how it was judged:\n"
    yield _table(
        ("trial", "arm", "change", "budget", "smallest effect", "retuned to"),
        [(row["trial"], row["arm"], f"`{row['patch']}`", row["budget"], _metric(row), _retuned(row)) for row in rows],
    )
    yield "\nWhat it cost (medians of a run, baseline → arm):\n"
    yield _table(
        ("trial", "arm", "time", "memory", "parameters", "FLOPs", "time to target", "failed runs"),
        [(row["trial"], row["arm"], *_costs(row)) for row in rows],
    )
    yield (
        "\nThe target is the baseline's median metric at the end of its runs; 'time to target' is the seconds of "
        "training until a run first was as good, over the runs that got there.\n"
    )


def _bottom(name: str, text: Mapping[str, Any], rows: Sequence[Row], mode: str) -> Iterator[str]:
    yield "## How\n"
    yield f"- **data and net**: {text['on']}"
    for label, key in (("varied", "scientific"), ("nuisance", "nuisance"), ("held", "fixed")):
        if text[key]:
            yield f"- **{label}**: {text[key]}"
    for trial, note in dict.fromkeys((row["trial"], row["note"]) for row in rows):
        if note:
            yield f"- **trial {trial}**: {note}"
    confidence = sorted({f"{1 - row['alpha']:.0%}" for row in rows})
    yield (
        "- Arms are paired by seed: the same order of data, and the same starting weights where shapes agree. The test "
        f"is sequential; intervals ({' and '.join(confidence)}) hold at whatever pair it stopped, and over all arms of "
        "a trial together. A run that fails counts as the worst outcome."
    )
    for note in dict.fromkeys(note for row in rows for note in row["notes"]):
        yield f"- {' '.join(note.split())}"
    if text["limits"]:
        yield "\n## What this does not show\n"
        yield from (f"- {limit}" for limit in text["limits"])
    yield f"\n{measured(rows)} Run it again: `kingpost study {name}{' --quick' * (mode == 'quick')}`."


def result_table(rows: Sequence[Row]) -> str:
    """The verdicts: what was seen, with interval and pairs, and what was claimed."""
    return _table(
        ("trial", "arm", "baseline", "arm's", "difference", "interval", "pairs", "decision", "claimed"),
        [
            (
                row["trial"],
                row["arm"],
                *(_mean(row, index) for index in (1, 2)),
                signed(row["difference"], row),
                interval(row),
                str(len(row["pairs"])),
                f"**{row['word']}**",
                " or ".join(row["expect"]) or "nothing",
            )
            for row in rows
        ],
    )


def measured(rows: Sequence[Row]) -> str:
    """n, device, versions and dates, one sentence."""
    how = [row["measured"] for row in rows]
    dates = sorted({one["date"] for one in how})
    where = sorted({f"{one['device']}, kingpost {one['kingpost']}, torch {one['torch']}" for one in how})
    pairs = [len(row["pairs"]) for row in rows]
    count = f"{pairs[0]}" if len(set(pairs)) == 1 else f"{min(pairs)} to {max(pairs)}"
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"n = {count} pairs; {'; '.join(where)}; {days}."


def signed(value: float | None, row: Row) -> str:
    """A difference with as many digits as the smallest effect is worth; + is better."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:+.{max(0, 1 - math.floor(math.log10(row['smallest_effect'])))}f}"


def interval(row: Row) -> str:
    """Its ends in brackets; a dash if there is none."""
    if row["lower"] is None or row["upper"] is None:
        return DASH
    return f"[{signed(row['lower'], row)}, {signed(row['upper'], row)}]"


def interval_plot(rows: Sequence[Row]) -> str:
    """A forest plot as SVG: each difference with its interval, in units of the smallest effect that matters.

    The axis is linear around 0 and logarithmic far from it (the inverse hyperbolic sine).
    """
    ends = [abs(v) / row["smallest_effect"] for row in rows for v in (row["lower"], row["upper"]) if v is not None]
    most = min(max([2.0, *ends]), TICKS[-1]) * 1.1
    half = WIDE / 2

    def at(value: float) -> float:
        part = math.asinh(max(-most, min(most, value))) / math.asinh(most)
        return round(LEFT + half + half * part, 1)

    height = TOP + HIGH * len(rows) + 46
    bottom = TOP + HIGH * len(rows) + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDE + RIGHT} {height}" '
        f'width="{LEFT + WIDE + RIGHT}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{LEFT + WIDE + RIGHT}" height="{height}" fill="white"/>',
        f'<rect x="{at(-1)}" y="{TOP - 8}" width="{round(at(1) - at(-1), 1)}" height="{bottom - TOP + 8}" '
        'fill="#eef1f4"/>',
        f'<line x1="{at(0)}" y1="{TOP - 8}" x2="{at(0)}" y2="{bottom}" stroke="#555"/>',
        _words(LEFT + half - 40, TOP - 14, "worse", "end"),
        _words(LEFT + half + 40, TOP - 14, "better", "start"),
    ]
    for tick in (t for size in TICKS if size <= most for t in {size, -size}):
        parts.append(f'<line x1="{at(tick)}" y1="{bottom}" x2="{at(tick)}" y2="{bottom + 4}" stroke="#555"/>')
        parts.append(_words(at(tick), bottom + 17, f"{tick:+d}" if tick else "0"))
    parts.append(_words(LEFT + half, bottom + 35, AXIS))
    for index, row in enumerate(rows):
        parts += _bar(row, at, TOP + HIGH * index + 10, most)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: Row, at: Any, y: float, most: float) -> Iterator[str]:
    colour, unit = COLOURS[row["word"]], row["smallest_effect"]
    several = row["trial"] != "trial"
    yield _words(LEFT - 10, y + 4, f"{row['trial']}: {row['arm']}" if several else row["arm"], "end")
    lower = -most if row["lower"] is None else row["lower"] / unit
    upper = most if row["upper"] is None else row["upper"] / unit
    yield f'<line x1="{at(lower)}" y1="{y}" x2="{at(upper)}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
    if row["difference"] is not None:
        yield f'<circle cx="{at(row["difference"] / unit)}" cy="{y}" r="5" fill="{colour}"/>'


def _words(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#333">{escape(text)}</text>'


def _metric(row: Row) -> str:
    better = "more" if row["higher_is_better"] else "less"
    return f"{row['smallest_effect']:g} of {row['metric']} ({better} is better)"


def _retuned(row: Row) -> str:
    words = [
        f"{key} {of['baseline']:g} → {of[row['arm']]:g}"
        for key, of in row["retuned"].items()
        if "baseline" in of and row["arm"] in of
    ]
    return "; ".join(words) or DASH


def _mean(row: Row, index: int) -> str:
    values = [pair[index] for pair in row["pairs"] if pair[index] is not None]
    return f"{sum(values) / len(values):.4g}" if values else DASH


def _costs(row: Row) -> tuple[str, ...]:
    base, arm = row["costs"]["baseline"], row["costs"]["arm"]
    mebi = 2.0**20

    def pair(key: str, unit: str, factor: float = 1.0) -> str:
        shown = [None if one[key] is None else readable(one[key] * factor, unit) for one in (base, arm)]
        if None in shown:
            return f"{shown[0] or 'never'} → {shown[1] or 'never'}" if key == "target_seconds" and any(shown) else DASH
        return f"{shown[0]}" if shown[0] == shown[1] else f"{shown[0]} → {shown[1]}"

    failed = f"{base['failed']} of {base['runs']} → {arm['failed']} of {arm['runs']}"
    return (
        pair("seconds", "seconds"),
        pair("peak_memory_mebibytes", "bytes", mebi),
        _counts(base["parameters"], arm["parameters"]),
        pair("flops", "FLOPs"),
        pair("target_seconds", "seconds"),
        failed if base["failed"] or arm["failed"] else "none",
    )


def _counts(base: int | None, arm: int | None) -> str:
    if base is None or arm is None:
        return DASH
    return f"{base:,}" if base == arm else f"{base:,} → {arm:,}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---" for _ in header], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
