"""The L1 penalty, alone and together with L2 (the elastic net)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.l2 import half_squared_norm
from kingpost.train.regularise.weights import LAYERS, check_some, penalised, weights


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """``sum |w|`` over all tensors together, scalar; its gradient is the sign of ``w``, and 0 at 0.

    >>> l1_norm([torch.tensor([3.0, -4.0])])
    tensor(7.)
    """
    return torch.stack([p.abs().sum() for p in parameters]).sum()


def elastic(parameters: Iterable[Tensor], share: float) -> Tensor:
    """``share * sum |w| + (1 - share) * |w|^2 / 2``, scalar.

    >>> elastic([torch.tensor([3.0, -4.0])], share=0.5)
    tensor(9.7500)
    """
    both = list(parameters)
    return share * l1_norm(both) + (1 - share) * half_squared_norm(both)


@checked
class L1(Technique):
    """Add ``strength * sum |w|`` over weights to the loss.

    Every weight is pulled to zero with the same force, however small it is.
    Helps where few inputs or units matter, and to find weights that can be left out.
    Fails to give exact zeros: steps jump across zero by up to ``lr * strength``, so a threshold is still needed; and
    under adaptive optimizers, which divide the force by its own size, small and large penalties act alike.
    Source: Tibshirani, "Regression Shrinkage and Selection via the Lasso", JRSS B 58, 1996.
    """

    strength: Annotated[float, Ge(0)] = 1e-5
    """Factor of the penalty, in units of the mean loss."""
    layers: str = LAYERS
    """Which matrices and kernels, by a pattern of parameter names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    example: ClassVar[dict[str, Any]] = {"strength": 0.01}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective is penalised."""
        check_some(assembly.model, self.layers)
        penalty = penalised(
            assembly.objective, lambda model: l1_norm(weights(model, self.layers).values()), self.strength
        )
        return assembly.with_(objective=penalty)


@checked
class ElasticNet(Technique):
    """Add ``strength * (share * sum |w| + (1 - share) * |w|^2 / 2)`` over weights to the loss.

    Helps where many inputs say the same: L1 alone keeps one of them by chance, the L2 part keeps them together.
    Fails as each of its parts does: no exact zeros without a threshold, and a blunt effect under adaptive optimizers.
    Source: Zou and Hastie, "Regularization and variable selection via the elastic net", JRSS B 67, 2005.
    """

    strength: Annotated[float, Ge(0)] = 1e-5
    """Factor of the penalty, in units of the mean loss."""
    share: Annotated[float, Ge(0), Le(1)] = 0.5
    """Part of L1: 1 is L1 alone, 0 is L2 alone."""
    layers: str = LAYERS
    """Which matrices and kernels, by a pattern of parameter names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    conflicts: ClassVar[dict[str, str]] = {
        "l1": "it holds an L1 penalty already",
        "l2": "it holds an L2 penalty already",
    }
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    example: ClassVar[dict[str, Any]] = {"strength": 0.02}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective is penalised."""
        check_some(assembly.model, self.layers)
        penalty = penalised(
            assembly.objective, lambda model: elastic(weights(model, self.layers).values(), self.share), self.strength
        )
        return assembly.with_(objective=penalty)
