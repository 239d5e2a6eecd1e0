"""GradNorm: weights of several losses that keep the heads' gradients equally long.

Legend of shapes: ``K`` heads, ``P`` parameter tensors.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any, ClassVar

import torch
import torch.distributed as dist
from annotated_types import Ge, Gt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import clear_gradients
from kingpost.train.multi_task import MultiTask
from kingpost.train.regularise.sam import frozen_statistics


class Balance:
    """The weights of the heads, and the losses that they started from.

    Args:
        heads: number of them, ``K``.
        alpha: strength of the pull towards equal training speed.
        lr: step of the weights, which always add up to ``K``.

    >>> balance = Balance(heads=2, alpha=0.0, lr=0.1)
    >>> balance.move(lengths=torch.tensor([4.0, 1.0]), losses=torch.tensor([2.0, 2.0]))
    >>> [round(w, 3) for w in balance.weights.tolist()]
    [0.894, 1.106]
    """

    def __init__(self, heads: int, alpha: float, lr: float) -> None:
        self.alpha, self.lr = alpha, lr
        self.weights = torch.ones(heads, dtype=torch.float64)
        self.start = torch.zeros(0, dtype=torch.float64)

    def move(self, lengths: Tensor, losses: Tensor) -> None:
        """One step of gradient descent on ``sum_k |w_k G_k - mean(w G) r_k^alpha|``, then the sum is set to ``K``.

        The target is taken as constant. A weight stays at 1 % of the mean or above: at 0 a head would be lost.
        The slope is divided by ``mean(w G)``, so that ``lr`` does not depend on the scale of the gradients.

        Args:
            lengths: ``G``, of each head's unweighted gradient over the shared parameters, ``(K,)``.
            losses: mean loss of each head, ``(K,)``; ``r`` is their ratio to those of the first step, by its mean.
        """
        lengths, losses = lengths.double(), losses.double()
        self.weights = self.weights.to(lengths.device)
        if not self.start.numel():
            self.start = losses.clone()
        ratio = losses / self.start.to(losses.device).clamp(min=1e-12)
        speed = (ratio / ratio.mean().clamp(min=1e-12)) ** self.alpha
        scaled = self.weights * lengths
        mean = scaled.mean().clamp(min=1e-12)
        slope = (scaled - mean * speed).sign() * lengths / mean
        moved = (self.weights - self.lr * slope).clamp(min=0.01)
        moved = moved * (len(moved) / moved.sum())
        self.weights = moved.where(moved.isfinite().all(), self.weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and first losses."""
        return {"weights": self.weights, "start": self.start}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from these."""
        self.weights, self.start = state["weights"].clone(), state["start"].clone()


def balanced(gradient: Gradient, balance: Balance, task: MultiTask) -> Gradient:
    """A gradient that is the weighted sum of the heads' own; calls ``gradient`` once for each head.

    For one head, the labels of all others are taken as missing; each has an equal share of what does not depend on the
    data (penalties). Parameters are shared if the gradient of every head reaches them.
    """
    heads = len(task.heads)

    def balance_heads(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        parameters = [p for p in model.parameters() if p.requires_grad]
        found: list[list[Tensor]] = []
        losses: list[Loss] = []
        for head in range(heads):
            own = batch.with_(targets=_only(batch.targets, head))
            with frozen_statistics(model) if head else nullcontext():  # running statistics count the batch once
                losses.append(gradient(model, _with_share_of_penalty(objective, heads), own, step))
            found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
            clear_gradients(model)
        norms_kp = torch.stack([torch.stack([g.norm() for g in grads]) for grads in found])
        shared_p = (norms_kp > 0).all(0)
        weights = balance.weights.to(norms_kp.device)
        for p, *grads in zip(parameters, *found, strict=True):
            p.grad = sum((w.to(g.dtype) * g for w, g in zip(weights, grads, strict=True)), torch.zeros_like(p))
        sums = torch.stack([loss.data for loss in losses]).double()
        for (name, _), weight in zip(task.heads, weights, strict=True):
            step.log[f"weight_{name}"] = weight
        finite = all(loss.finite for loss in losses)
        if finite:
            balance.move((norms_kp.double() * shared_p).norm(dim=1), _total(sums, step) / step.items)
        return Loss(sums.sum(), losses[0].items, losses[0].outputs, heads * losses[0].penalty, finite)

    return balance_heads


def _with_share_of_penalty(objective: Objective, heads: int) -> Objective:
    """The weights of the heads add up to their number, so equal shares add up to the penalty."""

    def share(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        loss.penalty = loss.penalty / heads
        return loss

    return share


def _only(targets: Tensor, head: int) -> Tensor:
    """The targets with the labels of all other heads missing."""
    others = torch.arange(targets.shape[1], device=targets.device) != head
    return targets.masked_fill(others, float("nan"))


def _total(sums: Tensor, step: Step) -> Tensor:
    """Over all processes that share the batch."""
    sums = sums.clone()
    if step.ranks > 1 and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


@checked
class GradNorm(Technique):
    """Move the heads' weights so that the gradients of all heads are equally long, and slow heads longer.

    ``w_k <- w_k - lr d/dw_k sum_k |w_k G_k - mean(w G) r_k^alpha|``, where ``r_k`` is how little the loss of head ``k``
    has fallen. Costs one gradient for each head. Here ``G`` is over all shared parameters, in the paper over the last
    shared layer, which is cheaper; and ``lr`` is relative to the mean length. The weights are in steps.csv.
    Fails where the heads share nothing, and where a loss is near 0 from the start.
    Source: Chen et al., "GradNorm", arXiv 1711.02257.
    """

    alpha: Annotated[float, Ge(0)] = 1.5
    """Strength of the pull towards equal training speed; 0 makes the gradients equally long."""
    lr: Annotated[float, Gt(0)] = 0.01
    """Step of the weights."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient", "state"})
    after: ClassVar[tuple[str, ...]] = ("accumulate", "fp16", "sam")
    tasks: ClassVar[tuple[str, ...]] = ("multi-task",)
    example: ClassVar[dict[str, Any]] = {"lr": 0.05}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the balanced gradient."""
        task = assembly.setting.task
        assert isinstance(task, MultiTask)
        if len(task.heads) < 2:
            raise RecipeError("there is one head only, so there is nothing to balance", mend="remove it")
        balance = Balance(len(task.heads), self.alpha, self.lr)
        return assembly.with_(gradient=balanced(assembly.gradient, balance, task)).with_state(self.name, balance)
