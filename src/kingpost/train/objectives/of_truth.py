"""Losses that are a function of the probability of the true class.

Legend of shapes: ``B`` samples, ``...`` positions, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kingpost.assembly import Batch, Loss, Objective
from kingpost.errors import RecipeError
from kingpost.source import DataFacts
from kingpost.task import at_least_float32

IGNORED = -100
CLASSES = ("classification", "language-modelling", "sequence-to-sequence")  # tasks of one class of several

Term = Callable[[Tensor], Tensor]


def of_truth(outputs: Tensor, targets: Tensor, term: Term, weights: Tensor | None = None) -> Tensor:
    """``sum_i w_y term(log p_y)`` over samples and positions, ``p = softmax(outputs)``; scalar.

    Args:
        outputs: ``(B, ..., C)`` raw scores.
        targets: classes ``(B, ...)``, where -100 is left out; or shares of classes ``(B, ..., C)``, with which their
            terms are weighted.
        term: from log probabilities to losses, number by number.
        weights: of classes, ``(C,)``; all 1 by default.

    >>> of_truth(torch.zeros(3, 2), torch.tensor([0, 1, -100]), lambda log_p: 1 - log_p.exp())
    tensor(1.)
    """
    log_p = at_least_float32(outputs).log_softmax(-1)
    if targets.is_floating_point():
        shares = targets if weights is None else targets * weights.to(targets)
        return (shares * term(log_p)).sum()
    there = targets != IGNORED
    safe = targets.where(there, 0)
    losses = term(log_p.gather(-1, safe[..., None]).squeeze(-1))
    if weights is not None:
        losses = losses * weights.to(losses)[safe]
    return losses.where(there, 0).sum()


def replaced(objective: Objective, data: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """An objective whose data loss is ``data(outputs, targets)``, summed over items."""

    def measure(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        loss.data = data(loss.outputs, batch.targets)
        return loss

    return measure


def added(objective: Objective, data: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """An objective with ``data(outputs, targets)``, summed over items, added to its data loss."""

    def measure(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        loss.data = loss.data + data(loss.outputs, batch.targets)
        return loss

    return measure


def balanced_weights(data: DataFacts, power: float = 1.0) -> Tensor:
    """A weight for each class, ``n_c ** -power``, scaled so that the mean over the training part is 1; ``(C,)``.

    Raises:
        RecipeError: the training part's classes were not counted, or a class has no sample there.
    """
    counts = data.class_counts
    if not counts:
        raise RecipeError(
            "the data does not say how many training samples each class has",
            mend="use data that is held in memory, or give the weights yourself",
        )
    if empty := [name for name, count in zip(data.classes, counts, strict=True) if not count]:
        raise RecipeError(f"the training part has no sample of class '{empty[0]}'", mend="give the weights yourself")
    weights = [count**-power for count in counts]
    scale = sum(counts) / sum(weight * count for weight, count in zip(weights, counts, strict=True))
    return torch.tensor([weight * scale for weight in weights])
