"""Sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import clear_gradients, gradients


def sharpness_aware(gradient: Gradient, rho: float) -> Gradient:
    """A gradient taken at ``w + rho * g / |g|``, where ``g`` is the gradient at ``w``.

    ``gradient`` is called twice and must fill ``.grad`` for the whole batch each time; the loss is that at ``w``.
    """

    def sharpness(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        loss = gradient(model, objective, batch, step)
        if not loss.finite:
            return loss
        norm = torch.nn.utils.get_total_norm(gradients(model))
        with _moved(model, rho / (norm + 1e-12)), _frozen_statistics(model):
            clear_gradients(model)
            loss.finite = gradient(model, objective, batch, step).finite
        return loss

    return sharpness


@contextmanager
def _moved(model: nn.Module, scale: torch.Tensor) -> Iterator[None]:
    """Weights moved along the gradient, and put back exactly, whatever happens."""
    trained = [p for p in model.parameters() if p.grad is not None]
    saved = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for p in trained:
            assert p.grad is not None
            p.add_(p.grad * scale.to(p.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(trained, saved, strict=True):
                p.copy_(old)


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms count the batch once, at ``w``, not also at the moved weights."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


@checked
class SAM(Technique):
    """Minimise the worst loss within a radius: the gradient at ``w + rho * g / |g|``. Costs two gradients a step.

    Fails to pay where the net underfits. Source: Foret et al., arXiv 2010.01412.
    """

    rho: Annotated[float, Ge(0)] = 0.05
    """Radius of the neighbourhood, L2 norm over all parameters."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    after: ClassVar[tuple[str, ...]] = ("accumulate", "fp16")
    neutral: ClassVar[dict[str, Any]] = {"rho": 0.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the sharpness-aware gradient."""
        return assembly.with_(gradient=sharpness_aware(assembly.gradient, self.rho))
