"""A small convolutional network for images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique

Norm = Literal["batch", "group", "none"]


class CNNNet(nn.Module):
    """Stages of (3x3 convolution, norm, activation, 2x2 max pooling), mean over the grid, one linear layer.

    Input ``(B, channels, H, W)``; output ``(B, outputs)``.
    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998; the mean over the grid
    from Lin, Chen and Yan, "Network In Network", arXiv 1312.4400.

    Args:
        channels: of the input.
        widths: channels of each stage.
        outputs: units of the last layer.
        norm: after each convolution; ``group`` has groups of at least 8 channels.
        activation: after each norm.

    >>> import torch
    >>> CNNNet(1, [8, 16], 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        outputs: int,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        stages = [
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1, bias=norm == "none"),
                _norm(norm, b),
                ACTIVATIONS[activation](),
                nn.MaxPool2d(2),
            )
            for a, b in itertools.pairwise([channels, *widths])
        ]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        y: Tensor = self.head(self.stages(x).mean((2, 3)))
        return y


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        groups = max(g for g in range(1, max(1, channels // 8) + 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


@checked
class CNN(Technique):
    """Fills ``model`` with a small convolutional network."""

    widths: tuple[Annotated[int, Ge(1)], ...] = (32, 64, 128)
    """Channels of each stage; every stage halves the grid."""
    norm: Norm = "batch"
    """After each convolution."""
    activation: Activation = "relu"
    """After each norm."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        if not self.widths:
            raise RecipeError("needs at least one stage, got none", path="widths", mend="for example widths=[32, 64]")

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees the batch as a whole."""
        reason = "batch norm takes its statistics over the samples it is given; norm=group has no such exception"
        return {"accumulation": reason, "two processes": reason} if self.norm == "batch" else {}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the net."""
        setting = assembly.setting
        shape = setting.data.inputs[0][0]
        if len(shape) != 3:
            raise RecipeError(
                f"needs images (channels, rows, columns), but a sample has the shape {shape}",
                mend="use model=mlp",
            )
        if min(shape[1:]) < 2 ** len(self.widths):
            raise RecipeError(
                f"{len(self.widths)} stages halve {shape[1]} x {shape[2]} pixels to nothing",
                path="widths",
                mend=f"use at most {min(shape[1:]).bit_length() - 1} stages",
            )
        outputs = setting.task.outputs_per_sample(setting.data)
        return assembly.with_(model=CNNNet(shape[0], self.widths, outputs, self.norm, self.activation))
