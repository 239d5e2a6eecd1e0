"""Gradients at weights that are changed at random for one step: noise on weights, and DropConnect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.weights import LAYERS, check_some, weights

Draw = Callable[[Tensor, torch.Generator], Tensor]


@contextmanager
def put_back(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Whatever happens inside, the parameters are as before to the bit."""
    saved = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, saved, strict=True):
                p.copy_(old)


def with_factors(gradient: Gradient, draw: Draw, purpose: str, layers: str = LAYERS) -> Gradient:
    """The gradient of the loss at weights ``w * f``, where ``f = draw(w, generator)`` once a step.

    By the chain rule, the gradient for ``w`` is ``f`` times that for ``w * f``.
    """

    def take(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        chosen = list(weights(model, layers).values())
        assert all(p.grad is None for p in chosen), "the factors of this step would also scale earlier gradients"
        generator = step.generator(purpose, chosen[0].device)
        factors = [draw(p, generator) for p in chosen]
        with put_back(chosen):
            with torch.no_grad():
                for p, factor in zip(chosen, factors, strict=True):
                    p.mul_(factor)
            loss = gradient(model, objective, batch, step)
        for p, factor in zip(chosen, factors, strict=True):
            if p.grad is not None:
                p.grad.mul_(factor)
        return loss

    return take


def with_noise(gradient: Gradient, std: float, relative: bool, layers: str = LAYERS) -> Gradient:
    """The gradient of the loss at weights ``w + std * noise``, normal noise once a step."""

    def take(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        chosen = list(weights(model, layers).values())
        generator = step.generator("weight-noise", chosen[0].device)
        with put_back(chosen):
            with torch.no_grad():
                for p in chosen:
                    scale = std * p.square().mean().sqrt() if relative else std
                    p.add_(scale * torch.empty_like(p).normal_(generator=generator))
            return gradient(model, objective, batch, step)

    return take


def kept(p: float) -> Draw:
    """Factors 0 with probability ``p``, else ``1 / (1 - p)``."""
    return lambda w, generator: torch.empty_like(w).bernoulli_(1 - p, generator=generator) / (1 - p)


@checked
class DropConnect(Technique):
    """Take each step's gradient with every weight set to zero with probability ``p``, the rest times ``1 / (1 - p)``.

    The mask is drawn once a step, for all samples of the batch (in the paper, for each sample). Weights themselves
    keep their values and names. Penalties on weights see the masked ones.
    Helps wide fully connected layers, as dropout does; it drops connections instead of units.
    Fails in nets that are too small for the data, and is noisier than dropout, since samples share their mask.
    Source: Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.
    """

    p: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability of a zero."""
    layers: str = LAYERS
    """Which matrices and kernels, by a pattern of parameter names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    after: ClassVar[tuple[str, ...]] = ("accumulate", "fp16", "sam", "asam", "gradnorm")
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    example: ClassVar[dict[str, Any]] = {"p": 0.3}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose gradients are taken at masked weights."""
        check_some(assembly.model, self.layers)
        if self.p == 0:
            return assembly.with_(gradient=lambda *given: assembly.gradient(*given))
        return assembly.with_(gradient=with_factors(assembly.gradient, kept(self.p), self.name, self.layers))


@checked
class WeightNoise(Technique):
    """Take each step's gradient at ``w + std * rms(w) * noise``, with normal noise drawn once a step.

    Helps to find flat minima, and nets that are later rounded to few bits.
    Fails in nets that underfit, and with noise above a few percent of the weights' size.
    Source: Murray and Edwards, IEEE TNN 5, 1994; Graves, "Practical Variational Inference", NeurIPS 2011.
    """

    std: Annotated[float, Ge(0)] = 0.01
    """Standard deviation of the noise."""
    relative: bool = True
    """In units of the root mean square of each weight tensor; else in units of the weights."""
    layers: str = LAYERS
    """Which matrices and kernels, by a pattern of parameter names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    after: ClassVar[tuple[str, ...]] = ("accumulate", "fp16", "sam", "asam", "gradnorm")
    neutral: ClassVar[dict[str, Any]] = {"std": 0.0}
    example: ClassVar[dict[str, Any]] = {"std": 0.1}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose gradients are taken at noisy weights."""
        check_some(assembly.model, self.layers)
        return assembly.with_(gradient=with_noise(assembly.gradient, self.std, self.relative, self.layers))
