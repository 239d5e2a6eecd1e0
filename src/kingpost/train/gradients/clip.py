"""Clipping: of the gradient's norm, of each tensor's norm, of each number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from torch import Tensor

from kingpost.assembly import Assembly, Slot, Update
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import after, gradients

NOISE_FIRST = ("gradient-noise",)  # so that the noise is added to what is clipped, as its authors do


def clipped(update: Update, norm: float) -> Update:
    """An update that first scales the gradient so that its global L2 norm is at most ``norm``."""
    return after(lambda model, step: torch.nn.utils.clip_grad_norm_(model.parameters(), norm), update)


def clip_each(tensors: Iterable[Tensor], norm: float) -> None:
    """Scale each tensor, in place, so that its L2 norm is at most ``norm``.

    >>> long, short = torch.tensor([3.0, 4.0]), torch.tensor([0.5])
    >>> clip_each([long, short], 1.0)
    >>> long, short
    (tensor([0.6000, 0.8000]), tensor([0.5000]))
    """
    for tensor in tensors:
        tensor.mul_((norm / tensor.norm()).clamp(max=1.0))  # a norm of 0 gives infinity, and thus 1


@checked
class Clip(Technique):
    """Scale the gradient down where it is too long: ``g = g * min(1, norm / |g|)``.

    Helps against single steps that throw a run back: recurrent nets, transformers, the first steps at a high rate.
    Fails quietly if the bound is below the usual norm: every step is then clipped, and the rate is no longer
    what it says. Compare with ``gradient_norm`` in steps.csv. Source: Pascanu, Mikolov and Bengio, arXiv 1211.5063.
    """

    norm: Annotated[float, Gt(0), AllowInfNan(True)] = 1.0
    """Largest L2 norm over all parameters, in units of the mean loss per unit of weight."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    after: ClassVar[tuple[str, ...]] = NOISE_FIRST
    neutral: ClassVar[dict[str, Any]] = {"norm": math.inf}
    example: ClassVar[dict[str, Any]] = {"norm": 0.1}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update clips."""
        return assembly.with_(update=clipped(assembly.update, self.norm))


@checked
class ClipPerLayer(Technique):
    """Scale each parameter's gradient down where it is too long: ``g_l = g_l * min(1, norm / |g_l|)``.

    Helps where one layer has the large gradients and a global bound would slow all others.
    Fails to keep the gradient's direction: layers are scaled by different factors. A weight and its bias count apart.
    Source: Chen et al., "Understanding Gradient Clipping in Private SGD", arXiv 2006.15429, on the bias of clipping.
    """

    norm: Annotated[float, Gt(0), AllowInfNan(True)] = 1.0
    """Largest L2 norm of each parameter's gradient, in units of the mean loss per unit of weight."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    after: ClassVar[tuple[str, ...]] = NOISE_FIRST
    neutral: ClassVar[dict[str, Any]] = {"norm": math.inf}
    example: ClassVar[dict[str, Any]] = {"norm": 0.1}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update clips."""
        return assembly.with_(update=after(lambda model, step: clip_each(gradients(model), self.norm), assembly.update))


@checked
class ClipValue(Technique):
    """Cut each number of the gradient off at a bound: ``g_i = min(value, max(-value, g_i))``.

    Helps where a few weights have extreme gradients, as in recurrent nets on long sequences.
    Fails to keep the gradient's direction, the more the lower the bound: prefer ``clip`` elsewhere.
    Source: Mikolov, "Statistical Language Models Based on Neural Networks", 2012; Graves, arXiv 1308.0850.
    """

    value: Annotated[float, Gt(0), AllowInfNan(True)] = 1.0
    """Largest absolute value, in units of the mean loss per unit of weight."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    after: ClassVar[tuple[str, ...]] = NOISE_FIRST
    neutral: ClassVar[dict[str, Any]] = {"value": math.inf}
    example: ClassVar[dict[str, Any]] = {"value": 0.01}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update clips."""
        return assembly.with_(
            update=after(
                lambda model, step: torch.nn.utils.clip_grad_value_(model.parameters(), self.value), assembly.update
            )
        )
