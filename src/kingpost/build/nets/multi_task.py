"""One trunk, several heads: what is predicted at once shares its features."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size
from kingpost.option import Kind, checked, choose
from kingpost.source import DataFacts, Form, Head
from kingpost.technique import Technique


class MultiTaskNet(nn.Module):
    """A trunk that gives features, an activation, and for each head a small perceptron of its own.

    Inputs are those of the trunk; output ``(B, O)``, the heads' outputs side by side.
    Source: Caruana, "Multitask Learning", Machine Learning 28, 1997 (hard sharing of parameters).

    Args:
        trunk: any module that gives ``(B, width)``.
        width: of its features.
        outputs: units of each head.
        hidden: units of each head's hidden layers.
        activation: after the trunk and each hidden layer.

    >>> net = MultiTaskNet(nn.Linear(5, 8), width=8, outputs=[2, 1])
    >>> net(torch.zeros(3, 5)).shape
    torch.Size([3, 3])
    """

    def __init__(
        self,
        trunk: nn.Module,
        width: int,
        outputs: Sequence[int],
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.trunk, self.activation, self.drop = trunk, ACTIVATIONS[activation](), nn.Dropout(0.0)
        self.heads = nn.ModuleList(_head(width, hidden, units, activation) for units in outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """All heads' outputs, ``(B, O)``."""
        features = self.drop(self.activation(self.trunk(*inputs)))
        return torch.cat([head(features) for head in self.heads], 1)


def _head(width: int, hidden: Sequence[int], outputs: int, activation: Activation) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise([width, *hidden]):
        layers += [nn.Linear(a, b), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear([width, *hidden][-1], outputs))


@checked
class MultiTaskTrunk(Net):
    """Fills ``model`` with a trunk and one head for each thing that is predicted."""

    trunk: Annotated[Technique, Kind("model")] = field(default_factory=lambda: _net("mlp"))
    """The net that gives the shared features; its last layer has ``width`` units."""
    width: Annotated[int, Ge(1)] = 64
    """Features that the heads share."""
    hidden: tuple[Annotated[int, Ge(1)], ...] = ()
    """Units of each head's hidden layers."""
    activation: Activation = "relu"
    """After the trunk, and between the layers of a head."""

    tasks: ClassVar[tuple[str, ...]] = ("multi-task",)
    reads: ClassVar[tuple[Form, ...]] = ("features", "table", "image", "series", "clip")
    sizes: ClassVar[Mapping[str, Size]] = {
        "default": Size(
            data=DataFacts(
                task="multi-task",
                inputs=(((16,), torch.float32),),
                target_shape=(2,),
                heads=(Head(name="class", classes=("a", "b")), Head(name="value")),
            )
        )
    }
    paper: ClassVar[str] = "Caruana 1997"
    example: ClassVar[Mapping[str, object]] = {"trunk": {"name": "mlp", "widths": [16]}, "width": 8}

    def check_form(self, data: DataFacts) -> None:
        """What can be read is the trunk's business."""
        self._trunk().check_form(data)

    def make(self, data: DataFacts, outputs: int) -> MultiTaskNet:
        """The network, sized to the data."""
        if not data.heads:
            raise RecipeError(
                "this data does not say what its heads are", path="name", mend="data.task=multi-task, or another net"
            )
        units = [head.outputs for head in data.heads]
        if sum(units) != outputs:
            raise RecipeError(
                f"the heads of the data have {sum(units)} outputs, but the task wants {outputs}",
                path="name",
                mend="leave task.heads out, or use a net without heads, such as mlp",
            )
        return MultiTaskNet(self._trunk().make(data, self.width), self.width, units, self.hidden, self.activation)

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """The outputs of each head, and what the trunk derives."""
        shown = ", ".join(f"{head.name} {head.outputs}" for head in data.heads)
        outputs = Figure("outputs", sum(head.outputs for head in data.heads), "", f"heads: {shown}")
        inner = (Figure(f"trunk: {f.name}", f.value, f.unit, f.reason) for f in self._trunk().derived(data))
        return (outputs, *inner)

    def _trunk(self) -> Net:
        if not isinstance(self.trunk, Net):
            raise RecipeError(
                f"'{self.trunk.name}' is no net of kingpost's, so its last layer cannot be set to width={self.width}",
                path="trunk",
                mend="use mlp or cnn",
            )
        return self.trunk


def _net(name: str) -> Net:
    net = choose("model", name)
    assert isinstance(net, Net)
    return net
