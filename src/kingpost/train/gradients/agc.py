"""Adaptive gradient clipping: a bound for each unit, in proportion to its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import after
from kingpost.train.gradients.clip import NOISE_FIRST

SMALLEST_GRADIENT = 1e-6  # below it a gradient is not scaled; only so that nothing is divided by zero


def unit_norms(x: Tensor) -> Tensor:
    """L2 norm over the inputs of each unit (the first axis), in a shape that broadcasts; of a vector, its norm.

    >>> unit_norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[5.],
            [2.]])
    """
    if x.ndim < 2:
        norm: Tensor = torch.linalg.vector_norm(x)
        return norm
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.view(-1, *[1] * (x.ndim - 1))


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], ratio: float, eps: float = 1e-3) -> None:
    """Scale the gradient of each unit, in place, to a norm of at most ``ratio * max(|w|, eps)``."""
    for p in parameters:
        if p.grad is not None:
            longest = ratio * unit_norms(p).clamp(min=eps)
            p.grad.mul_((longest / unit_norms(p.grad).clamp(min=SMALLEST_GRADIENT)).clamp(max=1.0))


def last_linear(model: nn.Module) -> list[str]:
    """Patterns of the parameters of a model's last linear layer, which is usually its classifier."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [f"{linear[-1]}.*" if linear[-1] else "*"] if linear else []


@checked
class AGC(Technique):
    """Clip each unit's gradient in proportion to its weights: ``g_i = g_i * min(1, ratio * max(|w_i|, eps) / |g_i|)``.

    Helps nets without batch norm to train at the rates and batch sizes of those with it.
    Fails with small batches at the usual ratio, and on layers whose weights start at zero: only ``eps`` lets them move.
    Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", arXiv 2102.06171.
    """

    ratio: Annotated[float, Gt(0), AllowInfNan(True)] = 0.01
    """Longest gradient of a unit, as a share of the norm of its weights."""
    eps: Annotated[float, Gt(0)] = 1e-3
    """Norm that a unit's weights count for at least."""
    exclude: tuple[str, ...] | None = None
    """Names of parameters left alone, with wildcards; null for those of the last linear layer, as the authors do."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    after: ClassVar[tuple[str, ...]] = NOISE_FIRST
    neutral: ClassVar[dict[str, Any]] = {"ratio": math.inf}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update clips."""
        self._check(assembly.model)

        def clip(model: nn.Module, step: Step) -> None:
            left = last_linear(model) if self.exclude is None else self.exclude
            named = model.named_parameters()
            clip_adaptively((p for name, p in named if not any(fnmatch(name, x) for x in left)), self.ratio, self.eps)

        return assembly.with_(update=after(clip, assembly.update))

    def _check(self, model: nn.Module) -> None:
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.exclude or ():
            if not any(fnmatch(name, pattern) for name in names):
                some = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
                raise RecipeError(f"no parameter is called '{pattern}'", path="exclude", mend=f"there are: {some}")
