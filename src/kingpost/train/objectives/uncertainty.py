"""Weights of several losses, learned as the uncertainty of each.

Legend of shapes: ``B`` samples, ``K`` heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Loss, Objective, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.multi_task import MultiTask

NAME = "head_log_variances"


def uncertain(losses: Tensor, log_variances: Tensor, are_values: Sequence[bool], items: int) -> Tensor:
    """``sum_k a_k exp(-s_k) L_k + items * s_k / 2``, with ``a_k`` = 1/2 for values and 1 for classes; scalar.

    Args:
        losses: of each head, summed over samples, ``(K,)``: squared error or cross-entropy.
        log_variances: ``s``, the logarithm of each head's variance (of classes: of its temperature), ``(K,)``.
        are_values: whether a head predicts a value.
        items: number of samples.

    >>> float(uncertain(torch.tensor([8.0, 3.0]), torch.zeros(2), [True, False], items=4))
    7.0
    """
    factor = torch.tensor([0.5 if value else 1.0 for value in are_values], dtype=losses.dtype, device=losses.device)
    return (factor * (-log_variances).exp() * losses).sum() + items * log_variances.sum() / 2


def with_uncertainty(objective: Objective, task: MultiTask, log_variances: Tensor) -> Objective:
    """An objective whose heads are weighted by their learned uncertainty."""
    are_values = [classes == 0 for _, classes in task.heads]

    def weigh(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        losses = task.losses(loss.outputs, batch.targets)
        loss.data = uncertain(losses, log_variances.to(losses.dtype), are_values, loss.items)
        return loss

    return weigh


@checked
class UncertaintyWeights(Technique):
    """Weigh heads by learned variances: ``sum_k exp(-s_k) L_k + s_k / 2`` (half of the first for values).

    Each ``s_k`` is a parameter of the model, ``head_log_variances``, that the optimizer moves. The training loss can
    become negative; validation losses are those of the task, unweighted. Factors in ``task.weights`` only shift ``s``.
    Fails in short runs (variances move as slowly as weights do) and favours heads that are easy.
    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", arXiv 1705.07115.
    """

    touches: ClassVar[frozenset[Slot]] = frozenset({"model", "objective"})
    tasks: ClassVar[tuple[str, ...]] = ("multi-task",)
    conflicts: ClassVar[dict[str, Any]] = {"gradnorm": "both weigh the heads"}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model also holds the variances, and whose objective uses them."""
        task, model = assembly.setting.task, assembly.model
        assert isinstance(task, MultiTask)
        if NAME in dict(model.named_parameters(recurse=False)):
            raise RecipeError(f"the model already has a parameter '{NAME}'", mend="give it another name")
        log_variances = nn.Parameter(torch.zeros(len(task.heads)))
        model.register_parameter(NAME, log_variances)
        return assembly.with_(objective=with_uncertainty(assembly.objective, task, log_variances))
