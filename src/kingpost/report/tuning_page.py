"""``report.html`` of a search: the winner and its proof, how overrated it was, what mattered, and every trial."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kingpost.errors import MissingExtraError
from kingpost.files import write_text
from kingpost.report.curves import Drawings
from kingpost.report.figures import BLUE, INK, ORANGE, _legend, _svg
from kingpost.report.trial_page import COLOURS, STYLE_OF, signed
from kingpost.report.words import number, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = Path(__file__).parent / "tuning.html.j2"
MOST_ROWS, MOST_BARS = 50, 15


def tuning_page(folder: Path, found: Mapping[str, Any], headline: str, proof: str = "") -> Path:
    """Write ``report.html`` into a search's folder.

    Args:
        folder: of the search.
        found: as ``Tuning.to_value()`` gives it.
        headline: the end of it in one line.
        proof: where the page of the proof is, relative to the folder; empty for none.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    for library in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise MissingExtraError(library, extra="report", purpose="report.html") from error
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed}
    ranked = _ranked(found["trials"], found["higher_is_better"])
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        {**found, "headline": headline.partition(": ")[2], "proof": proof},
        style=STYLE_OF.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0],
        colour=COLOURS[found["decision"]],
        drawings=_drawings(found),
        rows=ranked[:MOST_ROWS],
        left=max(0, len(ranked) - MOST_ROWS),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def draw_history(trials: Sequence[Mapping[str, Any]], metric: str, higher_is_better: bool) -> str:
    """The score of every trial, and the best so far."""
    whole = [(one["number"], one["score"]) for one in trials if one["score"] is not None]
    best, scores = (max if higher_is_better else min), [score for _, score in whole]
    so_far = [best(scores[: count + 1]) for count in range(len(scores))]
    room = 0.08 * (max(scores) - min(scores)) or 0.5
    floor = min(scores) - room if higher_is_better else max(scores) + room

    def draw(axes: Axes) -> None:
        axes.plot([n for n, _ in whole], scores, "o", color=BLUE, markersize=4, label="trial")
        axes.plot(
            [n for n, _ in whole], so_far, color=ORANGE, linewidth=1.6, drawstyle="steps-post", label="best so far"
        )
        for status, marker in (("pruned", "|"), ("failed", "x")):
            places = [one["number"] for one in trials if one["status"] == status]
            if places:
                axes.plot(places, [floor] * len(places), marker, color=INK, markersize=5, linestyle="", label=status)
        axes.set(xlabel="trial", ylabel=words(metric))
        _legend(axes)

    return _svg("history", f"Scores of {len(trials)} trials; the best is {so_far[-1]:.4g}.", draw)


def draw_importances(shares: Mapping[str, float]) -> str:
    """A bar for each key, the most important on top."""
    shown = sorted(shares.items(), key=lambda item: -item[1])[:MOST_BARS]

    def draw(axes: Axes) -> None:
        places = range(len(shown))
        axes.barh(list(places), [share for _, share in shown], color=BLUE, height=0.7)
        axes.set_yticks(list(places), [key for key, _ in shown], parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="importance (share)", xlim=(0, None))

    told = ", ".join(f"{key} {share:.0%}" for key, share in shown[:3])
    return _svg("importances", f"Bars of importance by key: {told}.", draw, (4.8, max(1.6, 0.5 + 0.3 * len(shown))))


def _drawings(found: Mapping[str, Any]) -> Drawings:
    drawings, trials = Drawings(), found["trials"]
    if any(one["score"] is not None for one in trials):
        better = "" if found["higher_is_better"] else "Less is better."
        shown = draw_history(trials, found["metric"], found["higher_is_better"])
        drawings.add(shown, "One seed each. Ended early and failed trials are marked at the edge.", better)
    else:
        drawings.missing.append("No trial came to an end.")
    if found["importances"]:
        drawings.add(draw_importances(found["importances"]), f"{found['importances_note']}.")
    else:
        drawings.missing.append(f"No importances: {found['importances_note']}.")
    return drawings


def _ranked(trials: Sequence[Mapping[str, Any]], higher_is_better: bool) -> list[Mapping[str, Any]]:
    sign = -1 if higher_is_better else 1
    order = {"finished": 0, "pruned": 1, "failed": 2}
    return sorted(trials, key=lambda one: (order[one["status"]], sign * (one["score"] or 0.0), one["number"]))
