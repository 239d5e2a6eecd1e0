"""Stochastic gradient descent, with momentum and Nesterov's look-ahead."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.optimise.groups import can_fuse, decay_groups


@checked
class SGD(Technique):
    """Gradient descent: ``v = momentum * v + g``, then ``w = w - lr * v``; Nesterov: ``w - lr * (g + momentum * v)``.

    Fails when the curvature differs much between directions: the rate that is safe for the steep ones is slow
    for the flat ones. Source: Sutskever et al., "On the importance of initialization and momentum", 2013.
    """

    lr: Annotated[float, Gt(0)] = 0.1
    """Learning rate."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Part of the last step that is kept."""
    nesterov: bool = False
    """Take the gradient's effect as if the momentum step were already made."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Pull towards zero, on matrices and kernels only."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"optimizer"})

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise RecipeError(
                "Nesterov needs momentum, got 0", path="momentum", mend="set momentum=0.9 or nesterov=false"
            )

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer."""
        return assembly.with_(optimizer=self._make)

    def _make(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            decay_groups(model, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=can_fuse(model),
        )
