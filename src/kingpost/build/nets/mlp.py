"""Multilayer perceptron: the baseline for tables and small images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.option import checked
from kingpost.technique import Technique


class MLPNet(nn.Module):
    """Linear layers with an activation between them.

    Input ``(B, ...)``, flattened to ``(B, inputs)``; output ``(B, outputs)``.
    Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986.

    Args:
        inputs: numbers per sample.
        widths: units of each hidden layer.
        outputs: units of the last layer, which has no activation.
        activation: between layers.

    >>> import torch
    >>> MLPNet(64, [32], 10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int, activation: Activation = "relu") -> None:
        super().__init__()
        sizes = [inputs, *widths]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), ACTIVATIONS[activation]())]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        y: Tensor = self.layers(x.flatten(1))
        return y


@checked
class MLP(Technique):
    """Fills ``model`` with a multilayer perceptron sized to the data."""

    widths: tuple[Annotated[int, Ge(1)], ...] = (256, 128)
    """Units of each hidden layer."""
    activation: Activation = "relu"
    """Between layers."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the net."""
        setting = assembly.setting
        inputs = math.prod(setting.data.inputs[0][0])
        outputs = setting.task.outputs_per_sample(setting.data)
        return assembly.with_(model=MLPNet(inputs, self.widths, outputs, self.activation))
