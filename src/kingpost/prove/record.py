"""A trial's folder and its rows in the ledger: what is done stays done, and is written once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kingpost.ledger import Entry, Ledger
from kingpost.prove.declaration import Declaration, digest
from kingpost.prove.questions import BASELINE
from kingpost.prove.runner import Job
from kingpost.prove.worker import OUTCOME

Outcome = dict[str, Any]


class Record:
    """What a trial has on the disk.

    ``declaration.json``, ``runs/ARM/seed-N/`` (a run's, with ``outcome.json``), ``verdict.json``, ``report.html``.

    Args:
        folder: of the trial.
        declaration: of the trial.
        ledger: where its rows go.
        keep: whether the runs keep their weights.
    """

    def __init__(self, folder: Path, declaration: Declaration, ledger: Ledger, keep: bool = False) -> None:
        self.folder, self.declaration, self.ledger, self.keep = folder, declaration, ledger, keep
        self.written: dict[tuple[str, str], Entry] = {}
        mine = ledger.entries(trial=declaration.name)
        starts = [e.n for e in mine if e.kind == "declared" and e.body.get("declaration_sha256") == self.sha256]
        for entry in mine if starts else []:
            if entry.n >= starts[0]:
                self.written[entry.kind, str(entry.body.get("key", ""))] = entry

    @property
    def sha256(self) -> str:
        """Hash of the declaration."""
        return digest(self.declaration.to_value())

    def write(self, kind: str, key: str, says: str, body: Mapping[str, Any]) -> Entry:
        """A row of the ledger, unless it is there already."""
        if (kind, key) not in self.written:
            row = {"key": key, "says": says, **body}
            self.written[kind, key] = self.ledger.append(kind, self.declaration.name, row)
        return self.written[kind, key]

    def declare(self) -> None:
        """The first row: everything that is fixed from here on."""
        d = self.declaration
        says = f"{', '.join(d.arms)} against {BASELINE}: {d.metric}, smallest effect {d.smallest_effect:g}, {d.budget}"
        body = d.to_value() | {"declaration_sha256": self.sha256, "question_sha256": d.question_sha256}
        self.write("declared", "", says, body)

    def earlier(self) -> int:
        """How often the same was asked before, in trials of whatever name."""
        rows = self.ledger.entries(kind="declared")
        own = self.declaration
        return sum(
            row.body.get("question_sha256") == own.question_sha256 and row.body.get("declared_at") != own.declared_at
            for row in rows
        )

    def job(self, arm: str, seed: int, work: Any = None, place: str = "") -> Job:
        """What a runner needs to do one run."""
        d = self.declaration
        folder = self.folder / "runs" / arm / place / f"seed-{seed}"
        return {
            "id": ".".join(filter(None, (arm, place, f"seed-{seed}"))),
            "kind": d.kind,
            "arm": arm,
            "seed": seed,
            "work": d.work[arm] if work is None else work,
            "folder": str(folder.absolute()),
            "cwd": str(Path.cwd()),
            "column": d.column,
            "metric": d.metric,
            "at": d.at,
            "higher_is_better": d.higher_is_better,
            "keep": self.keep,
        }

    def outcome_of(self, job: Job) -> Outcome | None:
        """What came of a job, if it is done; its row in the ledger is made up for if a kill came between."""
        path = Path(job["folder"]) / OUTCOME
        if not path.is_file():
            return None
        outcome: Outcome = json.loads(path.read_text(encoding="utf-8"))
        self.note(job, outcome)
        return outcome

    def note(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """The row of a run."""
        value = outcome["value"]
        said = f"{value:.6g}" if value is not None else f"failed ({outcome['message']})"
        figures = {key: item for key, item in outcome.items() if key != "curve"}
        says = f"{job['id'].replace('.', ' ')}: {self.declaration.metric} {said}"
        self.write("run", job["id"], says, {"arm": job["arm"], "seed": job["seed"], **figures})

    def drop_unfinished(self) -> None:
        """Remove what is left of runs that were under way when the decision fell."""
        for path in self.folder.glob("runs/*/**/seed-*"):
            if path.is_dir() and not (path / OUTCOME).is_file():
                shutil.rmtree(path)
