"""Rates from squared gradients, without Adam's mean: Adagrad, Adadelta, RMSprop, Adafactor."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from kingpost.option import checked
from kingpost.train.optimise.groups import kernels
from kingpost.train.optimise.rule import OptimizerOption


@checked
class Adagrad(OptimizerOption):
    """Steps of ``lr * g / (sqrt(sum g^2) + eps)``: the sum is over all steps, so rates only fall.

    Helps with sparse features (rare words), which keep a high rate until they have been seen.
    Fails in long runs: the sum grows without end, and training stalls. Weight decay is part of the gradient.
    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011.
    """

    lr: Annotated[float, Gt(0)] = 0.01
    """Learning rate."""
    start: Annotated[float, Ge(0)] = 0.0
    """Sum of squares at the start, in units of the squared gradient."""
    eps: Annotated[float, Gt(0)] = 1e-10
    """Added to the root, in units of the gradient."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return torch.optim.Adagrad(
            self.groups(model),
            lr=self.lr,
            initial_accumulator_value=self.start,
            eps=self.eps,
            **kernels(model, fused=False),
        )


@checked
class Adadelta(OptimizerOption):
    """Steps of ``lr * g * sqrt(u + eps) / sqrt(v + eps)``: v and u are running means of squared gradients and steps.

    Helps where no rate is known: steps have the unit of the weights, and ``lr`` = 1 is the paper's.
    Fails by a slow start, since u begins at zero: the first steps have the size of ``sqrt(eps)``. Weight decay is part
    of the gradient. Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv 1212.5701.
    """

    lr: Annotated[float, Gt(0)] = 1.0
    """Factor on the step."""
    rho: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Memory of both means."""
    eps: Annotated[float, Gt(0)] = 1e-6
    """Added under both roots."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return torch.optim.Adadelta(
            self.groups(model), lr=self.lr, rho=self.rho, eps=self.eps, **kernels(model, fused=False)
        )


@checked
class RMSprop(OptimizerOption):
    """Steps of ``lr * g / (sqrt(v) + eps)``, where v is a running mean of the squared gradient.

    Helps recurrent nets and reinforcement learning, where it is customary.
    Fails at the start: v begins at zero and is not corrected, so the first steps are ``1 / sqrt(1 - memory)`` too long.
    Weight decay is part of the gradient. Source: Tieleman and Hinton, Coursera lecture 6.5, 2012.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate."""
    memory: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Memory of the mean squared gradient."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Part of the last step that is kept."""
    centred: bool = False
    """Divide by the standard deviation instead: take the squared mean gradient from v."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return torch.optim.RMSprop(
            self.groups(model),
            lr=self.lr,
            alpha=self.memory,
            momentum=self.momentum,
            centered=self.centred,
            eps=self.eps,
            **kernels(model, fused=False),
        )


@checked
class Adafactor(OptimizerOption):
    """Adam without a mean, whose v is kept as the means of rows and columns: ``v = r c^T / mean(r)``.

    The step is ``lr_t * max(1e-3, rms(w)) * u / max(1, rms(u) / clip)`` with ``u = g / sqrt(v)`` and
    ``lr_t = min(lr, 1 / sqrt(t))``. Helps when memory is short: its state is a row and a column a matrix.
    Fails to be as stable as Adam where v is far from rank one, and has no momentum. Weight decay is decoupled.
    Source: Shazeer and Stern, "Adafactor", arXiv 1804.04235.
    """

    lr: Annotated[float, Gt(0)] = 0.01
    """Learning rate, relative to the root mean square of the weights."""
    beta2_decay: Annotated[float, Gt(-1), Lt(0)] = -0.8
    """Power ``c`` of the memory ``1 - t^c``."""
    clip: Annotated[float, Ge(1)] = 1.0
    """Largest root mean square of the step before the rate."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return torch.optim.Adafactor(
            self.groups(model),
            lr=self.lr,
            beta2_decay=self.beta2_decay,
            d=self.clip,
            foreach=True,
        )
