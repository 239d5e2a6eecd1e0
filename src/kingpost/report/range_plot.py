"""The curve of a learning-rate range test, as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kingpost.errors import MissingExtraError, RecipeError
from kingpost.files import write_atomically
from kingpost.report.figures import BLUE, GRID, INK, ORANGE, STYLE

INCHES = (6.4, 4.0)
# A file has no style sheet: the page's variables as they are in its light mode (Okabe and Ito, 2008).
COLOURS = {INK: "#1f2328", GRID: "#d0d7de", BLUE: "#0072b2", ORANGE: "#b35900"}
FORMATS = (".png", ".svg", ".pdf")


def check_format(path: Path | str) -> None:
    """Refuse a file that could not be written, before anything is computed for it.

    Raises:
        RecipeError: its ending is no known format.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise RecipeError(f"cannot draw '{path}'", path="--output", mend=f"known endings: {', '.join(FORMATS)}")


def draw_range_test(
    path: Path | str,
    curve: tuple[Sequence[float], Sequence[float], Sequence[float]],
    marks: Mapping[str, float],
    title: str,
    unit: str,
) -> Path:
    """Loss against learning rate, with some rates marked, written to a file.

    Args:
        path: ends with .png, .svg or .pdf.
        curve: learning rate of each step, the loss there, and the same smoothed.
        marks: rates to be marked, each by what it is.
        title: above the figure.
        unit: of the loss.

    Raises:
        RecipeError: the ending is no known format.
        MissingExtraError: matplotlib is not installed.
    """
    check_format(path)
    rates, losses, smoothed = curve
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="report", purpose="drawing the range test") from error
    settings: dict[Any, Any] = {key: COLOURS.get(value, value) for key, value in STYLE.items()}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings | {"svg.hashsalt": "range-test"})
        figure = Figure(figsize=INCHES, layout="constrained", dpi=150)
        axes = figure.add_subplot()
        axes.plot(rates, losses, color=COLOURS[BLUE], linewidth=0.8, alpha=0.5, label="each step")
        axes.plot(rates, smoothed, color=COLOURS[BLUE], linewidth=2, label="smoothed")
        for (name, rate), style in zip(marks.items(), ("-", "--", ":", "-."), strict=False):
            axes.axvline(rate, color=COLOURS[ORANGE], linewidth=1.2, linestyle=style, label=f"{name}, {rate:.3g}")
        low, high = min(smoothed), max(*smoothed[: len(smoothed) // 2], smoothed[0])
        room = 0.25 * (high - low) or 1.0
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"training loss ({unit})", ylim=(low - room, high + room))
        axes.set_title(title, loc="left", fontsize=10, parse_math=False)
        axes.legend(loc="best")
        kind = Path(path).suffix.lower()[1:]
        still = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
        write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format=kind, metadata=still))
    return Path(path)
