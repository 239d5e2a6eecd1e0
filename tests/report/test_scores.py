"""Scores against scikit-learn, which computes the same by another road."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from kingpost.report.scores import (
    average_precision,
    class_scores,
    confusion_matrix,
    label_scores,
    most_confused,
)


@pytest.mark.parametrize("seed", range(5))
def test_class_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets, predicted = (
        rng.integers(0, 6, 80),
        rng.integers(0, 7, 80),
    )  # class 6 never occurs, class 7 nowhere
    matrix = confusion_matrix(targets, predicted, 8)
    assert (matrix == metrics.confusion_matrix(targets, predicted, labels=range(8))).all()
    reference = metrics.precision_recall_fscore_support(targets, predicted, labels=range(8), zero_division=np.nan)
    scores = class_scores(matrix, [str(i) for i in range(8)])
    got = np.array([[s.precision, s.recall, s.f1, s.samples] for s in scores])
    np.testing.assert_allclose(got, np.array(reference).T, rtol=1e-12)  # the same divisions of whole numbers


@pytest.mark.parametrize("digits", [1, 6])
def test_average_precision(digits: int) -> None:
    rng = np.random.default_rng(digits)
    targets, scores = (
        rng.random((200, 4)) < 0.3,
        rng.random((200, 4)).round(digits),
    )  # one digit: many are equal
    got = [s.average_precision for s in label_scores(targets, scores, list("abcd"))]
    reference = metrics.average_precision_score(targets, scores, average=None)
    np.testing.assert_allclose(got, reference, rtol=1e-12)  # sums of 200 ratios in 64 bits


def test_a_label_without_samples_has_no_average_precision() -> None:
    assert np.isnan(average_precision(np.zeros(3, dtype=bool), np.arange(3.0)))


def test_label_scores_at_one_half() -> None:
    rng = np.random.default_rng(0)
    targets, scores = rng.random((100, 3)) < 0.5, rng.random((100, 3))
    reference = metrics.precision_recall_fscore_support(targets, scores >= 0.5)
    got = np.array([[s.precision, s.recall, s.f1, s.samples] for s in label_scores(targets, scores, list("abc"))])
    np.testing.assert_allclose(got, np.array(reference).T, rtol=1e-12)


def test_most_confused_pairs_come_worst_first() -> None:
    pairs = most_confused(np.array([[5, 3, 0], [1, 5, 0], [0, 4, 4]]), list("abc"), 2)
    assert [(p.target, p.predicted, p.samples, p.share) for p in pairs] == [
        ("c", "b", 4, 0.5),
        ("a", "b", 3, 0.375),
    ]
