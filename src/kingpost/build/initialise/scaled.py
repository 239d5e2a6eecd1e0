"""Weights whose variance follows from the layer's size: Xavier and He."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kingpost.build.initialise.weights import Gain, Weight, WeightFill, normal, uniform
from kingpost.option import checked

Distribution = Literal["uniform", "normal"]


@checked
class Xavier(WeightFill):
    """Variance ``2 gain^2 / (fan_in + fan_out)``: keeps forward and backward signals, for zero-mean activations.

    Fails with ReLU in depth, which halves the variance each time, unless the gain makes up for it.
    Source: Glorot and Bengio, AISTATS 2010.
    """

    distribution: Distribution = "uniform"
    """Shape of the distribution."""
    gain: Gain = 1.0
    """Factor on the standard deviation, 5/3 for tanh; ``auto`` takes that of the activation that follows each layer."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Scaled by the mean of fan-in and fan-out."""
        std = gain * math.sqrt(2 / (weight.fan_in + weight.fan_out))
        return _drawn(self.distribution, weight, draw, std), f"{self.name} {self.distribution}{because}"


@checked
class He(WeightFill):
    """Variance ``gain^2 / fan``, where the gain of ReLU is ``sqrt(2)``: keeps the signal through ReLU layers.

    Fails for zero-mean activations, where the gain of ReLU doubles the variance each time.
    Source: He et al., arXiv 1502.01852.
    """

    distribution: Distribution = "normal"
    """Shape of the distribution."""
    mode: Literal["fan_in", "fan_out"] = "fan_in"
    """Keep the variance of activations (fan_in) or of gradients (fan_out)."""
    gain: Gain = math.sqrt(2)
    """Factor on the standard deviation; ``auto`` takes that of the activation that follows each layer."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Scaled by one fan."""
        std = gain / math.sqrt(weight.fan_in if self.mode == "fan_in" else weight.fan_out)
        return _drawn(self.distribution, weight, draw, std), f"{self.name} {self.distribution}{because}"


def _drawn(distribution: Distribution, weight: Weight, draw: torch.Generator, std: float) -> Tensor:
    return (uniform if distribution == "uniform" else normal)(weight, draw, std)
