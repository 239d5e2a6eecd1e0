"""AdamW: adaptive moments with decoupled weight decay."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.optimise.groups import can_fuse, decay_groups


@checked
class AdamW(Technique):
    """Steps of ``lr * m / (sqrt(v) + eps)``, where m and v are running means of the gradient and its square.

    Fails where the second moment is tiny (steps become large): raise ``eps``. Needs two numbers of memory a weight.
    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Memory of the mean gradient."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Memory of the mean squared gradient."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Pull towards zero per step, times lr; on matrices and kernels only."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"optimizer"})

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer."""
        return assembly.with_(optimizer=self._make)

    def _make(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            decay_groups(model, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=can_fuse(model),
        )
