"""Clipping of the gradient's norm."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from torch import nn

from kingpost.assembly import Assembly, Slot, Step, Update
from kingpost.option import checked
from kingpost.technique import Technique


def clipped(update: Update, norm: float) -> Update:
    """An update that first scales the gradient so that its global L2 norm is at most ``norm``."""

    def clip(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
        update(model, optimizer, step)

    return clip


@checked
class Clip(Technique):
    """Scale the gradient down where it is too long: ``g = g * min(1, norm / |g|)``.

    Fails quietly if the bound is below the usual norm: every step is then clipped, and the rate is no longer
    what it says. Compare with ``gradient_norm`` in steps.csv. Source: Pascanu, Mikolov and Bengio, arXiv 1211.5063.
    """

    norm: Annotated[float, Gt(0), AllowInfNan(True)] = 1.0
    """Largest L2 norm over all parameters, in units of the mean loss per unit of weight."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    neutral: ClassVar[dict[str, Any]] = {"norm": math.inf}
    example: ClassVar[dict[str, Any]] = {"norm": 0.1}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update clips."""
        return assembly.with_(update=clipped(assembly.update, self.norm))
