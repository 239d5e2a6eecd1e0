"""Starts without a random number: the identity, and ZerO."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from kingpost.build.initialise.orthogonal import in_center
from kingpost.build.initialise.weights import Weight, WeightFill
from kingpost.option import checked


def hadamard(power: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sylvester's matrix of ones and minus ones, ``(2^power, 2^power)``; its rows are orthogonal.

    >>> hadamard(1, torch.float32, torch.device("cpu")).tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    for _ in range(power):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@checked
class Identity(WeightFill):
    """Each layer hands on its first inputs: ones on the diagonal (of a kernel: at its middle), zeros elsewhere.

    Kept for recurrent matrices of ReLU nets (Le, Jaitly and Hinton, arXiv 1504.00941) and very deep narrow nets. Fails
    where units must differ to learn different things: units beyond the number of inputs start at zero and equal.
    """

    gain: Annotated[float, Gt(0)] = 1.0
    """Value of the ones."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Ones on the diagonal."""
        return in_center(weight, gain * _eye(weight)), self.name


@checked
class ZerO(WeightFill):
    """Only zeros, ones and Hadamard matrices: the identity, and where a layer widens, a Hadamard transform of it.

    The transform breaks the symmetry that an identity padded with zeros leaves. Scaled by ``2^(-m/2)`` for ``2^m``
    rows, so that it keeps lengths. Source: Zhao, Schäfer and Anandkumar, arXiv 2110.12661.
    """

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Identity or Hadamard."""
        o, i = weight.matrices.shape[1:3]
        if o <= i:
            return in_center(weight, _eye(weight)), f"{self.name}: identity"
        power = (o - 1).bit_length()
        full = hadamard(power, weight.matrices.dtype, weight.matrices.device) * 2 ** (-power / 2)
        return in_center(weight, full[:o, :i]), f"{self.name}: Hadamard, {i} inputs to {o} outputs"


def _eye(weight: Weight) -> Tensor:
    o, i = weight.matrices.shape[1:3]
    return torch.eye(o, i, dtype=weight.matrices.dtype, device=weight.matrices.device)
