"""Gradient noise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot, Step
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import after, gradients


def deviation(step: int, eta: float, gamma: float) -> float:
    """Standard deviation of the noise at a step from 0: ``sqrt(eta / (1 + step)^gamma)``.

    >>> deviation(0, eta=0.04, gamma=0.55), deviation(15, eta=0.04, gamma=1.0)
    (0.2, 0.05)
    """
    return float((eta / (1 + step) ** gamma) ** 0.5)


def add_noise(tensors: Iterable[Tensor], std: float, generator: torch.Generator) -> None:
    """Add independent ``N(0, std^2)`` to every number, in place; the generator is of the tensors' device."""
    for x in tensors:
        x.add_(torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device), alpha=std)


@checked
class GradientNoise(Technique):
    """Add noise that dies away to the gradient: ``g = g + N(0, s_t^2)``, ``s_t^2 = eta / (1 + t)^gamma``.

    Helps very deep or poorly started nets out of flat regions early in training.
    Fails where the gradients are smaller than the noise: compare ``sqrt(eta)`` times the root of the number of weights
    with ``gradient_norm`` in steps.csv. Listed before clipping, it is added to what is clipped.
    Source: Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks", arXiv 1511.06807.
    """

    eta: Annotated[float, Ge(0)] = 0.01
    """Variance at the first step, in units of the gradient squared; the authors tried 0.01, 0.3 and 1."""
    gamma: Annotated[float, Ge(0)] = 0.55
    """How fast the variance falls with the step."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    neutral: ClassVar[dict[str, Any]] = {"eta": 0.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update adds noise; the same on all processes."""

        def add(model: nn.Module, step: Step) -> None:
            std = deviation(step.index, self.eta, self.gamma)
            if std > 0 and (grads := gradients(model)):
                add_noise(grads, std, step.generator(self.name, grads[0].device))

        return assembly.with_(update=after(add, assembly.update))
