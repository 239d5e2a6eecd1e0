"""Adan: Nesterov momentum by a running mean of the gradient's change."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.option import checked
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule


class AdanRule(Rule):
    """The optimizer alone, for any loop.

    >>> w = nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = AdanRule([w], lr=0.1)
    >>> w.square().sum().backward(); _ = optimizer.step(); w.data
    tensor([0.9000])
    """

    def __init__(
        self,
        params: object,
        lr: float,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})  # type: ignore[arg-type]

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        times, (beta1, beta2, beta3) = self.counted(params), group["betas"]
        means, changes, squares, last = self.kept(params, "mean", "change", "square", "last")
        for old, new, t in zip(last, grads, times, strict=True):
            if t == 1:  # there is no change yet
                old.copy_(new)
        change = torch._foreach_sub(grads, last)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_lerp_(changes, change, 1 - beta2)
        ahead = torch._foreach_add(grads, change, alpha=beta2)
        torch._foreach_mul_(squares, beta3)
        torch._foreach_addcmul_(squares, ahead, ahead, 1 - beta3)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta3**t) ** 0.5 for t in times])
        torch._foreach_add_(roots, group["eps"])
        lr = group["lr"]
        torch._foreach_addcdiv_(params, means, roots, [-lr / (1 - beta1**t) for t in times])
        torch._foreach_addcdiv_(params, changes, roots, [-lr * beta2 / (1 - beta2**t) for t in times])
        if group["weight_decay"]:
            torch._foreach_div_(params, 1 + lr * group["weight_decay"])
        torch._foreach_copy_(last, grads)


@checked
class Adan(OptimizerOption):
    """Steps of ``lr * (m + beta2 * v) / (sqrt(n) + eps)``: means of g, of its change, and of ``(g + beta2 dg)^2``.

    Weight decay is proximal: ``w / (1 + lr * weight_decay)`` after the step. Helps vision transformers and
    convolutional nets at rates above AdamW's. Fails to pay where memory is short: four numbers a weight; and with
    small batches the change of the gradient is mostly noise.
    Source: Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm", arXiv 2208.06677.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate."""
    weight_decay: Annotated[float, Ge(0)] = 0.02
    """Pull towards zero per step, times lr; on matrices and kernels only."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.98
    """Memory of the mean gradient."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.92
    """Memory of the mean change, and its weight."""
    beta3: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Memory of the mean square."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return AdanRule(self.groups(model), lr=self.lr, betas=(self.beta1, self.beta2, self.beta3), eps=self.eps)
