"""``report.html`` of a run with stages: what each stage came to, and where its own report is."""

from __future__ import annotations

import html
from pathlib import Path

from kingpost.report.probing import write_page
from kingpost.report.words import number
from kingpost.run import Run


def staged_page(run: Run) -> Path:
    """Write the page that leads to the reports of the stages."""
    rows = "".join(_row(stage) for stage in run.stages)
    header = "".join(
        f"<th>{name}</th>" for name in ("stage", "status", "epochs", "steps", "seconds", "starts from", "figures")
    )
    body = (
        f"<h1>{html.escape(run.name)}</h1>\n<p>{html.escape(run.status)}. {len(run.recipe.stages)} stages, each of "
        f"which starts from the best weights of the one before it.</p>\n<table><tr>{header}</tr>\n{rows}</table>"
    )
    return write_page(run.folder / "report.html", f"{run.name} - kingpost", body)


def _row(stage: Run) -> str:
    summary = stage.summary
    parent = summary.get("parent") or {}
    came = f"{Path(str(parent.get('run', parent.get('weights'))))} ({parent['sha256'][:12]})" if parent else "nothing"
    shown = summary.get("test") or summary.get("best") or {}
    figures = ", ".join(f"{key} {number(value)}" for key, value in shown.items())
    cells = [summary.get("status"), summary.get("epoch"), summary.get("step"), summary.get("seconds"), came, figures]
    text = "".join(f"<td>{html.escape(number(cell))}</td>" for cell in cells)
    return f'<tr><td><a href="{stage.name}/report.html">{html.escape(stage.name)}</a></td>{text}</tr>\n'
