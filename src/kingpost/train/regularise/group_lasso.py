"""The group lasso: whole units and channels are pulled to zero.

Legend of shapes: ``O`` outputs of a layer, ``N`` weights that make one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.weights import LAYERS, by_output, check_some, penalised


def group_norm(rows: Iterable[Tensor]) -> Tensor:
    """``sum_g sqrt(N_g) |w_g|`` over the rows of weights ``(O, ...)``, scalar; the gradient at a zero row is 0.

    >>> group_norm([torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])])
    tensor(10.)
    """
    flat = [w.flatten(1) for w in rows]
    return torch.stack([math.sqrt(w.shape[1]) * torch.linalg.vector_norm(w, dim=1).sum() for w in flat]).sum()


@checked
class GroupLasso(Technique):
    """Add ``strength * sum_g sqrt(N_g) |w_g|``, where ``w_g`` are the weights of one output unit or channel.

    The norm is not squared, so a whole unit is pulled to zero with a force that does not fade.
    Helps where units are to be removed as a whole, which makes a net smaller on any hardware.
    Fails where a norm follows the layer (batch norm undoes any scale, and the penalty only raises its effective
    learning rate), and gives no exact zeros without a threshold; ``l0`` does both. Blunt under adaptive optimizers.
    Source: Yuan and Lin, JRSS B 68, 2006; on nets: Wen et al., "Learning Structured Sparsity", arXiv 1608.03665.
    """

    strength: Annotated[float, Ge(0)] = 1e-4
    """Factor of the penalty, in units of the mean loss."""
    layers: str = LAYERS
    """Which matrices and kernels, by a pattern of parameter names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    example: ClassVar[dict[str, Any]] = {"strength": 0.01}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective is penalised."""
        check_some(assembly.model, self.layers)
        penalty = penalised(assembly.objective, lambda model: group_norm(by_output(model, self.layers)), self.strength)
        return assembly.with_(objective=penalty)
