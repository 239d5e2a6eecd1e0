"""L0: gates on units and channels that learn to close, so that the net becomes smaller.

Legend of shapes: ``C`` channels that a layer reads.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, BatchTransform, Slot, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.chains import Chain, chains
from kingpost.train.regularise.reweighted import Reweighted, turn
from kingpost.train.regularise.weights import penalised, plain

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # beta, gamma and zeta of the paper


def hard_concrete(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """A gate in 0..1 from uniform noise: often exactly 0 or 1, and smooth in ``log_alpha`` between.

    ``s = sigmoid((log u - log(1 - u) + log_alpha) / beta)``, then ``z = clamp(s (zeta - gamma) + gamma, 0, 1)``.
    """
    s = torch.sigmoid((torch.logit(uniform, eps=1e-6) + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def chance_open(log_alpha: Tensor) -> Tensor:
    """``P(z > 0) = sigmoid(log_alpha - beta log(-gamma / zeta))``.

    >>> chance_open(torch.tensor(0.0))
    tensor(0.8318)
    """
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def settled(log_alpha: Tensor) -> Tensor:
    """The gate in use: ``clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1)``."""
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


class Gate(nn.Module):
    """Gates ``(C,)`` with one draw for a whole batch; the noise is set from outside before each step.

    Args:
        channels: ``C``.
        start: chance that a gate is open at first.
        speed: ``log_alpha = speed * weight``: how much faster gates move than weights, at one learning rate.
        like: gives precision and device.
    """

    def __init__(self, channels: int, start: float, speed: float, like: Tensor) -> None:
        super().__init__()
        log_alpha = math.log(start / (1 - start)) + TEMPERATURE * math.log(-LOW / HIGH)
        self.speed = speed
        self.weight = nn.Parameter(like.detach().new_full((channels,), log_alpha / speed))
        self.noise: Tensor
        self.register_buffer("noise", like.detach().new_full((channels,), 0.5), persistent=False)

    def log_alpha(self) -> Tensor:
        """``(C,)``."""
        return self.speed * self.weight

    def forward(self) -> Tensor:
        """Gates ``(C,)``: drawn in training, settled in use."""
        return hard_concrete(self.log_alpha(), self.noise) if self.training else settled(self.log_alpha())

    def extra_repr(self) -> str:
        """For the print."""
        return f"channels={len(self.weight)}"


class Gated(Reweighted):
    """A layer whose inputs are gated; the gates multiply the weight, which is the same."""

    gate: Gate
    chain: Chain

    def used(self) -> Tensor:
        """The weight times the gate of each input."""
        gates = self.gate().repeat_interleave(self.chain.each)
        weight: Tensor = self.weight * gates.view(1, -1, *[1] * (self.weight.ndim - 2))
        return weight


class GatedLinear(Gated, nn.Linear):
    """A linear layer whose inputs are gated."""


class GatedConv1d(Gated, nn.Conv1d):
    """A convolution whose input channels are gated."""


class GatedConv2d(Gated, nn.Conv2d):
    """A convolution whose input channels are gated."""


class GatedConv3d(Gated, nn.Conv3d):
    """A convolution whose input channels are gated."""


GATED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: GatedLinear,
    nn.Conv1d: GatedConv1d,
    nn.Conv2d: GatedConv2d,
    nn.Conv3d: GatedConv3d,
}


def add_gates(model: nn.Module, *inputs: Tensor, start: float = 0.9, speed: float = 10.0) -> dict[str, str]:
    """Gate, in place, the inputs of every layer that alone reads what other layers alone write.

    Args:
        model: keeps the names of its parameters; each gated layer gets ``gate.weight``.
        inputs: what it is called with, a few samples.
        start: chance that a gate is open at first.
        speed: how much faster gates move than weights.

    Returns:
        The layers without gates, each with the reason.
    """
    found, left = chains(model, *inputs)
    for chain in found:
        layer: Any = model.get_submodule(chain.reader)
        turn(layer, GATED)
        layer.chain, layer.gate = chain, Gate(chain.channels, start, speed, layer.weight)
    return left


def gated_layers(model: nn.Module) -> list[Any]:
    """The layers with gates."""
    return [module for module in plain(model).modules() if isinstance(module, Gated)]


def expected_share(model: nn.Module) -> Tensor:
    """Expected part of the weights around gates that stays, scalar in 0..1.

    A channel counts with the weights that read it and those that write it; if it is closed, both can go.
    """
    modules = dict(plain(model).named_modules())
    parts, total = [], 0
    for layer in gated_layers(model):
        around = [layer, *(modules[name] for name in layer.chain.writers)]
        weights = sum(module.weight.numel() for module in around) // layer.chain.channels
        parts.append(weights * chance_open(layer.gate.log_alpha()).sum())
        total += weights * layer.chain.channels
    return torch.stack(parts).sum() / total


def with_noise_of_step(inner: BatchTransform, model: nn.Module) -> BatchTransform:
    """A transform of batches that also draws the gates' noise, once a step and the same for all its pieces."""

    def draw(batch: Batch, step: Step) -> Batch:
        batch = inner(batch, step)
        for layer in gated_layers(model):
            noise = layer.gate.noise
            generator = step.generator(f"l0 {layer.chain.reader}", noise.device)
            noise.copy_(torch.rand(noise.shape, generator=generator, dtype=noise.dtype, device=noise.device))
        step.log["l0_expected_share"] = expected_share(model).detach()
        return batch

    return draw


@checked
class L0(Technique):
    """Multiply channels by gates that learn to close, and pay ``strength`` times the expected part that stays open.

    The loss gains ``strength * sum_g n_g P(z_g > 0) / sum_g n_g``; ``z = clamp(s (1.2) - 0.1, 0, 1)`` with
    ``s = sigmoid((logit u + log a) / (2/3))`` (the hard concrete distribution) and ``n_g`` weights around channel
    ``g``. Gates are drawn once a step. ``kp.remove_gates(model, inputs)`` then makes a net that is really smaller.
    Gated are the inputs of layers that alone read what other layers alone write: linear layers and convolutions with
    activations, dropout, batch norm, pooling or reshapes between.
    Helps to find how wide each layer must be, in one training.
    Fails in short runs, where gates have no time to settle; with the optimizer's rate too low for them (raise
    ``speed``); and it leaves residual streams, attention and layers before a layer norm as they are.
    Source: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", arXiv 1712.01312.
    """

    strength: Annotated[float, Ge(0)] = 0.1
    """What the whole net costs, in units of the mean loss."""
    start: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Chance that a gate is open at first."""
    speed: Annotated[float, Gt(0)] = 10.0
    """How much faster gates move than weights, under Adam; under SGD the square of it."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model", "objective", "batch"})
    example: ClassVar[dict[str, Any]] = {"strength": 0.5, "speed": 1.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model has gates, which the objective wants closed."""
        model = assembly.model
        device = next(model.parameters()).device
        left = add_gates(
            model, *assembly.setting.first_batch().rows(0, 2).to(device).inputs, start=self.start, speed=self.speed
        )
        if not gated_layers(model):
            reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in list(left.items())[:4])
            raise RecipeError(
                f"no layer of this model can be gated ({reasons or 'there are no layers'})",
                mend="use a net in which linear layers or convolutions follow one another",
            )
        return assembly.with_(
            objective=penalised(assembly.objective, expected_share, self.strength),
            batch=with_noise_of_step(assembly.batch, model),
        )
