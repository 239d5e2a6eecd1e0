"""Adam and its kin: steps of a running mean of the gradient, divided by the root of that of its square."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from kingpost.option import checked
from kingpost.train.optimise.groups import kernels
from kingpost.train.optimise.rule import OptimizerOption

Beta = Annotated[float, Ge(0), Lt(1)]


@checked
class AdamW(OptimizerOption):
    """Steps of ``lr * m / (sqrt(v) + eps)``, where m and v are running means of the gradient and its square.

    Helps nearly everywhere, above all transformers: the rate hardly depends on the scale of the loss.
    Fails where the second moment is tiny (steps become large): raise ``eps``. Needs two numbers of memory a weight.
    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101.
    """

    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Pull towards zero per step, times lr; on matrices and kernels only."""
    beta1: Beta = 0.9
    """Memory of the mean gradient."""
    beta2: Beta = 0.999
    """Memory of the mean squared gradient."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(self.groups(model), lr=self.lr, betas=betas, eps=self.eps, **kernels(model))


@checked
class Adam(OptimizerOption):
    """Steps of ``lr * m / (sqrt(v) + eps)``; weight decay is part of the gradient, ``g + weight_decay * w``.

    Helps to repeat older work; it is AdamW where nothing decays.
    Fails to decay evenly: the pull is divided by the gradient's own size, so weights with large gradients hardly decay.
    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980.
    """

    beta1: Beta = 0.9
    """Memory of the mean gradient."""
    beta2: Beta = 0.999
    """Memory of the mean squared gradient."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""
    amsgrad: bool = False
    """Divide by the largest mean square so far (Reddi et al., arXiv 1904.09237)."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return torch.optim.Adam(
            self.groups(model),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            amsgrad=self.amsgrad,
            **kernels(model),
        )


@checked
class NAdam(OptimizerOption):
    """Adam with Nesterov's look-ahead: ``lr * (mu' m + (1 - mu) g) / (sqrt(v) + eps)``, weight decay decoupled.

    ``mu_t = beta1 (1 - 0.5 * 0.96^(t * momentum_decay))`` rises to ``beta1``, and ``mu'`` is that of the next step.
    Helps where Adam is slow at the start. Fails as Adam does where the second moment is tiny: raise ``eps``.
    Source: Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop.
    """

    beta1: Beta = 0.9
    """Memory of the mean gradient."""
    beta2: Beta = 0.999
    """Memory of the mean squared gradient."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""
    momentum_decay: Annotated[float, Ge(0)] = 4e-3
    """How soon the momentum rises to ``beta1``."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return torch.optim.NAdam(
            self.groups(model),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            momentum_decay=self.momentum_decay,
            decoupled_weight_decay=True,
            **kernels(model, fused=False),
        )


@checked
class RAdam(OptimizerOption):
    """Adam that starts as momentum and divides by ``sqrt(v)`` only once its variance is bounded; decay decoupled.

    The factor is ``r_t = sqrt((rho_t - 4)(rho_t - 2) rho / ((rho - 4)(rho - 2) rho_t))`` once ``rho_t > 5``.
    Helps in place of a warm-up. Fails in very short runs with a large ``beta2``: the first steps are plain momentum
    at a rate that was meant for Adam. Source: Liu et al., arXiv 1908.03265.
    """

    beta1: Beta = 0.9
    """Memory of the mean gradient."""
    beta2: Annotated[float, Gt(0), Lt(1)] = 0.999
    """Memory of the mean squared gradient."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""

    example: ClassVar[dict[str, float]] = {"lr": 0.01}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return torch.optim.RAdam(
            self.groups(model),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            decoupled_weight_decay=True,
            **kernels(model, fused=False),
        )
