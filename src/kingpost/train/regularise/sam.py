"""Sharpness-aware minimisation, and its form that does not depend on the scale of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import clear_gradients


def sharpness_aware(gradient: Gradient, rho: float, adaptive: bool = False, eta: float = 0.01) -> Gradient:
    """A gradient taken at ``w + rho * g / |g|``, where ``g`` is the gradient at ``w``.

    ``gradient`` is called twice and must fill ``.grad`` for the whole batch each time; the loss is that at ``w``.

    Args:
        gradient: what is called.
        rho: radius.
        adaptive: take it at ``w + rho * T^2 g / |T g|`` instead, with ``T = |w| + eta`` for matrices and kernels, and 1
            for vectors.
        eta: keeps weights at zero from standing still.
    """

    def sharpness(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        loss = gradient(model, objective, batch, step)
        if not loss.finite:
            return loss
        trained = [p for p in model.parameters() if p.grad is not None]
        with torch.no_grad():
            directions = [_scaled(p, adaptive, eta) for p in trained]
            norm = torch.nn.utils.get_total_norm(directions)
            if adaptive:
                directions = [_scaled(p, adaptive, eta, twice=True) for p in trained]
        with _moved(trained, directions, rho / (norm + 1e-12)), frozen_statistics(model):
            clear_gradients(model)
            loss.finite = gradient(model, objective, batch, step).finite
        return loss

    return sharpness


def _scaled(p: nn.Parameter, adaptive: bool, eta: float, twice: bool = False) -> Tensor:
    """``T g``, or ``T^2 g``; plain ``g`` if not adaptive, and for biases and the like."""
    assert p.grad is not None
    if not adaptive or p.ndim < 2:
        return p.grad
    scale = p.abs() + eta
    return scale.square() * p.grad if twice else scale * p.grad


@contextmanager
def _moved(trained: Sequence[nn.Parameter], directions: Sequence[Tensor], scale: Tensor) -> Iterator[None]:
    """Weights moved along the directions, and put back exactly, whatever happens."""
    saved = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for p, direction in zip(trained, directions, strict=True):
            p.add_(direction * scale.to(p.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(trained, saved, strict=True):
                p.copy_(old)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
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

    Helps nets that fit their training data fully: flat minima generalise better, and labels may be noisy.
    Fails to pay where the net underfits. Source: Foret et al., arXiv 2010.01412.
    """

    rho: Annotated[float, Ge(0)] = 0.05
    """Radius of the neighbourhood, L2 norm over all parameters."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    after: ClassVar[tuple[str, ...]] = ("accumulate", "fp16")
    conflicts: ClassVar[dict[str, str]] = {"asam": "both move the weights first"}
    neutral: ClassVar[dict[str, Any]] = {"rho": 0.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the sharpness-aware gradient."""
        return assembly.with_(gradient=sharpness_aware(assembly.gradient, self.rho))


@checked
class ASAM(Technique):
    """SAM where a weight moves in proportion to its size: the gradient at ``w + rho T^2 g / |T g|``, ``T = |w| + eta``.

    Sharpness is then the same for nets that compute the same with weights of other scales. ``T`` is 1 for biases and
    gains. Costs two gradients a step.
    Helps as SAM does, and is less sensitive to ``rho``, which is about ten times larger.
    Fails to pay where the net underfits. Source: Kwon et al., arXiv 2102.11600.
    """

    rho: Annotated[float, Ge(0)] = 0.5
    """Radius of the neighbourhood, in units of the weights' own size."""
    eta: Annotated[float, Gt(0)] = 0.01
    """Added to the size of each weight."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    after: ClassVar[tuple[str, ...]] = ("accumulate", "fp16")
    conflicts: ClassVar[dict[str, str]] = {"sam": "both move the weights first"}
    neutral: ClassVar[dict[str, Any]] = {"rho": 0.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the adaptive sharpness-aware gradient."""
        return assembly.with_(gradient=sharpness_aware(assembly.gradient, self.rho, adaptive=True, eta=self.eta))
