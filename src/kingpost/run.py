"""The Run: one folder that holds everything about one training."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kingpost.errors import RunError, nearest
from kingpost.files import write_json, write_text
from kingpost.finding import Finding
from kingpost.recipe import Recipe

Status = Literal["new", "running", "stopped", "finished", "failed"]
Row = dict[str, float | int]

RUNS = "runs"


@dataclass(frozen=True)
class Run:
    """A run folder, read when asked.

    It holds ``recipe.yaml`` (every key), ``environment.json``, ``data.json`` and ``splits.safetensors`` (how the data
    was divided and scaled), ``results.csv`` (one row an epoch), ``steps.csv`` (one row a step), ``findings.json``,
    ``run.json`` (status and final figures), ``weights/best.safetensors`` and ``weights/last.safetensors``,
    ``checkpoints/``, ``judged.safetensors`` (predictions behind the report) and ``report.html``.
    A recipe with stages has a folder ``stage-1``, ``stage-2``, ... for each instead, which are runs themselves.
    """

    folder: Path

    @classmethod
    def create(cls, recipe: Recipe, root: Path | str = RUNS) -> Run:
        """A new folder ``root/NAME``, or ``NAME-2`` and so on: an existing run is never overwritten."""
        root = Path(root)
        number = 1
        while True:
            folder = root / (recipe.name if number == 1 else f"{recipe.name}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                number += 1
                continue
            run = cls(folder)
            recipe.save_to(folder / "recipe.yaml")
            run.set_status("new")
            return run

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """An existing run, by its folder or by its name under ``runs/``.

        Raises:
            RunError: there is none; names the nearest.
        """
        for candidate in (Path(folder), Path(RUNS) / folder):
            if (candidate / "recipe.yaml").is_file():
                return cls(candidate)
        names = [run.name for run in cls.all_in(RUNS)]
        raise RunError(f"no run '{folder}' here or in '{RUNS}/'; {nearest(str(folder), names)}")

    @classmethod
    def all_in(cls, root: Path | str = RUNS) -> list[Run]:
        """All runs in a folder, oldest first."""
        return [cls(path.parent) for path in sorted(Path(root).glob("*/recipe.yaml"), key=lambda p: p.stat().st_mtime)]

    @property
    def stages(self) -> list[Run]:
        """The runs of a recipe with stages that have begun, in order."""
        folders = [path.parent for path in self.folder.glob("stage-*/recipe.yaml")]
        return [type(self)(folder) for folder in sorted(folders, key=lambda f: int(f.name.removeprefix("stage-")))]

    @property
    def final(self) -> Run:
        """The last stage that has begun; the run itself if it has no stages."""
        return (self.stages or [self])[-1]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe.load(self.folder / "recipe.yaml")

    def holds(self, recipe: Recipe) -> bool:
        """Whether this is the run's recipe, objects compared by their description."""
        return (self.folder / "recipe.yaml").read_text(encoding="utf-8") == recipe.to_yaml()

    @property
    def status(self) -> Status:
        """How far it got."""
        status: Status = self.summary.get("status", "new")
        return status

    @property
    def summary(self) -> dict[str, Any]:
        """Status, position, best and test figures, as in ``run.json``."""
        return self._json("run.json") or {}

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, seed, git commit and data fingerprint."""
        return self._json("environment.json") or {}

    @property
    def data(self) -> dict[str, Any]:
        """Facts, sizes and fitted values of the data."""
        return self._json("data.json") or {}

    @property
    def findings(self) -> list[Finding]:
        """What was noticed during the run."""
        return [Finding.from_value(value) for value in self._json("findings.json") or []]

    @property
    def results(self) -> list[Row]:
        """One row an epoch; units are in the names of the columns."""
        return read_rows(self.folder / "results.csv")

    @property
    def steps(self) -> list[Row]:
        """One row a step."""
        return read_rows(self.folder / "steps.csv")

    def weights(self, which: Literal["best", "last"] = "best") -> Path:
        """The file with the weights.

        Raises:
            RunError: the run has not saved any yet.
        """
        path = self.final.folder / "weights" / f"{which}.safetensors"
        if not path.is_file():
            raise RunError(f"run '{self.name}' has no {which} weights yet (status: {self.status})")
        return path

    def set_status(self, status: Status, **figures: Any) -> None:
        """Note in ``run.json`` how far the run is; figures given earlier are kept."""
        write_json(self.folder / "run.json", _without_nan({**self.summary, "status": status, **figures}))

    def write_results(self, rows: Sequence[Mapping[str, float | int]]) -> None:
        """Write ``results.csv``, whole."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [",".join(columns), *(",".join(_text(row.get(key)) for key in columns) for row in rows)]
        write_text(self.folder / "results.csv", "\n".join(lines) + "\n")

    def write_findings(self, findings: Iterable[Finding]) -> None:
        """Write ``findings.json``, whole."""
        write_json(self.folder / "findings.json", [finding.to_value() for finding in findings])

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        findings = [finding.to_value() for finding in self.findings]
        return {"name": self.name, "folder": str(self.folder), **self.summary, "findings": findings}

    def __str__(self) -> str:
        summary = self.summary
        lines = [f"run        {self.folder}", f"status     {self.status}"]
        if message := summary.get("message"):
            lines.append(f"message    {message}")
        if "step" in summary:
            lines.append(f"position   epoch {summary['epoch']}, step {summary['step']}, {summary['seconds']:.1f} s")
        if parent := summary.get("parent"):
            came = f"{parent['weights']} of {parent['run']}" if "run" in parent else parent["weights"]
            lines.append(f"starts at  {came}, SHA-256 {parent['sha256'][:12]}")
        for stage in self.stages:
            figures = stage.summary.get("test") or stage.summary.get("best") or {}
            lines.append(f"{stage.name:<10} {stage.status}, {_figures(figures)}")
        lines += [f"{part:<10} {_figures(summary[part])}" for part in ("best", "test") if summary.get(part)]
        lines += [f"finding    {str(finding).splitlines()[0]}" for finding in self.findings[:8]]
        if (self.folder / "report.html").exists():
            lines.append(f"report     {self.folder / 'report.html'}")
        return "\n".join(lines)

    def _json(self, name: str) -> Any:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise RunError(f"{path} is damaged: {error}") from error


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file as numbers; an empty cell is left out."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _number(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def _number(cell: str) -> float | int:
    return int(cell) if cell.lstrip("-").isdigit() else float(cell)


def _text(value: float | int | None) -> str:
    return "" if value is None else repr(value)


def _figures(figures: Mapping[str, float | None]) -> str:
    return ", ".join(f"{key} {'undefined' if value is None else f'{value:.6g}'}" for key, value in figures.items())


def _without_nan(value: Any) -> Any:
    """JSON has no not-a-number: a figure that is not defined (R2 of one sample) becomes null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
