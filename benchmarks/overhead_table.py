"""From measurements to statistics, and from statistics to a table; nothing here measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]
BASELINES = ("bare", "bare-indexed")


def quantile(values: Sequence[float], q: float) -> float:
    """Quantile by linear interpolation between the sorted values."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summarise(measurements: Sequence[Row], workload: str, contender: str) -> Row:
    """One contender on one workload: spread of its seconds, and of its ratios to the baselines."""
    mine = [m for m in measurements if m["workload"] == workload and m["contender"] == contender]
    good = {m["round"]: m["seconds"] for m in mine if m["status"] == "ok"}
    bad = [m for m in mine if m["status"] != "ok"]
    last = mine[-1] if mine else {}
    about = {"versions": last.get("versions", {}), "note": last.get("note", "")}
    row: Row = {"workload": workload, "contender": contender, "n": len(good), "failures": len(bad), **about}
    if bad:
        row["problem"] = f"{bad[-1]['status']}: {bad[-1]['reason']}"
    if good:
        row["seconds"] = _spread(list(good.values()))
        row["cpu_seconds"] = median(m["cpu_seconds"] for m in mine if m["status"] == "ok")
        row["ratio_to"] = {base: _ratios(measurements, workload, base, good) for base in BASELINES}
    return row


def markdown(results: Row) -> str:
    """The whole report as Markdown."""
    lines = ["# Overhead of training loops", "", *_facts(results)]
    for workload, about in results["workloads"].items():
        rows = [row for row in results["summary"] if row["workload"] == workload]
        lines += ["", f"## {workload}: {about}", "", *_table(rows, results["timed_steps"][workload])]
    lines += ["", "How each contender was run:", ""]
    notes = {row["contender"]: row["note"] for row in results["summary"] if row["note"]}
    lines += [f"- **{name}**: {note}." for name, note in notes.items()]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "p10": quantile(values, 0.1), "min": min(values), "max": max(values)}


def _ratios(measurements: Sequence[Row], workload: str, base: str, mine: dict[int, float]) -> dict[str, float] | None:
    """Ratios within the rounds in which both were measured."""
    theirs = {
        m["round"]: m["seconds"]
        for m in measurements
        if (m["workload"], m["contender"], m["status"]) == (workload, base, "ok")
    }
    paired = [mine[r] / theirs[r] for r in mine if r in theirs]
    return {"n": len(paired), **_spread(paired)} if paired else None


def _facts(results: Row) -> list[str]:
    machine, rounds = results["machine"], results["rounds"]
    return [
        f"{results['date']}, {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"no accelerator, threads {results['threads']}, torch {results['torch']}.",
        "",
        f"Seconds of the timed optimizer steps, after {results['warmup_steps']} warm-up steps of one fit; "
        "imports, setting up and tearing down are not counted. Every contender runs in a process of its own, "
        f"all of them in each round, in a new order each round; rounds: {rounds}. "
        "Ratios are taken within a round: median (min..max). "
        "Where cpu s (median) is well below the wall's median, the machine was busy with something else. "
        "With fewer than eleven rounds p10 lies between the two fastest, by interpolation.",
    ]


def _table(rows: Sequence[Row], timed_steps: int) -> list[str]:
    numbers = [
        "n",
        "median s",
        "p10 s",
        "min..max s",
        "cpu s",
        "ms/step",
        *(f"x {base}" for base in BASELINES),
    ]
    head = ["contender", "version", *numbers]
    lines = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
    order = sorted(rows, key=lambda row: row["seconds"]["median"] if "seconds" in row else math.inf)
    return lines + [_line(_cells(row, timed_steps)) for row in order]


def _cells(row: Row, timed_steps: int) -> list[str]:
    versions = [v for name, v in row["versions"].items() if name not in ("python", "torch")]
    first = [row["contender"], versions[0] if versions else "", str(row["n"])]
    if "seconds" not in row:
        return [*first, row.get("problem", "not run"), "", "", "", "", *[""] * len(BASELINES)]
    if row["failures"]:
        first[2] += f" (and {row['failures']} failed: {row['problem']})"
    s = row["seconds"]
    ratios = [_ratio(row["ratio_to"][base]) for base in BASELINES]
    times = [
        f"{s['median']:.3f}",
        f"{s['p10']:.3f}",
        f"{s['min']:.3f}..{s['max']:.3f}",
        f"{row['cpu_seconds']:.3f}",
    ]
    return [*first, *times, f"{1000 * s['median'] / timed_steps:.3f}", *ratios]


def _ratio(ratio: dict[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f})" if ratio else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
