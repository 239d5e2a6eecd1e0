"""The figures: data in, SVG text out. Colours are variables of the page's style sheet, so dark mode holds."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kingpost.report.thinning import Array, Thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (4.8, 3.0)
TALL = (4.8, 4.2)

# matplotlib wants colours, the page wants variables: these stand for one another. The two series differ for
# every kind of colour vision (Okabe and Ito, "Color universal design", 2008), and in their marks.
INK, GRID, BLUE, ORANGE = "#000001", "#000002", "#000003", "#000004"
VARIABLES = {INK: "currentColor", GRID: "var(--grid)", BLUE: "var(--blue)", ORANGE: "var(--orange)"}

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.borderpad": 0,
}


def losses(epochs: Array, train: Array, validation: Array, best: float | None, unit: str) -> str:
    """Training and validation loss against the epoch; values that are NaN are left out."""

    def draw(axes: Axes) -> None:
        _line(axes, epochs, train, BLUE, "training", "o")
        _line(axes, epochs, validation, ORANGE, "validation", "s")
        _epochs(axes, epochs, best)
        axes.set_ylabel(f"loss ({unit})")
        _legend(axes)

    told = "".join(
        f" {name} ends at {line[np.isfinite(line)][-1]:.4g}."
        for name, line in (("Training", train), ("Validation", validation))
        if np.isfinite(line).any()
    )
    return _svg("losses", f"Line chart of the loss in {unit} against the epoch.{told}", draw)


def metric(epochs: Array, values: Array, best: float | None, label: str) -> str:
    """A validation metric against the epoch."""

    def draw(axes: Axes) -> None:
        _line(axes, epochs, values, ORANGE, "validation", "s")
        _epochs(axes, epochs, best)
        axes.set_ylabel(label, parse_math=False)
        _legend(axes)

    told = f" It ends at {values[np.isfinite(values)][-1]:.4g}." if np.isfinite(values).any() else ""
    return _svg("metric", f"Line chart of the validation {label} against the epoch.{told}", draw)


def step_loss(loss: Thinned, unit: str) -> str:
    """The loss of each step, and its running mean."""

    def draw(axes: Axes) -> None:
        _history(axes, loss)
        axes.set_ylabel(f"loss ({unit})")
        _legend(axes)

    return _svg("step-loss", f"Line chart of the training loss in {unit} against the optimizer step.", draw)


def learning_rate(rate: Thinned) -> str:
    """The learning rate of the first parameter group."""
    from matplotlib.ticker import FuncFormatter

    def draw(axes: Axes) -> None:
        axes.plot(rate.steps, rate.high, color=BLUE, linewidth=1.6, marker="o", markersize=_size(rate.steps))
        axes.set(ylabel="learning rate", ylim=(0, None))
        _counts(axes, "optimizer step", rate.steps)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    told = f"from {rate.high[0]:.3g} to {rate.high[-1]:.3g}, at most {rate.high.max():.3g}"
    return _svg("learning-rate", f"Line chart of the learning rate against the optimizer step: {told}.", draw)


def gradient_norm(norm: Thinned) -> str:
    """The norm of the whole gradient, on a logarithmic axis."""

    def draw(axes: Axes) -> None:
        _history(axes, norm)
        axes.set_ylabel("gradient norm (L2, log scale)")
        _log_axis(axes, norm)
        _legend(axes)

    told = f"between {norm.low.min():.3g} and {norm.high.max():.3g}"
    return _svg("gradient-norm", f"Line chart of the gradient norm against the optimizer step, {told}.", draw)


def scatter(targets: Array, predictions: Array, name: str) -> str:
    """Predicted against true values, with the diagonal on which they are equal."""

    def draw(axes: Axes) -> None:
        both = np.concatenate([targets, predictions])
        ends = [both.min(), both.max()]
        axes.plot(ends, ends, color=INK, linewidth=1, label="predicted = true")
        axes.plot(targets, predictions, "o", color=BLUE, markersize=3.5, markeredgewidth=0, alpha=0.5)
        axes.set(xlabel="true value (target's unit)", ylabel="predicted value (target's unit)")
        axes.set_aspect("equal", adjustable="datalim")
        _legend(axes)

    return _svg(f"scatter-{name}", f"Scatter of predicted against true values of {name}.", draw, TALL)


def residuals(errors: Array, name: str) -> str:
    """How often the prediction is off by how much."""
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        bins = int(np.clip(np.sqrt(len(errors)), 5, 40))
        axes.hist(errors, bins=bins, color=BLUE, edgecolor=GRID, linewidth=0.5)
        axes.axvline(0, color=INK, linewidth=1)
        mean = axes.axvline(errors.mean(), color=ORANGE, linewidth=1.6, linestyle="--")
        mean.set_label(f"mean {errors.mean():.3g}")
        axes.set(xlabel="predicted - true (target's unit)", ylabel="samples")
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        _legend(axes)

    told = f"{name}: mean {errors.mean():.3g}, standard deviation {errors.std():.3g}"
    return _svg(f"residuals-{name}", f"Histogram of predicted minus true values of {told}.", draw, TALL)


def reliability(before: Array, after: Array, temperature: float) -> str:
    """The part that is right against the confidence, without and with a temperature; rows are bins.

    Args:
        before: confidence, part that is right, and samples of each bin, ``(bins, 3)``.
        after: the same with the temperature.
        temperature: by which the scores were divided.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="as sure as right")
        for bins, colour, label, marker in ((before, BLUE, "as trained", "o"), (after, ORANGE, "with T", "s")):
            axes.plot(bins[:, 0], bins[:, 1], color=colour, linewidth=1.2, label=label)
            sizes = 8 + 90 * np.sqrt(bins[:, 2] / bins[:, 2].sum())
            axes.scatter(bins[:, 0], bins[:, 1], s=sizes, color=colour, marker=marker, linewidths=0)
        axes.set(xlabel="mean confidence", ylabel="part that is right", xlim=(0, 1.02), ylim=(0, 1.02))
        _legend(axes)

    told = f"{len(before)} bins without, {len(after)} with temperature {temperature:.3g}"
    return _svg("reliability", f"Reliability diagram: part that is right against confidence, {told}.", draw, TALL)


