"""AdaHessian and Sophia: steps divided by an estimate of the diagonal of the curvature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.train.optimise.curvature import CONFLICTS, check_drawable, with_estimate
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule, decay

TOUCHES: frozenset[Slot] = frozenset({"optimizer", "gradient", "update"})


class AdaHessianRule(Rule):
    """The optimizer alone: before a step, set ``curvature`` to an estimate of the Hessian's diagonal by parameter.

    >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = AdaHessianRule([w], lr=1.0)
    >>> (w * w * torch.tensor([1.0, 50.0])).sum().backward()
    >>> optimizer.curvature = {w: torch.tensor([2.0, 100.0])}
    >>> _ = optimizer.step(); w.data  # a Newton step
    tensor([0., 0.])
    """

    def __init__(
        self,
        params: object,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        power: float = 1.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        average_kernels: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "power": power, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "average_kernels": average_kernels})  # type: ignore[arg-type]
        self.curvature: Mapping[Tensor, Tensor] = {}

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        times, (beta1, beta2) = self.counted(params), group["betas"]
        means, squares = self.kept(params, "mean", "curvature")
        decay(params, group)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        for p, mean, square, t in zip(params, means, squares, times, strict=True):
            if p in self.curvature:
                diagonal = self.curvature[p]
                if group["average_kernels"] and p.ndim > 2:
                    diagonal = diagonal.abs().mean(tuple(range(2, p.ndim)), keepdim=True).expand_as(p)
                square.mul_(beta2).addcmul_(diagonal, diagonal, value=1 - beta2)
            bottom = (square / (1 - beta2**t)).pow_(group["power"] / 2).add_(group["eps"])
            p.addcdiv_(mean, bottom, value=-group["lr"] / (1 - beta1**t))


class SophiaRule(Rule):
    """The optimizer alone: before a step, set ``curvature`` to an estimate of the diagonal by parameter, now and then.

    >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = SophiaRule([w], lr=1.0, betas=(0.0, 0.0), gamma=1.0)
    >>> (w * w * torch.tensor([0.5, 50.0])).sum().backward()
    >>> optimizer.curvature = {w: torch.tensor([1.0, 100.0])}
    >>> _ = optimizer.step(); w.data
    tensor([0., 0.])
    """

    def __init__(
        self,
        params: object,
        lr: float,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)  # type: ignore[arg-type]
        self.curvature: Mapping[Tensor, Tensor] = {}

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        beta1, beta2 = group["betas"]
        means, diagonals = self.kept(params, "mean", "curvature")
        decay(params, group)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        for p, mean, diagonal in zip(params, means, diagonals, strict=True):
            if p in self.curvature:
                diagonal.lerp_(self.curvature[p], 1 - beta2)
            step = mean / (group["gamma"] * diagonal).clamp(min=group["eps"])
            p.add_(step.clamp(-1, 1), alpha=-group["lr"])


@checked
class AdaHessian(OptimizerOption):
    """Adam with the Hessian's diagonal in place of the gradient: ``lr * m / (sqrt(mean of D^2)^power + eps)``.

    D is Hutchinson's estimate ``v * H v`` over random signs v, in a second pass each ``every`` steps; in kernels its
    size is averaged over the area. Helps where curvature differs much between weights, at rates near 0.1.
    Fails to be quick: a pass with a second derivative costs about two gradients; and where layers have none of use
    (ReLU nets near a linear loss). Weight decay is decoupled.
    Source: Yao et al., "AdaHessian", arXiv 2006.00719.
    """

    lr: Annotated[float, Gt(0)] = 0.1
    """Learning rate; 1 is a Newton step where the estimate is exact."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Memory of the mean gradient."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Memory of the mean squared curvature."""
    power: Annotated[float, Gt(0), Le(1)] = 1.0
    """Power of the curvature that divides."""
    eps: Annotated[float, Gt(0)] = 1e-4
    """Added to the curvature."""
    average_kernels: bool = True
    """Average the size of the curvature over the area of each kernel."""
    samples: Annotated[int, Ge(1)] = 1
    """Sets of random signs an estimate."""
    every: Annotated[int, Ge(1)] = 1
    """Steps between two estimates."""

    touches: ClassVar[frozenset[Slot]] = TOUCHES
    conflicts: ClassVar[dict[str, str]] = CONFLICTS
    example: ClassVar[dict[str, Any]] = {"lr": 0.02, "every": 2, "samples": 2}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return AdaHessianRule(
            self.groups(model),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            power=self.power,
            eps=self.eps,
            average_kernels=self.average_kernels,
        )

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer, and with the estimate of the curvature."""
        return with_estimate(super().mount(assembly), drawn=False, samples=self.samples, every=self.every)


@checked
class Sophia(OptimizerOption):
    """Steps of ``lr * clip(m / max(gamma * h, eps), 1)``, where h is a running mean of the curvature's diagonal.

    ``gauss-newton-bartlett``: h counts ``items * g^2`` of the mean gradient g for targets drawn from the model;
    ``hutchinson``: it counts ``v * H v`` over random signs v. Where the curvature is small or negative, steps have the
    size lr, as Lion's. Helps language models, where it was made; the rate is that of Lion, ``gamma`` such that some
    tenths of the steps are not clipped. Fails where curvature changes faster than ``every`` steps tell.
    Source: Liu et al., "Sophia", arXiv 2305.14342.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate: the longest step of a weight."""
    weight_decay: Annotated[float, Ge(0)] = 0.1
    """Pull towards zero per step, times lr; on matrices and kernels only."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.96
    """Memory of the mean gradient."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Memory of the curvature, per estimate."""
    gamma: Annotated[float, Gt(0)] = 0.05
    """Factor on the curvature."""
    eps: Annotated[float, Gt(0)] = 1e-12
    """Least divisor."""
    estimator: Literal["gauss-newton-bartlett", "hutchinson"] = "gauss-newton-bartlett"
    """Where the curvature comes from."""
    every: Annotated[int, Ge(1)] = 10
    """Steps between two estimates."""

    touches: ClassVar[frozenset[Slot]] = TOUCHES
    conflicts: ClassVar[dict[str, str]] = CONFLICTS
    example: ClassVar[dict[str, Any]] = {"every": 2, "lr": 0.003}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        betas = (self.beta1, self.beta2)
        return SophiaRule(self.groups(model), lr=self.lr, betas=betas, gamma=self.gamma, eps=self.eps)

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer, and with the estimate of the curvature."""
        drawn = self.estimator == "gauss-newton-bartlett"
        if drawn:
            check_drawable(assembly.setting.task, "estimator", "use estimator=hutchinson")
        return with_estimate(super().mount(assembly), drawn=drawn, samples=1, every=self.every)
