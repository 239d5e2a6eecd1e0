"""Stochastic gradient descent, with momentum and Nesterov's look-ahead."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.train.optimise.groups import kernels
from kingpost.train.optimise.rule import OptimizerOption


@checked
class SGD(OptimizerOption):
    """Gradient descent: ``v = momentum * v + g``, then ``w = w - lr * v``; Nesterov: ``w - lr * (g + momentum * v)``.

    Helps convolutional nets, where with a tuned rate and schedule it often generalises as well as any. Its state is
    one number a weight, or none without momentum.
    Fails when the curvature differs much between directions: the rate that is safe for the steep ones is slow
    for the flat ones. Source: Sutskever et al., "On the importance of initialization and momentum", 2013.
    """

    lr: Annotated[float, Gt(0)] = 0.1
    """Learning rate."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Part of the last step that is kept."""
    nesterov: bool = False
    """Take the gradient's effect as if the momentum step were already made."""

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise RecipeError(
                "Nesterov needs momentum, got 0", path="momentum", mend="set momentum=0.9 or nesterov=false"
            )

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return torch.optim.SGD(
            self.groups(model), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, **kernels(model)
        )