def _line(axes: Axes, x: Array, y: Array, colour: str, label: str, marker: str) -> None:
    fine = np.isfinite(y)
    if fine.any():
        line = axes.plot(x[fine], y[fine], color=colour, linewidth=1.6, label=label)[0]
        line.set(marker=marker, markersize=_size(x[fine]))


def _size(points: Array) -> float:
    """Of the markers: a few points are shown one by one, many as a line."""
    return 4 if len(points) <= 30 else 0


def _epochs(axes: Axes, epochs: Array, best: float | None) -> None:
    if best is not None:
        axes.axvline(best, color=INK, linewidth=1, linestyle=":", label=f"best epoch, {best:.0f}")
    _counts(axes, "epoch", epochs)


def _counts(axes: Axes, label: str, values: Array) -> None:
    """An axis of whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    if len(values) == 1:
        axes.set_xlim(values[0] - 1, values[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _history(axes: Axes, history: Thinned) -> None:
    """Each step's value or, of very many, their range; and the running mean."""
    x = history.steps
    if history.per_bin == 1:
        line = axes.plot(x, history.low, color=BLUE, linewidth=0.8, alpha=0.6, label="each step")[0]
        line.set(marker="o", markersize=_size(x))
    else:
        band = axes.fill_between(x, history.low, history.high, color=BLUE, alpha=0.45, linewidth=0)
        band.set_label("each step, lowest to highest")
    if history.window > 1:
        axes.plot(x, history.mean, color=ORANGE, linewidth=1.6, label=f"mean over {history.window} steps")
    _counts(axes, "optimizer step", x)


def _log_axis(axes: Axes, history: Thinned) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    decades = np.log10(history.high.max() / history.low.min())
    subs = (1.0, 2.0, 5.0) if decades < 2 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.2)


def _svg(name: str, alternative: str, draw: Callable[[Axes], None], inches: tuple[float, float] = INCHES) -> str:
    """A figure as an ``<svg>`` element whose identifiers begin with ``name``, the same at every call."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own settings would make reports differ
        settings: dict[Any, Any] = STYLE | {"svg.hashsalt": name}
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=inches, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _for_page(file.getvalue(), name, alternative)


def _for_page(svg: str, name: str, alternative: str) -> str:
    """The element alone, with the page's colours, and identifiers that no other figure has."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box
    opening = f'<svg role="img" aria-label="{html.escape(alternative)}" {box[0]}>'
    return opening + re.sub(r"^<svg[^>]*>", "", svg).replace("xlink:href", "href")
