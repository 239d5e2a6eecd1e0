"""A small convolutional network for images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.activations import Activation
from kingpost.build.blocks.convolution import ConvNormActivation, Pool, pooling
from kingpost.build.blocks.norms import Norm
from kingpost.build.images import batch_exceptions
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, image_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

Halving = Pool | Literal["stride"]
Head = Literal["mean", "flat"]


class CNNNet(nn.Module):
    """Stages of (3x3 convolution, norm, activation, 2x2 pooling), mean over the grid, one linear layer.

    Input ``(B, channels, H, W)``; output ``(B, outputs)``.
    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998; the mean over the grid
    from Lin, Chen and Yan, "Network In Network", arXiv 1312.4400; several convolutions a stage from Simonyan and
    Zisserman, arXiv 1409.1556.

    Args:
        channels: of the input.
        widths: channels of each stage.
        outputs: units of the last layer.
        norm: after each convolution; ``group`` has groups of at least 8 channels.
        activation: after each norm.
        convolutions: in each stage.
        pool: how a stage halves the grid; an odd row or column is dropped. With ``stride`` nothing is pooled: the
            stage's last convolution takes every other pixel, and an odd row or column counts as two.
        grid: (rows, columns) of the input if the linear layer sees every pixel of the last stage; None for their mean.

    >>> import torch
    >>> CNNNet(1, [8, 16], 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> CNNNet(1, [8, 16], 10, pool="stride", grid=(28, 28))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        outputs: int,
        norm: Norm = "batch",
        activation: Activation = "relu",
        convolutions: int = 1,
        pool: Halving = "max",
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        stages = []
        for inputs, width in itertools.pairwise([channels, *widths]):
            last = convolutions - 1
            units = [
                ConvNormActivation(
                    width if index else inputs,
                    width,
                    stride=2 if pool == "stride" and index == last else 1,
                    norm=norm,
                    activation=activation,
                )
                for index in range(convolutions)
            ]
            stages.append(nn.Sequential(*itertools.chain(*units), *([] if pool == "stride" else [pooling(pool)])))
        self.stages = nn.Sequential(*stages)
        self.flat = grid is not None
        self.head = nn.Linear(widths[-1] * (pixels_left(grid, len(widths), pool) if grid else 1), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        features = self.stages(x)
        y: Tensor = self.head(features.flatten(1) if self.flat else features.mean((2, 3)))
        return y


def pixels_left(grid: tuple[int, int], stages: int, pool: Halving) -> int:
    """How many pixels a grid has after so many stages.

    >>> pixels_left((28, 28), 3, "max"), pixels_left((28, 28), 3, "stride")
    (9, 16)
    """
    rows, columns = ((side - 1 >> stages) + 1 if pool == "stride" else side >> stages for side in grid)
    return rows * columns


@checked
class CNN(Net):
    """Fills ``model`` with a small convolutional network."""

    size: Literal["tiny", "small", "medium"] = "small"
    """Named size."""
    depth: Annotated[int, Ge(1)] | None = None
    """Stages; every stage halves the grid. Null for those of the size."""
    width: Annotated[int, Ge(1)] | None = None
    """Channels of the first stage; each next one has twice as many. Null for that of the size."""
    widths: tuple[Annotated[int, Ge(1)], ...] | None = None
    """Channels of each stage, instead of depth and width."""
    convolutions: Annotated[int, Ge(1)] = 1
    """3x3 convolutions in each stage."""
    pool: Halving = "max"
    """How a stage halves the grid; ``stride`` lets its last convolution do it, at about a quarter of the work."""
    norm: Norm = "batch"
    """After each convolution; layer and RMS norm work on each pixel by itself."""
    activation: Activation = "relu"
    """After each norm."""
    head: Head = "mean"
    """What the linear layer sees: the mean of each channel, or ``flat``, each pixel that the last stage leaves."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")
    reads: ClassVar[tuple[Form, ...]] = ("image",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "tiny": Size(fields={"depth": 2, "width": 16}, data=image_facts(1, 28, 28, 10)),
        "small": Size(fields={"depth": 3, "width": 32}, data=image_facts(1, 28, 28, 10)),
        "medium": Size(fields={"depth": 4, "width": 64}, data=image_facts(3, 32, 32, 10)),
    }
    paper: ClassVar[str] = "LeCun et al. 1998; Lin, Chen and Yan, arXiv 1312.4400"

    def __post_init__(self) -> None:
        if self.widths is None:
            return
        if not self.widths:
            raise RecipeError("needs at least one stage, got none", path="widths", mend="for example widths=[32, 64]")
        for dial, silent in (("size", "small"), ("depth", None), ("width", None)):
            if getattr(self, dial) != silent:
                raise RecipeError(f"'widths' says it already: {list(self.widths)}", path=dial, mend="give one of them")

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees the batch as a whole."""
        return batch_exceptions(self.norm)

    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return self.widths or tuple(self.of("width") * 2**stage for stage in range(self.of("depth")))

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """The widths of the stages."""
        if self.widths is not None:
            return ()
        widths = ", ".join(map(str, self.stage_widths()))
        return (Figure("widths", widths, "channels", "doubled each time the grid is halved"),)

    def make(self, data: DataFacts, outputs: int) -> CNNNet:
        """The network, sized to the data."""
        shape, widths = data.inputs[0][0], self.stage_widths()
        if min(shape[1:]) < 2 ** len(widths):
            raise RecipeError(
                f"{len(widths)} stages halve {shape[1]} x {shape[2]} pixels to nothing",
                path="depth" if self.widths is None else "widths",
                mend=f"use at most {min(shape[1:]).bit_length() - 1} stages",
            )
        grid = (shape[1], shape[2]) if self.head == "flat" else None
        units = (self.norm, self.activation, self.convolutions, self.pool)
        return CNNNet(shape[0], widths, outputs, *units, grid)
