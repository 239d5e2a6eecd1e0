"""``probe.html``: what each layer of a net knows, as figures and a table."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kingpost.files import write_text
from kingpost.report.figures import BLUE, INK, ORANGE, TALL, _legend, _svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = """:root { color-scheme: light dark; --grid: #d3d8de; --blue: #0072b2; --orange: #c75000; }
@media (prefers-color-scheme: dark) { :root { --grid: #3b4249; --blue: #56b4e9; --orange: #f09a3e; } }
body { margin: 0 auto; padding: 1.5rem 1rem; max-width: 60rem; font: 1rem/1.5 system-ui, sans-serif; }
svg { max-width: 34rem; width: 100%; } td, th { padding: .1rem .8rem .1rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }"""


def write_page(path: Path, title: str, body: str) -> Path:
    """Write a small page that needs no network."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    write_text(path, f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')
    return path


def probe_page(path: Path, probe: Mapping[str, Any]) -> Path:
    """Write the page of a probe.

    Args:
        path: of the file.
        probe: as ``Probe.to_value()`` gives it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = "".join(
        f"<tr><td>{html.escape(row['path'])}</td><td>{row['features']:,}</td><td>{row['trained']:.4f}</td>"
        f"<td>{row['untrained']:.4f}</td><td>{row['moved']:.4f}</td></tr>\n"
        for row in probe["layers"]
    )
    fitted, judged = probe["samples"]
    title = f"Probe of {probe['run']} on {probe['data']}"
    said = (
        f"{probe['metric']} of a ridge regression on the features of each layer (positions averaged), fitted on "
        f"{fitted:,} samples and judged on {judged:,}; beside it the same net as it started."
    )
    columns = ("layer", "features", "trained", "untrained", "moved (1 - CKA)")
    header = "".join(f"<th>{name}</th>" for name in columns)
    table = f"<table><tr>{header}</tr>\n{rows}</table>"
    figures = scores(probe) + alignment(probe)
    return write_page(path, title, f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(said)}</p>\n{figures}\n{table}")


def scores(probe: Mapping[str, Any]) -> str:
    """The probes' scores, layer by layer."""
    names = [row["path"] for row in probe["layers"]]

    def draw(axes: Axes) -> None:
        for key, colour, marker in (("trained", BLUE, "o"), ("untrained", ORANGE, "s")):
            values = [row[key] for row in probe["layers"]]
            axes.plot(range(len(names)), values, color=colour, linewidth=1.6, label=key, marker=marker, markersize=4)
        axes.set_ylabel(probe["metric"])
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        _legend(axes)

    told = ", ".join(f"{row['path']} {row['trained']:.3f}" for row in probe["layers"])
    return _svg("probe", f"Line chart of the probe's {probe['metric']} by layer: {told}.", draw)


def alignment(probe: Mapping[str, Any]) -> str:
    """CKA between each two layers."""
    names = [row["path"] for row in probe["layers"]]
    values = np.array(probe["alignment"], dtype=np.float64)

    def draw(axes: Axes) -> None:
        axes.set_axisbelow(False)
        axes.grid(visible=False)
        for (row, column), value in np.ndenumerate(values):
            side = 0.9 * np.sqrt(np.clip(np.nan_to_num(value), 0, 1))
            axes.add_patch(_square(column, row, side))
        axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(len(names) - 0.4, -0.6), aspect="equal")
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_title("CKA of each two layers: area of the square", color=INK, fontsize=9)

    return _svg("alignment", "Squares whose area is the CKA of each two layers.", draw, TALL)


def _square(x: float, y: float, side: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - side / 2, y - side / 2), side, side, facecolor=BLUE, edgecolor="none")
