"""What the best weights got right and wrong, from ``judged.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from kingpost.report import figures, pictures, scores
from kingpost.report.curves import Drawings
from kingpost.report.words import number
from kingpost.run import Run

MOST_CLASSES = 20  # of a confusion matrix that can still be read
MOST_PAIRS = 15
MOST_ROWS = 100  # of the table of classes
MOST_WORST = 24
MOST_POINTS = 1000  # of a scatter
LARGEST = 100  # errors that are always among them
MOST_TARGETS = 4


@dataclass(frozen=True)
class Worst:
    """A sample with a great loss."""

    index: int
    row: int | None
    loss: float
    target: str
    predicted: str
    probability: float | None
    wrong: bool
    picture: str | None


@dataclass
class Judged:
    """What the page says about predictions one by one.

    Args:
        part: ``test`` or ``validation``.
        samples: how many were judged.
        of: how many that part holds.
        task: name of the task.
        names: of classes or labels.
        right: correct predictions, for classification.
        commonest: share of the most frequent class.
        matrix: counts by target and prediction, if it can be read.
        pairs: most confused pairs, if it cannot.
        classes: scores of each class or label, at most ``MOST_ROWS``.
        drawings: figures for regression.
        worst: samples by falling loss.
    """

    part: str
    samples: int
    of: int
    task: str
    names: Sequence[str]
    right: int | None = None
    commonest: float = 0.0
    matrix: list[list[int]] | None = None
    pairs: list[scores.Confusion] = field(default_factory=list)
    classes: list[scores.ClassScore] = field(default_factory=list)
    drawings: Drawings = field(default_factory=Drawings)
    worst: list[Worst] = field(default_factory=list)


def read_judged(run: Run) -> Judged | None:
    """What is known of single predictions; None if the run has not kept any."""
    path = run.folder / "judged.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        part = (file.metadata() or {}).get("part", "test")
    data = run.data
    if data.get("heads"):  # classes beside values: their scores are among the metrics, one by one they have no picture
        return None
    samples = len(tensors["targets"])
    judged = Judged(
        part=part,
        samples=samples,
        of=data.get("samples", {}).get(part, samples),
        task=data.get("task", ""),
        names=_names(data.get("classes", []), tensors["predictions"]),
    )
    describe = {"classification": _classes, "multi-label": _labels}.get(judged.task, _values)
    describe(judged, tensors["targets"], tensors["predictions"])
    judged.worst = _worst(judged, tensors, data.get("fitted", {}), _source_rows(run.folder, part))
    return judged


def _classes(judged: Judged, targets: Tensor, predictions: Tensor) -> None:
    wanted, given = targets.argmax(1) if targets.ndim == 2 else targets.long(), predictions.argmax(1)
    matrix = scores.confusion_matrix(wanted.numpy(), given.numpy(), len(judged.names))
    judged.right = int(matrix.trace())
    judged.commonest = float(matrix.sum(1).max() / matrix.sum())
    if len(judged.names) <= MOST_CLASSES:
        judged.matrix = matrix.tolist()
    else:
        judged.pairs = scores.most_confused(matrix, judged.names, MOST_PAIRS)
    judged.classes = _shortened(scores.class_scores(matrix, judged.names))


def _labels(judged: Judged, targets: Tensor, predictions: Tensor) -> None:
    wanted, probabilities = targets.numpy() > 0.5, predictions.double().numpy()
    judged.classes = _shortened(scores.label_scores(wanted, probabilities, judged.names))


def _values(judged: Judged, targets: Tensor, predictions: Tensor) -> None:
    wanted, given = (t.reshape(len(t), -1).double().numpy() for t in (targets, predictions))
    for column in range(min(MOST_TARGETS, wanted.shape[1])):
        name = "the target" if wanted.shape[1] == 1 else f"target {column + 1}"
        fine = np.isfinite(wanted[:, column]) & np.isfinite(given[:, column])
        if not fine.any():
            judged.drawings.missing.append(f"No finite value of {name}.")
            continue
        y, p = wanted[fine, column], given[fine, column]
        kept = _kept(np.abs(p - y))
        which = f", the {LARGEST} with the largest errors and others at random" if len(kept) < len(y) else ""
        shown = f"True and predicted values of {name}: {len(kept):,} of {len(y):,} samples{which}."
        judged.drawings.add(figures.scatter(y[kept], p[kept], name), shown)
        errors = f"Errors of {name} over all {len(y):,} samples; below zero, the prediction is too low."
        judged.drawings.add(figures.residuals(p - y, name), errors)
    if wanted.shape[1] > MOST_TARGETS:
        judged.drawings.missing.append(f"Drawn are the first {MOST_TARGETS} of {wanted.shape[1]} targets.")


def _kept(errors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which samples to draw: all if they are few, else the largest errors and a fixed random choice."""
    order = np.argsort(-errors, kind="stable")
    if len(order) <= MOST_POINTS:
        return order
    rest = np.random.default_rng(0).choice(order[LARGEST:], MOST_POINTS - LARGEST, replace=False)
    return np.concatenate([order[:LARGEST], rest])


def _worst(
    judged: Judged, tensors: Mapping[str, Tensor], fitted: Mapping[str, Any], rows: Tensor | None
) -> list[Worst]:
    worst, inputs = tensors["worst"][:MOST_WORST], tensors["worst_inputs"]
    scale = next(iter(fitted.get("inputs") or []), None)
    drawn = pictures.are_images(inputs)
    told = []
    for place, index in enumerate(worst.tolist()):
        target, prediction = tensors["targets"][index], tensors["predictions"][index]
        wanted, given = _said(judged, target), _said(judged, prediction)
        told.append(
            Worst(
                index=index,
                row=int(rows[index]) if rows is not None else None,
                loss=float(tensors["losses"][index]),
                target=wanted,
                predicted=given,
                probability=float(prediction.max()) if judged.task == "classification" else None,
                wrong=wanted != given,
                picture=pictures.data_uri(inputs[place], scale) if drawn else None,
            )
        )
    return told


def _said(judged: Judged, value: Tensor) -> str:
    """A target or a prediction in words."""
    if judged.task == "classification":
        return judged.names[int(value.argmax() if value.ndim else value)]
    if judged.task == "multi-label":
        return ", ".join(name for name, on in zip(judged.names, value > 0.5, strict=True) if on) or "none"
    return ", ".join(number(float(v)) for v in value.flatten()[:MOST_TARGETS])


def _shortened(classes: list[scores.ClassScore]) -> list[scores.ClassScore]:
    """All classes in their order or, of very many, those with the lowest F1."""
    if len(classes) <= MOST_ROWS:
        return classes
    return sorted(classes, key=lambda c: c.f1 if c.f1 == c.f1 else 2.0)[:MOST_ROWS]


def _names(classes: Sequence[str], predictions: Tensor) -> list[str]:
    columns = predictions.shape[1] if predictions.ndim == 2 else 0
    return list(classes) if len(classes) == columns else [str(number) for number in range(columns)]


def _source_rows(folder: Path, part: str) -> Tensor | None:
    """Which row of the source each sample of a part is, where kingpost divided the data itself."""
    path = folder / "splits.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if part not in file.keys():  # noqa: SIM118 - not a mapping
            return None
        rows: torch.Tensor = file.get_tensor(part)
        return rows
