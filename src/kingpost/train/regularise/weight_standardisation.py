"""Weight standardisation.

Legend of shapes: ``O`` outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.reweighted import Reweighted, named_layers, turn


def standardised(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Each output's weights with mean 0 and standard deviation 1: ``(w - mean) / sqrt(var + eps)``; ``(O, ...)``.

    >>> standardised(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.0000,  1.0000]])
    """
    rows = weight.flatten(1)
    variance, mean = torch.var_mean(rows, dim=1, keepdim=True, correction=0)
    return ((rows - mean) * (variance + eps).rsqrt()).view_as(weight)


class Standardised(Reweighted):
    """A convolution whose filters are used with mean 0 and variance 1."""

    def used(self) -> Tensor:
        """The standardised weight."""
        return standardised(self.weight)


class StandardConv1d(Standardised, nn.Conv1d):
    """A convolution with standardised filters."""


class StandardConv2d(Standardised, nn.Conv2d):
    """A convolution with standardised filters."""


class StandardConv3d(Standardised, nn.Conv3d):
    """A convolution with standardised filters."""


STANDARD: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: StandardConv1d,
    nn.Conv2d: StandardConv2d,
    nn.Conv3d: StandardConv3d,
}


@checked
class WeightStandardisation(Technique):
    """Use each filter of a convolution as ``(w - mean) / sqrt(var + 1e-5)``; the gradient flows through it.

    Helps with group norm and small batches, where it makes up for what batch norm does.
    Fails without a norm after the layer: outputs then grow with the square root of the filter's size. Weight decay no
    longer bounds what is used, only the step size relative to it.
    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
    arXiv 1903.10520.
    """

    layers: str = "*"
    """Which convolutions, by a pattern of their names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    example_model: ClassVar[str] = "vit"

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose convolutions are standardised."""
        for layer in named_layers(assembly.model, self.layers, tuple(STANDARD)).values():
            turn(layer, STANDARD)
        return assembly
