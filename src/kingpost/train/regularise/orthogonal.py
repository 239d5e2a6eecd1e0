"""The orthogonality penalty.

Legend of shapes: ``O`` outputs of a layer, ``N`` weights that make one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.weights import LAYERS, by_output, check_some, penalised


def distance_from_orthogonal(matrices: Iterable[Tensor]) -> Tensor:
    """``sum |W W^T - I|^2`` (Frobenius) over weights ``(O, ...)`` as matrices, scalar; ``W^T W`` for tall ones.

    A tall matrix cannot have orthogonal rows; its columns can be.

    >>> distance_from_orthogonal([torch.eye(2, 3), 2 * torch.ones(1, 1)])
    tensor(9.)
    """
    parts = []
    for w in (matrix.flatten(1) for matrix in matrices):
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        parts.append((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum())
    return torch.stack(parts).sum()


@checked
class OrthogonalPenalty(Technique):
    """Add ``strength * sum |W W^T - I|^2`` over layers, each weight as a matrix of its output units.

    Units become different from one another and equally long, and signals keep their length.
    Helps deep nets without norms, and recurrent ones.
    Fails where lengths should differ: it holds every singular value near 1, so it works against weight decay and
    against a last layer that must grow (leave it out by ``layers``).
    Source: Brock et al., arXiv 1609.07093; Bansal, Chen and Wang, arXiv 1810.09102 (their "soft orthogonality").
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
        penalty = penalised(
            assembly.objective, lambda model: distance_from_orthogonal(by_output(model, self.layers)), self.strength
        )
        return assembly.with_(objective=penalty)
