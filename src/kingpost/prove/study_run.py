"""Run a study: trial after trial, each resumable, and put what they say into ``results.json``."""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kingpost
from kingpost.errors import RecipeError
from kingpost.files import write_json
from kingpost.ledger import LEDGER
from kingpost.prove import trial as trials
from kingpost.prove.conclusion import WORD
from kingpost.prove.study import Mode, Study, StudyTrial, trial_id
from kingpost.verdict import Verdict

RESULTS = "results.json"
KEPT = ("decision", "final", "reason", "patch", "metric", "higher_is_better", "smallest_effect", "alpha", "power",
        "budget", "target", "same_weights", "retuned", "notes", "ledger_sha256")  # fmt: skip


def run(
    study: Study,
    quick: bool = False,
    *,
    folder: Path,
    seconds: float | None = None,
    workers: int | None = None,
    ray: str | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run every trial of a study, or go on with it; ``folder/results.json`` is written after each.

    Args:
        study: what is declared.
        quick: with what ``quick`` changes: less data, fewer steps, fewer pairs.
        folder: the study's own; trials and the ledger go below it.
        seconds: of each trial at most; one that is cut off is gone on with by the next call.
        workers: runs at a time.
        ray: address of a Ray cluster.
        quiet: nothing on standard error.
        say: is told of each trial as it begins.

    Returns:
        The value of ``results.json``.

    Raises:
        RecipeError: a trial cannot be used as declared; says which.
    """
    mode: Mode = "quick" if quick else "full"
    before = read_results(folder)
    old_rows = list(before.get(mode, {}).get("rows", []))
    known = {(row["trial"], row["arm"]): row for row in old_rows}
    rows: list[dict[str, Any]] = []
    declared = study.trials(quick)
    for name, trial in declared.items():
        say(f"{study.name}: {name} ({len(rows)} of {len(declared)} trials done)" if rows else f"{study.name}: {name}")
        started = time.monotonic()
        try:
            verdicts = trials.prove(
                trial.subject(study.name),
                trial.arms,
                metric=trial.metric,
                direction=trial.direction,
                smallest_effect=trial.smallest_effect,
                min_pairs=trial.min_pairs,
                max_pairs=trial.max_pairs,
                at=trial.at,
                budget=trial.budget,
                retune=trial.retune,
                factorial=trial.factorial,
                seconds=seconds,
                workers=workers,
                ray=ray,
                name=trial_id(name, trial),
                root=folder / "trials" / mode,
                ledger=folder / LEDGER,
                quiet=quiet,
            )
        except RecipeError as error:
            raise error.under(f"{study.name}.{name}") from error.__cause__
        found = [row_of(verdict, name, trial, study) for verdict in verdicts]
        for row in found:
            old = known.get((name, row["arm"]), {})
            same = old.get("ledger_sha256") == row["ledger_sha256"]
            row["measured"] = old["measured"] if same else _now(time.monotonic() - started)
        rows += found
        to_come = list(declared)[list(declared).index(name) + 1 :]
        rows_to_come = [row for row in old_rows if row["trial"] in to_come]
        known_trials = {row["trial"] for row in rows_to_come}
        left = [other for other in to_come if other not in known_trials]
        before[mode] = {"rows": [*rows, *rows_to_come], "to_come": left}
        write_results(folder, study, before)
    return read_results(folder)


def row_of(verdict: Verdict, name: str, trial: StudyTrial, study: Study) -> dict[str, Any]:
    """What is kept of a verdict, as plain values."""
    value = verdict.to_value()
    base = [pair.baseline for pair in verdict.pairs if pair.baseline is not None]
    part = trial.claimed_fewer_errors.get(verdict.arm)
    claimed = None if part is None or not base else part * (1 - sum(base) / len(base))
    return {
        "trial": name,
        "arm": verdict.arm,
        "note": trial.note,
        "on": trial.on or study.text.on,
        "word": WORD[verdict.decision],
        "expect": list(trial.expected(verdict.arm)),
        "claimed_difference": claimed,
        **{key: value[key] for key in ("difference", "lower", "upper", "p", "more_pairs", "pairing_gain")},
        **{key: value[key] for key in KEPT},
        "pairs": [[pair.seed, pair.baseline, pair.arm] for pair in verdict.pairs],
        "max_pairs": trial.max_pairs,
        "costs": value["costs"],
        **({} if verdict.pairs else {"difference": None}),
    }


def read_results(folder: Path) -> dict[str, Any]:
    """The value of ``results.json``, with the text that the study has by now; empty if there is none."""
    path = folder / RESULTS
    if not path.is_file():
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value | {"study": Study.open(folder).text.to_value()}


def write_results(folder: Path, study: Study, modes: Mapping[str, Any]) -> None:
    """Write ``results.json``: the study's text, and the rows of a quick run, a full one, or both."""
    kept = {mode: modes[mode] for mode in ("full", "quick") if mode in modes}
    write_json(folder / RESULTS, {"name": study.name, "study": study.text.to_value(), **kept})


def _now(seconds: float) -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{platform.machine()} processor"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device,
        "kingpost": kingpost.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "trial_seconds": round(seconds, 1),
    }
