"""Figures of merit from predictions: confusion matrix, per-class and per-label scores, an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054  # the normal quantile that leaves 2.5 % on either side


@dataclass(frozen=True)
class ClassScore:
    """How well one class (or label) is told apart; NaN where a figure is not defined.

    Args:
        name: of the class.
        precision: part of those predicted so that are so.
        recall: part of those that are so that are predicted so.
        f1: harmonic mean of the two.
        samples: of this class in the part that was judged.
        average_precision: area under precision against recall, for labels.
    """

    name: str
    precision: float
    recall: float
    f1: float
    samples: int
    average_precision: float = math.nan


@dataclass(frozen=True)
class Confusion:
    """One class that is taken for another."""

    target: str
    predicted: str
    samples: int
    share: float


def confusion_matrix(targets: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts ``(C, C)``: a row for each target, a column for each prediction.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return np.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_scores(matrix: NDArray[np.int64], names: Sequence[str]) -> list[ClassScore]:
    """Precision, recall and F1 of each class."""
    right, wanted, given = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return [_score(name, *map(int, row)) for name, *row in zip(names, right, wanted, given, strict=True)]


def label_scores(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float64], names: Sequence[str]
) -> list[ClassScore]:
    """Average precision of each label, and the rest at a probability of one half; both arrays ``(N, L)``."""
    scores = []
    for name, wanted, probability in zip(names, targets.T, probabilities.T, strict=True):
        given = probability >= 0.5
        area = average_precision(wanted, probability)
        scores.append(_score(name, int((wanted & given).sum()), int(wanted.sum()), int(given.sum()), area))
    return scores


def average_precision(targets: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Mean precision over the steps of recall, without interpolation; NaN if no target is true.

    Samples of equal score enter together, so that their order does not matter.

    >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7])).__round__(4)
    0.8333
    """
    if not targets.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    right = np.cumsum(targets[order])[last_of_equal]
    given = np.flatnonzero(last_of_equal) + 1
    return float(np.sum(np.diff(right, prepend=0) / right[-1] * (right / given)))


def most_confused(matrix: NDArray[np.int64], names: Sequence[str], most: int) -> list[Confusion]:
    """The pairs of classes with the most samples between them, the worst first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(i) // len(names), int(i) % len(names)) for i in order]
    return [
        Confusion(names[row], names[column], int(wrong[row, column]), float(wrong[row, column] / matrix[row].sum()))
        for row, column in pairs
        if wrong[row, column]
    ]


def wilson_interval(part: float, samples: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, given ``samples`` independent draws.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    >>> [round(bound, 3) for bound in wilson_interval(0.9, 100)]
    [0.826, 0.945]
    """
    spread = Z95**2 / samples
    centre = (part + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(part * (1 - part) / samples + spread / samples / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _score(name: str, right: int, wanted: int, given: int, area: float = math.nan) -> ClassScore:
    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    return ClassScore(name, ratio(right, given), ratio(right, wanted), ratio(2 * right, wanted + given), wanted, area)
