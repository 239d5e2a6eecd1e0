"""What is known of uncertainty, as columns beside the predictions: spread, entropies, sets and intervals.

Legend of shapes: ``M`` members, ``N`` samples, ``C`` classes, ``D`` values of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kingpost import seeds
from kingpost.errors import DataError
from kingpost.source import Dataset, Order, Split
from kingpost.task import Task
from kingpost.train.ensemble import conformal
from kingpost.train.ensemble.committee import Committee
from kingpost.train.ensemble.uncertainty import decompose, decompose_labels, mean_and_variance
from kingpost.train.evaluate import in_own_unit

Method = Literal["aps", "raps", "lac", "residual", "cqr"]
Column = Sequence[float | int | str]


@dataclass(frozen=True)
class Beside:
    """Columns, figures and how these came about."""

    columns: Mapping[str, Column] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def with_(self, other: Beside) -> Beside:
        """Both."""
        return Beside(
            {**self.columns, **other.columns}, {**self.metrics, **other.metrics}, {**self.notes, **other.notes}
        )


def member_predictions(
    committee: Committee, split: Split, task: Task, dataset: Dataset, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Each member's predictions ``(M, N, ...)`` and the targets ``(N, ...)``, in their own unit, on the processor."""
    values, truth = [], []
    for batch in split.batches(Order(batch_size=size)):
        own = batch.to(device)
        with torch.no_grad():
            votes = committee.votes(*own.inputs)
        shown = [in_own_unit(task.predictions(vote), own.targets, dataset.fitted) for vote in votes]
        values.append(torch.stack([prediction for prediction, _ in shown]).cpu())
        truth.append(shown[0][1].cpu())
    both = torch.cat(values, 1), torch.cat(truth)
    return both if both[0].ndim > 2 else (both[0][..., None], both[1])


def spread_columns(votes_mn: Tensor, task: str, names: Sequence[str]) -> Beside:
    """The members' standard deviation for each class or value, and for classes and labels the entropies in nats."""
    _, variance = mean_and_variance(votes_mn)
    flat = variance.flatten(1).sqrt()
    columns: dict[str, Column] = {f"spread_{name}": flat[:, index].tolist() for index, name in enumerate(names)}
    if task in ("classification", "multi-label"):
        parts = (decompose if task == "classification" else decompose_labels)(votes_mn.double())
        columns |= {
            "entropy_nats": parts.total.tolist(),
            "aleatoric_nats": parts.aleatoric.tolist(),
            "epistemic_nats": parts.epistemic.tolist(),
        }
    return Beside(columns, {"members": len(votes_mn)})


@dataclass(frozen=True)
class Known:
    """Predictions of a part of the data.

    Args:
        values: probabilities or values, ``(N, ...)``.
        targets: the truth in the same unit; None if it is not known.
        votes: of each member, ``(M, N, ...)``; None where one net predicts.
    """

    values: Tensor
    targets: Tensor | None
    votes: Tensor | None = None


def conformal_columns(
    held_out: Known, new: Known, task: str, names: Sequence[str], alpha: float, method: Method | None, seed: int
) -> Beside:
    """Sets of classes, or an interval for each value, that hold the truth with probability ``1 - alpha``.

    Raises:
        DataError: this method is not for this task or model.
    """
    kinds = {"classification": ("aps", "raps", "lac"), "regression": ("residual", "cqr")}
    fitting = kinds.get("regression" if task == "forecasting" else task, ())
    if not fitting:
        raise DataError(f"sets with a stated coverage are not made for the task '{task}'; {', '.join(kinds)} have them")
    method = method or fitting[0]  # type: ignore[assignment]
    if method not in fitting:
        raise DataError(f"'{method}' is not for {task}; use {' or '.join(fitting)}")
    if method == "cqr" and held_out.votes is None:
        raise DataError("'cqr' takes its quantiles from members: give several runs, or snapshots, swag or dropout")
    if task == "classification":
        return _class_sets(held_out, new, names, alpha, method, seed)  # type: ignore[arg-type]
    return _intervals(held_out, new, names, alpha, method == "cqr")


def _class_sets(
    held_out: Known, new: Known, names: Sequence[str], alpha: float, method: conformal.SetMethod, seed: int
) -> Beside:
    assert held_out.targets is not None
    draws = [seeds.derive(seed, "conformal", part) for part in ("held out", "new")]
    scores = conformal.class_scores(held_out.values, method, draws[0])
    limit = conformal.bound(scores.gather(1, held_out.targets.long()[:, None])[:, 0], alpha)
    inside = conformal.class_scores(new.values, method, draws[1]) <= limit
    sizes = inside.sum(1)
    members = [[name for name, is_in in zip(names, row, strict=True) if is_in] for row in inside.tolist()]
    columns: dict[str, Column] = {"set": ["|".join(row) for row in members], "set_size": sizes.tolist()}
    made = Beside(columns, {"set_size": float(sizes.double().mean())}, {"set_size": f"mean, {method}"})
    if new.targets is None:
        return made
    hits = inside.gather(1, new.targets.long()[:, None])[:, 0]
    return made.with_(_coverage("coverage", hits, len(held_out.values), alpha))


def _intervals(held_out: Known, new: Known, names: Sequence[str], alpha: float, quantiles: bool) -> Beside:
    assert held_out.targets is not None
    truth = held_out.targets.reshape(len(held_out.values), -1)
    low_held, high_held = _ends(held_out, alpha, quantiles)
    low, high = _ends(new, alpha, quantiles)
    made = Beside()
    for index, name in enumerate(names):
        limit = conformal.bound(
            conformal.quantile_scores(low_held[:, index], high_held[:, index], truth[:, index]), alpha
        )
        a, b = low[:, index] - limit, high[:, index] + limit
        metrics = {f"width_{name}": float((b - a).clamp(min=0).double().mean())}
        made = made.with_(Beside({f"low_{name}": a.tolist(), f"high_{name}": b.tolist()}, metrics))
        if new.targets is not None:
            y = new.targets.reshape(len(new.values), -1)[:, index]
            made = made.with_(_coverage(f"coverage_{name}", (y >= a) & (y <= b), len(truth), alpha))
    return made


def _ends(known: Known, alpha: float, quantiles: bool) -> tuple[Tensor, Tensor]:
    """The interval before it is widened: the members' quantiles, or the prediction itself twice."""
    if not quantiles:
        flat = known.values.flatten(1)
        return flat, flat  # max(y_hat - y, y - y_hat) is the absolute residual
    assert known.votes is not None
    votes = known.votes.flatten(2).double()
    return torch.quantile(votes, alpha / 2, dim=0), torch.quantile(votes, 1 - alpha / 2, dim=0)


def _coverage(name: str, hits: Tensor, calibration: int, alpha: float) -> Beside:
    """The part of the truth that is inside, and what could be expected of it."""
    inside, samples = int(hits.sum()), len(hits)
    low, high = conformal.proportion_interval(inside, samples)
    a, b = conformal.coverage_range(calibration, samples, alpha)
    note = (
        f"stated {1 - alpha:.4g}; {inside} of {samples}, exact 95 % interval {low:.4f} to {high:.4f}; "
        f"95 % of such measurements lie in {a:.4f} to {b:.4f}"
    )
    return Beside({}, {name: inside / samples}, {name: note})
