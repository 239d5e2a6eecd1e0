"""Lion: steps of the sign of a momentum."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.option import checked
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule, decay


class LionRule(Rule):
    """The optimizer alone, for any loop.

    >>> w = nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = LionRule([w], lr=0.1)
    >>> w.square().sum().backward(); _ = optimizer.step(); w.data
    tensor([ 0.9000, -1.9000])
    """

    def __init__(
        self, params: object, lr: float, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay})  # type: ignore[arg-type]

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        (means,) = self.kept(params, "mean")
        decay(params, group)
        steps = torch._foreach_lerp(means, grads, 1 - group["beta1"])
        torch._foreach_sign_(steps)
        torch._foreach_add_(params, steps, alpha=-group["lr"])
        torch._foreach_lerp_(means, grads, 1 - group["beta2"])


@checked
class Lion(OptimizerOption):
    """Steps of ``lr * sign(beta1 * m + (1 - beta1) * g)``, then ``m = beta2 * m + (1 - beta2) * g``.

    Every weight moves by lr whatever its gradient: use a third to a tenth of AdamW's rate, and as much more decay.
    Helps with large batches, at half of Adam's memory.
    Fails with small batches, where the sign is mostly noise, and wherever some gradients should be small.
    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675.
    """

    lr: Annotated[float, Gt(0)] = 1e-4
    """Learning rate: how far each weight moves in a step."""
    weight_decay: Annotated[float, Ge(0)] = 0.1
    """Pull towards zero per step, times lr; on matrices and kernels only."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Weight of the momentum in the step."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Memory of the momentum."""

    example: ClassVar[dict[str, object]] = {"lr": 0.003}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return LionRule(self.groups(model), lr=self.lr, beta1=self.beta1, beta2=self.beta2)
