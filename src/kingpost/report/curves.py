"""The learning curves of a run, drawn from its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kingpost.report import figures
from kingpost.report.thinning import Array, Thinned, thin
from kingpost.report.words import axis, words
from kingpost.run import Row

STEP_COLUMNS = ("step", "epoch", "loss", "learning_rate", "gradient_norm")


@dataclass(frozen=True)
class Drawing:
    """A figure and what is to be said about it."""

    svg: str
    caption: str


@dataclass
class Drawings:
    """Figures, and what could not be drawn, each in a sentence."""

    figures: list[Drawing] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, svg: str, *sentences: str) -> None:
        """One more figure with its caption."""
        self.figures.append(Drawing(svg, " ".join(filter(None, sentences))))


def draw_epochs(results: Sequence[Row], best: float | None, metric: str, unit: str, adding: Sequence[str]) -> Drawings:
    """What was measured once an epoch.

    Args:
        results: rows of ``results.csv``.
        best: the epoch whose weights were kept.
        metric: the name of the score that chose them.
        unit: of the loss.
        adding: techniques that change what the training loss is.
    """
    drawings = Drawings()
    if not results:
        drawings.missing.append("No epoch has ended yet (no results.csv), so there are no curves by epoch.")
        return drawings
    columns = sorted({key for row in results for key in row})
    loss = next((key for key in columns if key.startswith("validation_loss")), "")
    train_loss = next(key for key in columns if key.startswith("train_loss"))
    train, validation = _column(results, train_loss), _column(results, loss)
    epochs = _column(results, "epoch")
    drawings.add(
        figures.losses(epochs, train, validation, best, unit),
        "The training loss is the mean over each epoch while the weights were changing.",
        f"It is not the plain loss, as validation is: {', '.join(adding)} changed it." if adding else "",
    )
    others = [key for key in columns if key.startswith("validation_") and key != loss]
    shown = f"validation_{metric}" if f"validation_{metric}" in others else next(iter(others), "")
    if shown:
        name = shown.removeprefix("validation_")
        why = f"The weights of the epoch with the best {words(metric)} are kept." if metric else ""
        drawings.add(figures.metric(epochs, _column(results, shown), best, axis(name)), why)
    if not loss:
        drawings.missing.append(
            "There is no validation loss, so nothing shows whether the samples were only learned by heart."
        )
    return drawings


def draw_steps(steps: Sequence[Row], unit: str) -> Drawings:
    """What was measured at every optimizer step."""
    drawings = Drawings()
    if not steps:
        drawings.missing.append("No steps were written down (no steps.csv), so there are no curves by step.")
        return drawings
    loss, norm = _thinned(steps, "loss"), _thinned(steps, "gradient_norm", positive=True)
    rate = _thinned(steps, "learning_rate")
    if len(loss.steps):
        drawings.add(figures.step_loss(loss, unit), loss.caption())
    if len(rate.steps):
        drawings.add(figures.learning_rate(rate), "Of the first parameter group.")
    if len(norm.steps):
        drawings.add(figures.gradient_norm(norm), "Before clipping, if there is any.", norm.caption())
    for name, drawn in (("loss", loss), ("gradient norm", norm)):
        if not len(drawn.steps):
            drawings.missing.append(f"No step has a {name} that can be drawn.")
    if others := sorted({key for row in steps for key in row} - set(STEP_COLUMNS)):
        drawings.missing.append(f"Not drawn, but in steps.csv: {', '.join(others)}.")
    return drawings


def _thinned(steps: Sequence[Row], key: str, positive: bool = False) -> Thinned:
    return thin(_column(steps, "step"), _column(steps, key), positive)


def _column(rows: Sequence[Row], key: str) -> Array:
    return np.array([row.get(key, np.nan) for row in rows], dtype=np.float64)
