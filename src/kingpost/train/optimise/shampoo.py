"""Shampoo: a preconditioner for each axis of a tensor."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from kingpost.option import checked
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule, decay


def outer(gradient: Tensor, axis: int) -> Tensor:
    """``G G^T`` of a gradient unfolded along one axis, ``(n, n)``."""
    flat = gradient.movedim(axis, 0).reshape(gradient.shape[axis], -1)
    return flat @ flat.T


def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """The product of a matrix ``(m, n)`` with one axis of a tensor, of length ``n``."""
    product: Tensor = torch.tensordot(matrix, x, ([1], [axis]))
    return product.movedim(0, axis)


def inverse_root(matrix: Tensor, power: float, eps: float) -> Tensor:
    """``M^(-1 / power)`` of a symmetric matrix; eigenvalues below ``eps`` count as ``eps``.

    >>> inverse_root(torch.diag(torch.tensor([16.0, 81.0])), power=4, eps=1e-6).diag()
    tensor([0.5000, 0.3333])
    """
    values, vectors = torch.linalg.eigh(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
    root: Tensor = (vectors * values.clamp(min=eps) ** (-1 / power)) @ vectors.T
    return root.to(matrix.dtype).contiguous()


class ShampooRule(Rule):
    """The optimizer alone, for any loop.

    >>> w = nn.Parameter(torch.diag(torch.tensor([3.0, 0.5])))
    >>> optimizer = ShampooRule([w], lr=0.1, eps=1e-12)
    >>> w.square().sum().backward(); _ = optimizer.step(); w.diag().data  # both singular values of the step are one
    tensor([2.9000, 0.4000])
    """

    def __init__(
        self,
        params: object,
        lr: float,
        momentum: float = 0.0,
        beta: float = 1.0,
        every: int = 1,
        eps: float = 1e-6,
        largest: int = 1024,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "beta": beta, "every": every, "eps": eps, "largest": largest}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})  # type: ignore[arg-type]

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        times = self.counted(params)
        steps = [self._conditioned(group, p, g, t) for p, g, t in zip(params, grads, times, strict=True)]
        decay(params, group)
        if group["momentum"]:
            (moments,) = self.kept(params, "momentum")
            torch._foreach_mul_(moments, group["momentum"])
            torch._foreach_add_(moments, steps)
            steps = moments
        torch._foreach_add_(params, steps, alpha=-group["lr"])

    def _conditioned(self, group: Group, p: Tensor, gradient: Tensor, time: int) -> Tensor:
        state, beta, power, x = self.state[p], group["beta"], 2 * max(1, p.ndim), gradient
        for axis, length in enumerate(p.shape):
            key, root, whole = f"sums_{axis}", f"roots_{axis}", length <= group["largest"]
            if key not in state:
                start = p.new_full((length,), group["eps"])
                state[key] = torch.diag(start) if whole else start
            new = outer(gradient, axis) if whole else gradient.movedim(axis, 0).reshape(length, -1).square().sum(1)
            state[key].mul_(beta).add_(new, alpha=1.0 if beta == 1 else 1 - beta)
            if (time - 1) % group["every"] == 0:
                sums = state[key]
                state[root] = inverse_root(sums, power, group["eps"]) if whole else sums ** (-1 / power)
            shape = [-1 if other == axis else 1 for other in range(p.ndim)]
            x = along(state[root], x, axis) if whole else x * state[root].view(shape)
        return x


@checked
class Shampoo(OptimizerOption):
    """Each axis i of a gradient is multiplied by ``L_i^(-1 / 2k)``: ``L_i`` sums ``G_i G_i^T``, k is the order.

    For a matrix the step is ``lr * L^(-1/4) G R^(-1/4)``; an axis longer than ``largest`` keeps the diagonal only.
    Helps where the scale of gradients differs between directions that are no single weights. Fails to be quick where
    axes are long: roots cost the cube of an axis each ``every`` steps; and with sums over all steps rates only fall
    (``beta`` below 1 forgets). Weight decay is decoupled.
    Source: Gupta, Koren and Singer, "Shampoo", arXiv 1802.09568.
    """

    lr: Annotated[float, Gt(0)] = 0.1
    """Learning rate."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Part of the last step that is kept."""
    beta: Annotated[float, Gt(0), Le(1)] = 1.0
    """Memory of the statistics; 1 sums them all, as in the paper."""
    every: Annotated[int, Ge(1)] = 1
    """Steps between two computations of the roots."""
    eps: Annotated[float, Gt(0)] = 1e-6
    """Start of the statistics, and least eigenvalue, in units of the squared gradient."""
    largest: Annotated[int, Ge(1)] = 1024
    """Longest axis that has a whole matrix."""

    example: ClassVar[dict[str, Any]] = {"lr": 0.02, "every": 2}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return ShampooRule(
            self.groups(model),
            lr=self.lr,
            momentum=self.momentum,
            beta=self.beta,
            every=self.every,
            eps=self.eps,
            largest=self.largest,
        )
