"""``report.html`` of a trial: the decision, every pair, how the interval narrowed, and what it cost."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kingpost.errors import MissingExtraError
from kingpost.figure import readable
from kingpost.files import write_text
from kingpost.report.curves import Drawings
from kingpost.report.figures import BLUE, GRID, INK, ORANGE, _legend, _svg
from kingpost.report.words import number, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parent
TEMPLATE, STYLE_OF = FOLDER / "trial.html.j2", FOLDER / "template.html.j2"
COLOURS = {"helps": "note", "hurts": "failed", "no difference that matters": "", "no evidence yet": "stopped"}


def trial_page(folder: Path, verdicts: Mapping[str, Any], declaration: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into a trial's folder.

    Args:
        folder: of the trial.
        verdicts: as ``Verdicts.to_value()`` gives them.
        declaration: as ``Declaration.to_value()`` gives it.

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
    style = STYLE_OF.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        trial=verdicts["trial"],
        arms=[_arm(arm) for arm in verdicts["arms"]],
        declared=_declared(declaration),
        style=style,
        several=len(verdicts["arms"]) > 1,
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def signed(value: float | None) -> str:
    """A difference with its sign.

    >>> signed(0.01234), signed(None)
    ('+0.0123', 'none')
    """
    return "none" if value is None else f"{value:+.3g}"


def _arm(verdict: Mapping[str, Any]) -> dict[str, Any]:
    drawings = Drawings()
    if verdict["pairs"]:
        better = "" if verdict["higher_is_better"] else " Less is better here, so a difference above 0 means less."
        drawings.add(
            draw_pairs(verdict), "Each line joins the two runs of one seed. A cross at the edge is a run that failed."
        )
        drawings.add(
            draw_looks(verdict), "The interval holds at every look, so stopping early does not spoil it.", better
        )
    else:
        drawings.missing.append("No pair is complete yet.")
    return {**verdict, "drawings": drawings, "cost_rows": _costs(verdict), "colour": COLOURS[verdict["decision"]]}


def draw_pairs(verdict: Mapping[str, Any]) -> str:
    """The metric of both arms, joined by seed."""
    pairs = verdict["pairs"]
    whole = [(p["baseline"], p["arm"]) for p in pairs if p["baseline"] is not None and p["arm"] is not None]
    values = [value for pair in pairs for value in (pair["baseline"], pair["arm"]) if value is not None] or [0.0]
    room = 0.08 * (max(values) - min(values)) or 0.5
    worst = min(values) - room if verdict["higher_is_better"] else max(values) + room

    def draw(axes: Axes) -> None:
        for pair in pairs:
            ends = [worst if pair[side] is None else pair[side] for side in ("baseline", "arm")]
            axes.plot([0, 1], ends, color=INK, linewidth=0.7, alpha=0.4)
            for place, (side, colour, marker) in enumerate((("baseline", BLUE, "o"), ("arm", ORANGE, "s"))):
                failed = pair[side] is None
                axes.plot(place, ends[place], "x" if failed else marker, color=colour, markersize=6 if failed else 4)
        if whole:
            means = np.mean(np.array(whole), axis=0)
            axes.plot([0, 1], means, color=INK, linewidth=2, label="mean of the whole pairs")
        axes.set_xticks([0, 1], ["baseline", verdict["arm"]])
        axes.set(xlim=(-0.4, 1.4), ylabel=words(verdict["metric"]))
        _legend(axes)

    told = f"{len(pairs)} pairs, mean difference {signed(verdict['difference'])}"
    return _svg(f"pairs-{verdict['arm']}", f"Paired dots of {verdict['metric']} in both arms: {told}.", draw)


def draw_looks(verdict: Mapping[str, Any]) -> str:
    """Every difference, and the interval as it narrowed, over the band that does not matter."""
    looks = [look for look in verdict["looks"] if look["lower"] is not None and look["upper"] is not None]
    seen = [p["difference"] for p in verdict["pairs"]]
    small = verdict["smallest_effect"]

    def draw(axes: Axes) -> None:
        axes.axhspan(-small, small, color=GRID, alpha=0.5, linewidth=0, label=f"does not matter (±{small:g})")
        axes.axhline(0, color=INK, linewidth=1)
        places = [n for n, value in enumerate(seen, 1) if value is not None]
        shown = [value for value in seen if value is not None]
        axes.plot(places, shown, "o", color=BLUE, markersize=4, label="pair")
        if looks:
            x = [look["pairs"] for look in looks]
            ends = [[look[key] for look in looks] for key in ("lower", "upper")]
            axes.plot(x, [look["difference"] for look in looks], color=ORANGE, linewidth=1.6, label="mean and interval")
            axes.vlines(x, ends[0], ends[1], color=ORANGE, linewidth=2.2, alpha=0.7)
            far = 3 * max([abs(value) for value in shown] + [small, *(abs(end[-1]) for end in ends)])
            low, high = min(*shown, -small, *ends[0]), max(*shown, small, *ends[1])
            axes.set_ylim(max(1.05 * low, -far), min(1.05 * high, far))  # the first intervals may be huge
        axes.set(xlabel="pair", ylabel=f"difference in {words(verdict['metric'])}")
        axes.set_xticks(range(1, len(seen) + 1, max(1, math.ceil(len(seen) / 10))))
        _legend(axes)

    told = f"it ends at {signed(verdict['lower'])} to {signed(verdict['upper'])}"
    return _svg(f"looks-{verdict['arm']}", f"Differences by pair and the interval as it narrowed: {told}.", draw)


def _costs(verdict: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What, of the baseline, of the arm, ratio."""
    rows = []
    base, arm = verdict["costs"].get("baseline"), verdict["costs"].get("arm")
    if not base or not arm:
        return []
    units: Sequence[tuple[str, str, str, float]] = (
        ("time of a run", "seconds", "seconds", 1),
        ("peak memory", "peak_memory_mebibytes", "bytes", 2**20),
        ("parameters", "parameters", "", 1),
        ("steps", "steps", "", 1),
        ("samples", "samples", "", 1),
        ("compute", "flops", "FLOPs", 1),
        ("time to target", "target_seconds", "seconds", 1),
    )
    for name, key, unit, scale in units:
        one, other = base[key], arm[key]
        if one is None and other is None:
            continue
        first, second = ("never" if value is None else readable(value * scale, unit) for value in (one, other))
        rows.append((name, first, second, f"{other / one:.3g}" if one and other else ""))
    rows.append(("failed runs", f"{base['failed']} of {base['runs']}", f"{arm['failed']} of {arm['runs']}", ""))
    return rows


def _declared(declaration: Mapping[str, Any]) -> list[tuple[str, str]]:
    keys = ("declared_at", "metric", "at", "smallest_effect", "smallest_effect_reason", "alpha", "power", "min_pairs",
            "max_pairs", "max_pairs_reason", "budget", "first_seed", "threads", "version")  # fmt: skip
    return [(words(key), number(declaration[key])) for key in keys]
