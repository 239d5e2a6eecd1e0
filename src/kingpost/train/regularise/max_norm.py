"""The max-norm constraint.

Legend of shapes: ``O`` outputs of a layer, ``N`` weights that make one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot, Step, Update
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.weights import LAYERS, by_output, check_some


@torch.no_grad()
def limit_rows(matrices: Iterable[Tensor], norm: float) -> None:
    """Shorten each row of the weights ``(O, ...)`` that is longer than ``norm``, in place.

    >>> w = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> limit_rows([w], norm=2.5)
    >>> w
    tensor([[1.5000, 2.0000],
            [0.3000, 0.4000]])
    """
    for w in matrices:
        lengths = torch.linalg.vector_norm(w, dim=tuple(range(1, w.ndim)), keepdim=True)
        w.mul_(torch.where(lengths > norm, norm / lengths, 1.0))


def limited(update: Update, norm: float, layers: str = LAYERS) -> Update:
    """An update after which no unit's incoming weights are longer than ``norm``."""

    def limit(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        update(model, optimizer, step)
        limit_rows(by_output(model, layers), norm)

    return limit


@checked
class MaxNorm(Technique):
    """After each update, shorten the incoming weights of a unit to ``norm`` where they are longer: ``|w_g| <= norm``.

    Helps with dropout and high learning rates: weights cannot blow up, however large a step is.
    Fails where a norm layer follows (it undoes any scale), and at a bound that the starting weights already touch.
    Source: Srebro and Shraibman, COLT 2005; with dropout: Srivastava et al., JMLR 15, 2014, section 5.1.
    """

    norm: Annotated[float, Gt(0), AllowInfNan(True)] = 3.0
    """Largest L2 norm of the weights that make one output unit or channel."""
    layers: str = LAYERS
    """Which matrices and kernels, by a pattern of parameter names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    neutral: ClassVar[dict[str, Any]] = {"norm": math.inf}
    example: ClassVar[dict[str, Any]] = {"norm": 0.5}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose updates keep the bound."""
        check_some(assembly.model, self.layers)
        return assembly.with_(update=limited(assembly.update, self.norm, self.layers))
