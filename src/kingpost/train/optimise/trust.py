"""LARS and LAMB: each tensor's step is made proportional to its norm, for very large batches."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.option import checked
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule


class LARSRule(Rule):
    """The optimizer alone, for any loop. Vectors (biases, norms) move as under SGD, and do not decay.

    >>> w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = LARSRule([w], lr=1.0, trust=0.1, momentum=0.0)
    >>> w.sum().backward(); _ = optimizer.step(); w.data  # 0.1 * |w| = 0.5 along the gradient
    tensor([[2.6464, 3.6464]])
    """

    def __init__(
        self,
        params: object,
        lr: float,
        momentum: float = 0.9,
        trust: float = 1e-3,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults)  # type: ignore[arg-type]

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        steps = [self._trusted(group, p, g) if p.ndim >= 2 else g for p, g in zip(params, grads, strict=True)]
        if group["momentum"]:
            (moments,) = self.kept(params, "momentum")
            torch._foreach_mul_(moments, group["momentum"])
            torch._foreach_add_(moments, steps)
            steps = torch._foreach_add(steps, moments, alpha=group["momentum"]) if group["nesterov"] else moments  # type: ignore[assignment]
        torch._foreach_add_(params, steps, alpha=-group["lr"])

    @staticmethod
    def _trusted(group: Group, p: Tensor, g: Tensor) -> Tensor:
        length, bottom = p.norm(), g.norm() + group["weight_decay"] * p.norm()
        ratio = torch.where((length > 0) & (bottom > 0), group["trust"] * length / bottom, torch.ones_like(length))
        return ratio * g.add(p, alpha=group["weight_decay"])


class LAMBRule(Rule):
    """The optimizer alone, for any loop.

    >>> w = nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = LAMBRule([w], lr=0.1)
    >>> w.sum().backward(); _ = optimizer.step(); w.data  # 0.1 * |w| = 0.5 along the gradient's signs
    tensor([2.6464, 3.6464])
    """

    def __init__(
        self,
        params: object,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        most: float = 10.0,
        correct: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "most": most}
        super().__init__(params, {**defaults, "correct": correct})  # type: ignore[arg-type]

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        times, (beta1, beta2) = self.counted(params), group["betas"]
        means, squares = self.kept(params, "mean", "square")
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        bottoms = torch._foreach_sqrt(squares)
        if group["correct"]:
            torch._foreach_div_(bottoms, [(1 - beta2**t) ** 0.5 for t in times])
        torch._foreach_add_(bottoms, group["eps"])
        steps = torch._foreach_div(means, bottoms)
        if group["correct"]:
            torch._foreach_div_(steps, [1 - beta1**t for t in times])
        if group["weight_decay"]:
            torch._foreach_add_(steps, params, alpha=group["weight_decay"])
        for p, step in zip(params, steps, strict=True):
            length, own = p.norm().clamp(max=group["most"]), step.norm()
            ratio = torch.where((length > 0) & (own > 0), length / own, torch.ones_like(own))
            p.sub_(step * (group["lr"] * ratio))


@checked
class LARS(OptimizerOption):
    """SGD whose step in each tensor has the length ``trust * |w| / (|g| + weight_decay |w|)`` times ``g + decay w``.

    ``v = momentum * v + ratio * (g + weight_decay * w)``, then ``w = w - lr * v``. Vectors take plain momentum steps.
    Helps convolutional nets in batches of thousands. Fails to pay in usual batches, where SGD does as well, and needs a
    warm-up. Source: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888.
    """

    lr: Annotated[float, Gt(0)] = 1.0
    """Learning rate; for matrices and kernels ``lr * trust`` is the relative step."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """Pull towards zero, on matrices and kernels only."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Part of the last step that is kept."""
    trust: Annotated[float, Gt(0)] = 1e-3
    """Length of a step relative to the tensor's."""
    nesterov: bool = False
    """Take the gradient's effect as if the momentum step were already made."""

    example: ClassVar[dict[str, object]] = {"trust": 0.02, "lr": 0.5}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return LARSRule(
            self.groups(model), lr=self.lr, momentum=self.momentum, trust=self.trust, nesterov=self.nesterov
        )


@checked
class LAMB(OptimizerOption):
    """Adam whose step ``r + weight_decay * w`` in each tensor is given the length ``lr * min(|w|, most)``.

    Helps transformers in batches of thousands. Fails to pay in usual batches, where AdamW does as well; a tensor that
    starts at zero takes Adam's own step. Source: You et al., arXiv 1904.00962.
    """

    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Pull towards zero, on matrices and kernels only; it is part of the step whose length is set."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Memory of the mean gradient."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Memory of the mean squared gradient."""
    eps: Annotated[float, Gt(0)] = 1e-6
    """Added to the root, in units of the gradient."""
    most: Annotated[float, Gt(0)] = 10.0
    """Largest norm of a tensor that counts."""

    example: ClassVar[dict[str, object]] = {"lr": 0.02}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        betas = (self.beta1, self.beta2)
        return LAMBRule(self.groups(model), lr=self.lr, betas=betas, eps=self.eps, most=self.most)
