"""Sparse weights."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from kingpost.build.initialise.weights import Weight, WeightFill, normal
from kingpost.option import checked


@checked
class Sparse(WeightFill):
    """Each unit starts with a few incoming weights from N(0, std^2); all others are zero.

    The sum into a unit then does not grow with the width, and units differ more. Fails where units have few inputs
    anyway (they are then dense). Source: Martens, ICML 2010, who takes 15 of standard deviation 1.
    """

    connections: Annotated[int, Ge(1)] = 15
    """Incoming weights of a unit that are not zero."""
    std: Annotated[float, Gt(0)] | None = None
    """Their standard deviation; null is ``sqrt(2 / connections)``, which keeps the signal through ReLU layers."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Normal at a few random places of each row."""
        count = min(self.connections, weight.fan_in)
        std = (2 / count) ** 0.5 if self.std is None else self.std
        dense = normal(weight, draw, std).view(weight.flat)
        order = torch.rand(weight.flat, generator=draw, device=dense.device)
        places = order.topk(count, dim=-1).indices
        new = torch.zeros_like(dense).scatter(-1, places, dense.gather(-1, places))
        return new.view(weight.matrices.shape), f"{self.name}: {count} of {weight.fan_in} inputs a unit"
