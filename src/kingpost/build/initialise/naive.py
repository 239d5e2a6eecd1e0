"""Weights of one spread, whatever the layer's size: the baseline that scaled schemes are judged by."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from kingpost.build.initialise.weights import Weight, WeightFill, normal, uniform
from kingpost.option import checked


@checked
class NaiveNormal(WeightFill):
    """Every weight from N(0, std^2), whatever the layer's size; the baseline that scaled schemes are judged by.

    Fails in depth: the signal's variance is multiplied by ``fan_in * std^2`` in each layer.
    """

    std: Annotated[float, Gt(0)] = 0.01
    """Standard deviation."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Normal."""
        return normal(weight, draw, self.std), self.name


@checked
class NaiveUniform(WeightFill):
    """Every weight from U(-bound, bound), whatever the layer's size. Fails in depth, as the naive normal does."""

    bound: Annotated[float, Gt(0)] = 0.05
    """Half the width of the interval."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Uniform."""
        return uniform(weight, draw, self.bound / math.sqrt(3)), self.name


@checked
class TruncatedNormal(WeightFill):
    """Every weight from N(0, std^2) cut off at ``cut`` standard deviations, as BERT and vision transformers have it.

    The cut makes the standard deviation smaller: by 12 % at 2. Fails in depth, as the naive normal does.
    Source: Devlin et al., arXiv 1810.04805.
    """

    std: Annotated[float, Gt(0)] = 0.02
    """Standard deviation before the cut."""
    cut: Annotated[float, Gt(0)] = 2.0
    """In standard deviations."""

    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """Normal without its tails."""
        inside = math.erf(self.cut / math.sqrt(2))  # probability of lying within the cut
        new = uniform(weight, draw, inside / math.sqrt(3)).erfinv() * math.sqrt(2) * self.std
        return new.clamp(-self.cut * self.std, self.cut * self.std), self.name
