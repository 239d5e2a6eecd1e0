"""From the speed run's measurements to its tables; nothing here measures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from speedrun_plan import LADDER_EPOCHS, RUNGS, TARGETS

Row = dict[str, Any]
OURS = "kingpost"
SAMPLES = {
    "test": "All train on the same 60,000 images and are judged on the 10,000 of the test part.",
    "validation": "All train on the same 50,000 images and are judged on the other 10,000 of the training part.",
}


def markdown(results: Row) -> str:
    """The whole report as Markdown."""
    lines = ["# Speed run on Fashion-MNIST", "", *_facts(results)]
    for target in TARGETS:
        lines += ["", f"## {target:.0%} {results['judge_on']} accuracy", "", *target_table(results, target)]
    notes = {m["entry"].split("-9")[0]: m["note"] for m in results["measurements"] if m["status"] == "ok"}
    lines += ["", "How each program was run:", "", *(f"- **{name}**: {note}." for name, note in notes.items())]
    return "\n".join(lines) + "\n"


def seconds_to(measurement: Row, target: float) -> Row | None:
    """The verdict that counts for a target: the first one that reaches it, or None.

    A program whose length was chosen for a target is judged once, at its end, and counts for that target whether
    this seed reaches it or not: for it, it is the mean over the seeds that must.
    """
    verdicts: list[Row] = measurement["verdicts"]
    if measurement["target"] is not None:
        return verdicts[-1] if measurement["target"] == target else None
    return next((v for v in verdicts if v["accuracy"] >= target), None)


def summarise(results: Row, entry: str, target: float) -> Row | None:
    """One program at one target; None if its length was chosen for another one, or it did not run."""
    mine = [m for m in results["measurements"] if m["entry"] == entry and m["status"] == "ok"]
    if not mine or mine[0]["target"] not in (None, target):
        return None
    found = {m["round"]: seconds_to(m, target) for m in mine}
    good = {index: v for index, v in found.items() if v is not None}
    row: Row = {"entry": entry, "n": len(mine), "reached": sum(v["accuracy"] >= target for v in good.values())}
    row["tried_seconds"] = median(m["verdicts"][-1]["seconds"] for m in mine)
    row["best"] = mean(max(v["accuracy"] for v in m["verdicts"]) for m in mine)
    row["rounds"] = {index: v["seconds"] for index, v in good.items()}
    if good:
        row["seconds"] = [v["seconds"] for v in good.values()]
        row["cpu_seconds"] = median(v["cpu_seconds"] for v in good.values())
        row["epochs"] = median(v["epoch"] for v in good.values())
        row["accuracy"] = [v["accuracy"] for v in good.values()]
    row["complete"] = len(good) == len(mine)
    if mine[0]["target"] is not None:
        row["complete"] = mean(row["accuracy"]) >= target
    return row


def target_table(results: Row, target: float) -> list[str]:
    """All programs at one target, and how many times fewer seconds than the best of the others kingpost needs."""
    rows = [row for name in results["entries"] if (row := summarise(results, name, target))]
    lines = [
        "| program | n | reached | epochs | median s | min..max s | cpu s (median) | accuracy, mean (min..max) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    quickest = sorted(rows, key=lambda row: (not row["complete"], median(row.get("seconds", [float("inf")]))))
    return [*lines, *(_cells(row) for row in quickest), "", _verdict(rows, target)]


def _cells(row: Row) -> str:
    start = f"| {row['entry']} | {row['n']} | {row['reached']} |"
    if "seconds" not in row:
        return f"{start} | not in {row['tried_seconds']:.0f} | | | best {row['best']:.2%} |"
    s, a = row["seconds"], row["accuracy"]
    accuracy = f"{mean(a):.2%} ({min(a):.2%}..{max(a):.2%})"
    return (
        f"{start} {row['epochs']:g} | {median(s):.1f} | {min(s):.1f}..{max(s):.1f} | {row['cpu_seconds']:.1f} "
        f"| {accuracy} |"
    )


def _verdict(rows: Sequence[Row], target: float) -> str:
    ours = [row for row in rows if row["entry"].startswith(OURS)]
    others = [row for row in rows if not row["entry"].startswith(OURS)]
    if not ours or not others:
        return "No comparison: one side is missing."
    if not ours[0]["complete"]:
        return f"kingpost's mean, {mean(ours[0]['accuracy']):.2%}, is below {target:.0%}: the target is missed."
    reached = [row for row in others if row["complete"]]
    if not reached:
        longest = max(row["tried_seconds"] for row in others)
        least = min(row["tried_seconds"] for row in others) / median(ours[0]["seconds"])
        return (
            f"None of the others reached {target:.0%} with every seed, in up to {longest:.0f} s; the shortest of "
            f"their tries took {least:.1f} times kingpost's seconds."
        )
    best = min(reached, key=lambda row: median(row["seconds"]))
    ratios = [best["rounds"][i] / ours[0]["rounds"][i] for i in ours[0]["rounds"] if i in best["rounds"]]
    return (
        f"The best of the others, {best['entry']}, takes {median(ratios):.1f} times kingpost's seconds "
        f"({min(ratios):.1f}..{max(ratios):.1f}, within a round, n {len(ratios)})."
    )


def _facts(results: Row) -> list[str]:
    machine = results["machine"]
    versions = sorted({m["versions"]["torch"] for m in results["measurements"] if m["status"] == "ok"})
    return [
        f"{results['date']}, {machine['processor']}, {machine['cores']} cores, {machine['system']}, device "
        f"{results['device']}, threads {results['threads']}, torch {' and '.join(versions)}.",
        "",
        "The clock runs from the call of the library's training function, with the standardised images in memory, to "
        "the end of the optimizer step after which the model is judged. All that the library does in between counts "
        f"(setting up, logs, checkpoints); judging does not, nor do imports. {SAMPLES[results['judge_on']]} "
        "The default programs are judged after each epoch, and the first "
        "one above the target counts; a seed's lucky epoch is theirs. kingpost's recipe has a length of its own for "
        "each target, chosen on a validation part, and is judged once, at its end; there the mean over the seeds must "
        f"reach the target. Rounds: {results['rounds']}, each with another seed and in another order. Where cpu s is "
        "well below threads times s, the machine was busy with something else.",
    ]


def ladder_markdown(results: Row) -> str:
    """What each step of the recipe brings, as Markdown."""
    machine = results["machine"]
    lines = [
        "# Speed run: each step of the recipe",
        "",
        f"{results['date']}, {machine['processor']}, threads {results['threads']}, n {results['rounds']}. Trained on "
        "50,000 images by kingpost, judged on the other 10,000 of the training part. Each step comes on top of those "
        "above it, and each length is a run of its own, its schedule included.",
        "",
        "| step | s an epoch | " + " | ".join(f"{e} ep, %" for e in LADDER_EPOCHS) + " | s to 90 | s to 92 |",
        "| --- | ---: | " + "---: | " * len(LADDER_EPOCHS) + "---: | ---: |",
    ]
    for rung, (what, _) in enumerate(RUNGS):
        ends = {e: _ends(results, f"rung-{rung}-epochs-{e}") for e in LADDER_EPOCHS}
        if not any(ends.values()):
            continue
        accuracy = [f"{100 * mean(v['accuracy'] for v in ends[e]):.2f}" if ends[e] else "" for e in LADDER_EPOCHS]
        pace = median(v["seconds"] / e for e, found in ends.items() for v in found)
        to = " | ".join(_shortest(ends, target) for target in (0.90, 0.92))
        lines.append(f"| {what} | {pace:.1f} | {' | '.join(accuracy)} | {to} |")
    lines += ["", "Seconds to a target: the median of the shortest of these lengths whose mean accuracy reaches it."]
    return "\n".join(lines) + "\n"


def _ends(results: Row, entry: str) -> list[Row]:
    return [m["verdicts"][-1] for m in results["measurements"] if m["entry"] == entry and m["status"] == "ok"]


def _shortest(ends: dict[int, list[Row]], target: float) -> str:
    for found in ends.values():
        if found and mean(v["accuracy"] for v in found) >= target:
            return f"{median(v['seconds'] for v in found):.1f}"
    return "not reached"
