"""Spectral normalisation: no layer stretches any direction by more than a given factor.

Legend of shapes: ``O`` outputs of a layer, ``N`` weights that make one of them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, BatchTransform, Slot, Started, Step
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.reweighted import Reweighted, named_layers, turn
from kingpost.train.regularise.weights import plain


@torch.no_grad()
def power_iteration(w_on: Tensor, u_o: Tensor, v_n: Tensor, rounds: int) -> None:
    """Turn ``u`` and ``v``, in place, towards the first singular vectors of a matrix ``(O, N)``."""
    for _ in range(rounds):
        v_n.copy_(F.normalize(w_on.T @ u_o, dim=0, eps=1e-12))
        u_o.copy_(F.normalize(w_on @ v_n, dim=0, eps=1e-12))


class Spectral(Reweighted):
    """A layer that uses ``bound * weight / sigma``, with ``sigma = u^T W v`` the largest singular value."""

    u: Tensor
    v: Tensor
    bound: float

    def used(self) -> Tensor:
        """The weight over its largest singular value."""
        sigma = (self.u[:, None] * self.weight.flatten(1) * self.v).sum()  # no product that autocast would round
        weight: Tensor = self.weight * (self.bound / sigma)
        return weight


class SpectralLinear(Spectral, nn.Linear):
    """A linear layer whose matrix has a largest singular value of ``bound``."""


class SpectralConv1d(Spectral, nn.Conv1d):
    """A convolution whose kernel, as a matrix, has a largest singular value of ``bound``."""


class SpectralConv2d(Spectral, nn.Conv2d):
    """A convolution whose kernel, as a matrix, has a largest singular value of ``bound``."""


class SpectralConv3d(Spectral, nn.Conv3d):
    """A convolution whose kernel, as a matrix, has a largest singular value of ``bound``."""


SPECTRAL: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SpectralLinear,
    nn.Conv1d: SpectralConv1d,
    nn.Conv2d: SpectralConv2d,
    nn.Conv3d: SpectralConv3d,
}
START_ROUNDS = 30


def add_spectral_norm(model: nn.Module, layers: str = "*", bound: float = 1.0, seed: int = 0) -> int:
    """Make layers divide their weight by its largest singular value, in place; returns how many.

    Parameters keep their names; each layer gets the buffers ``u`` and ``v``.

    >>> layer = nn.Sequential(nn.Linear(3, 2))
    >>> add_spectral_norm(layer)
    1
    >>> bool((torch.linalg.matrix_norm(layer[0].used(), 2) - 1).abs() < 1e-5)
    True
    """
    found = named_layers(model, layers)
    for name, layer in found.items():
        turn(layer, SPECTRAL)
        assert isinstance(layer, Spectral)
        layer.bound = bound
        draw = seeds.generator(seed, f"spectral-norm {name}")
        rows, columns = layer.weight.flatten(1).shape
        for part, length in (("u", rows), ("v", columns)):
            start = F.normalize(torch.randn(length, generator=draw), dim=0).to(layer.weight)
            layer.register_buffer(part, start)
        power_iteration(layer.weight.flatten(1), layer.u, layer.v, START_ROUNDS)
    return len(found)


def refine(model: nn.Module, rounds: int) -> None:
    """Follow the weights: so many rounds of power iteration in every layer."""
    for layer in plain(model).modules():
        if isinstance(layer, Spectral):
            power_iteration(layer.weight.flatten(1), layer.u, layer.v, rounds)


def refined_each_step(inner: BatchTransform, model: nn.Module, rounds: int) -> BatchTransform:
    """A transform of batches that also refines the singular vectors, once a step."""

    def follow(batch: Batch, step: Step) -> Batch:
        refine(model, rounds)
        return inner(batch, step)

    return follow


@checked
class SpectralNorm(Technique):
    """Use ``bound * W / sigma(W)`` in place of each weight, ``sigma`` its largest singular value.

    ``sigma`` comes from power iteration, carried on once a step; the gradient flows through it. A kernel counts as the
    matrix of its output channels, whose ``sigma`` is near that of the convolution, not equal to it. Parameters keep
    their names.
    Helps where the net must not be too steep: critics of GANs, robustness.
    Fails where outputs must be large: the net's slope is at most ``bound ** layers`` (leave out the last layer by
    ``layers``); and it has no effect in front of a norm.
    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", arXiv 1802.05957.
    """

    bound: Annotated[float, Gt(0)] = 1.0
    """Largest singular value of each layer."""
    rounds: Annotated[int, Ge(1)] = 1
    """Rounds of power iteration in each step."""
    layers: str = "*"
    """Which linear and convolution layers, by a pattern of their names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model", "initialise", "batch"})

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose layers are normed."""
        model, initialise = assembly.model, assembly.initialise
        add_spectral_norm(model, self.layers, self.bound, assembly.setting.seed)

        def start(model: nn.Module, seed: int) -> Started:
            started = initialise(model, seed)
            refine(model, START_ROUNDS)
            return started

        return assembly.with_(initialise=start, batch=refined_each_step(assembly.batch, model, self.rounds))
