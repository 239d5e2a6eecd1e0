"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.option import checked
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule, decay
from kingpost.train.optimise.shampoo import along, outer


class SOAPRule(Rule):
    """The optimizer alone, for any loop. The first step only measures: it makes the bases, and moves nothing.

    >>> w = nn.Parameter(torch.diag(torch.tensor([3.0, 0.5])))
    >>> optimizer = SOAPRule([w], lr=0.1)
    >>> for _ in range(2):
    ...     w.grad = 2 * w.detach(); _ = optimizer.step()
    >>> w.diag().data
    tensor([2.9000, 0.4000])
    """

    def __init__(
        self,
        params: object,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        memory: float = 0.95,
        every: int = 10,
        eps: float = 1e-8,
        largest: int = 1024,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "memory": memory, "every": every, "eps": eps, "largest": largest}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})  # type: ignore[arg-type]

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        (beta1, beta2), times = group["betas"], self.counted(params)
        means, squares = self.kept(params, "mean", "square")
        for p, gradient, mean, square, time in zip(params, grads, means, squares, times, strict=True):
            axes = [axis for axis, length in enumerate(p.shape) if p.ndim > 1 and length <= group["largest"]]
            state, t = self.state[p], time - 1
            if t == 0:
                self._measure(group, state, gradient, axes)
                for axis in axes:
                    state[f"basis_{axis}"] = _eigenvectors(state[f"sums_{axis}"])
                continue
            turned = _turned(state, gradient, axes)
            mean.lerp_(gradient, 1 - beta1)
            square.lerp_(turned.square(), 1 - beta2)
            step = _turned(state, mean, axes) / square.sqrt().add_(group["eps"])
            for axis in axes:
                step = along(state[f"basis_{axis}"], step, axis)
            p.add_(step, alpha=-group["lr"] * (1 - beta2**t) ** 0.5 / (1 - beta1**t))
            decay([p], group)
            self._measure(group, state, gradient, axes)
            if t % group["every"] == 0:
                for axis in axes:
                    _refresh(state, axis)

    @staticmethod
    def _measure(group: Group, state: dict[str, Any], gradient: Tensor, axes: list[int]) -> None:
        for axis in axes:
            new = outer(gradient, axis)
            state.setdefault(f"sums_{axis}", torch.zeros_like(new)).lerp_(new, 1 - group["memory"])


def _turned(state: dict[str, Any], x: Tensor, axes: list[int]) -> Tensor:
    """A tensor in the bases of its axes."""
    for axis in axes:
        x = along(state[f"basis_{axis}"].T, x, axis)
    return x


def _eigenvectors(matrix: Tensor) -> Tensor:
    """Columns, the largest eigenvalue first."""
    vectors: Tensor
    _, vectors = torch.linalg.eigh(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
    return vectors.flip(1).to(matrix.dtype).contiguous()


def _refresh(state: dict[str, Any], axis: int) -> None:
    """One step of the power iteration from the old basis; the mean squares follow the order of its vectors."""
    sums, basis = state[f"sums_{axis}"], state[f"basis_{axis}"]
    product = sums @ basis
    order = (basis * product).sum(0).argsort(descending=True)
    state["square"] = state["square"].index_select(axis, order)
    wide = product.index_select(1, order).to(torch.promote_types(sums.dtype, torch.float32))
    state[f"basis_{axis}"] = torch.linalg.qr(wide)[0].to(sums.dtype).contiguous()


@checked
class SOAP(OptimizerOption):
    """Adam on the gradient turned by ``Q_i^T`` in each axis, and its step turned back: ``Q_i`` are Shampoo's bases.

    ``Q_i`` holds the eigenvectors of a running mean of ``G_i G_i^T``, refreshed by one power iteration each ``every``
    steps; axes longer than ``largest``, and vectors, are not turned. The first step only measures.
    Where a matrix's gradients have low rank, the basis outside of it is arbitrary, and follows the rounding.
    Helps transformers to need fewer steps than AdamW. Fails to be quick where axes are long: four products with square
    matrices a step for each matrix, and their memory.
    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv 2409.11321.
    """

    lr: Annotated[float, Gt(0)] = 3e-3
    """Learning rate."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Pull towards zero per step, times lr; on matrices and kernels only."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Memory of the mean gradient."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Memory of the mean squared gradient in the basis."""
    memory: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Memory of the statistics that the bases come from."""
    every: Annotated[int, Ge(1)] = 10
    """Steps between two refreshments of the bases."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""
    largest: Annotated[int, Ge(1)] = 1024
    """Longest axis that is turned."""

    example: ClassVar[dict[str, Any]] = {"every": 2}

    @property
    def exceptions(self) -> Mapping[str, str]:
        """What follows from bases of directions that no gradient has."""
        reason = (
            "directions without a gradient have no eigenvectors of their own: rounding turns those, and Adam's step"
        )
        return {"accumulation": reason, "two processes": reason}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return SOAPRule(
            self.groups(model),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            memory=self.memory,
            every=self.every,
            eps=self.eps,
            largest=self.largest,
        )
