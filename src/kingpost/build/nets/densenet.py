"""Densely connected networks.

Legend of shapes: ``B`` samples, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.build.blocks.convolution import ConvNormActivation, GlobalPool, pooling, start_as_he
from kingpost.build.blocks.dense import dense_block, transition
from kingpost.build.blocks.norms import Norm, grid_norm
from kingpost.build.images import Stem, batch_exceptions, check_halvings, divided, stem_figure, stem_for
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, image_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

PLAIN_STEM = 16  # channels of the stem where there is no bottleneck; else twice the growth


class DenseNetNet(nn.Module):
    """A stem, dense blocks with transitions between them, mean over the grid, one linear layer.

    Input ``(B, channels, H, W)``; output ``(B, outputs)``.
    Source: Huang et al., "Densely Connected Convolutional Networks", arXiv 1608.06993.

    Args:
        channels: of the input.
        outputs: units of the last layer.
        layers: number in each dense block.
        growth: channels that each layer adds.
        stem: ``imagenet`` is a 7x7 convolution and 3x3 max pooling, which divide the grid by 4; ``small`` is a 3x3
            convolution that keeps it.
        bottleneck: a 1x1 convolution before each 3x3, and a stem of ``2 growth`` channels instead of 16.
        compression: part of the channels that a transition keeps, rounded down.
        norm: before each convolution.
        activation: after each norm.

    >>> import torch
    >>> DenseNetNet(3, 10, [2, 2], 4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        layers: Sequence[int],
        growth: int,
        stem: Literal["small", "imagenet"] = "small",
        *,
        bottleneck: bool = True,
        compression: float = 0.5,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        width = 2 * growth if bottleneck else PLAIN_STEM
        if stem == "imagenet":
            first = ConvNormActivation(channels, width, 7, 2, norm=norm, activation=activation)
            self.stem: nn.Module = nn.Sequential(first, pooling("max", 3, 2, 1))
        else:  # the first dense layer begins with a norm, so the stem ends without one
            self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
        self.blocks = nn.Sequential()
        for index, count in enumerate(layers):
            if index:
                kept = max(1, int(width * compression))
                self.blocks.append(transition(width, kept, norm=norm, activation=activation))
                width = kept
            self.blocks.append(
                dense_block(width, growth, count, bottleneck=bottleneck, norm=norm, activation=activation)
            )
            width += count * growth
        self.pool = nn.Sequential(grid_norm(norm, width), ACTIVATIONS[activation](), GlobalPool())
        self.head = nn.Linear(width, outputs)
        start_as_he(self)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        y: Tensor = self.head(self.pool(self.blocks(self.stem(x_bchw))))
        return y


def _size(
    blocks: tuple[int, ...],
    growth: int,
    parameters: int | None = None,
    source: str = "",
    *,
    plain: bool = False,
    data: DataFacts | None = None,
) -> Size:
    fields = {
        "blocks": blocks, "depth": sum(blocks), "width": growth,
        "bottleneck": not plain, "compression": 1.0 if plain else 0.5,
    }  # fmt: skip
    return Size(fields=fields, data=data or image_facts(3, 32, 32, 10), parameters=parameters, source=source)


def _imagenet(blocks: tuple[int, ...], growth: int, parameters: int) -> Size:
    source = "arXiv 1608.06993, table 1; counted in torchvision and timm"
    return _size(blocks, growth, parameters, source, data=image_facts(3, 224, 224, 1000))


_TABLE = "arXiv 1608.06993, table 2, which rounds to "


@checked
class DenseNet(Net):
    """Fills ``model`` with a densely connected network. Source: Huang et al., arXiv 1608.06993."""

    size: Literal[
        "bc-16", "bc-40", "cifar-40", "bc-100", "cifar-100", "bc-250", "bc-190",
        "densenet-121", "densenet-169", "densenet-201", "densenet-161",
    ] = "bc-16"  # fmt: skip
    """Named size; the number is that of layers with weights, ``bc`` has bottlenecks and compression."""
    depth: Annotated[int, Ge(1)] | None = None
    """Dense layers in all, divided among the blocks in proportion to ``blocks``; null for those of the size."""
    width: Annotated[int, Ge(1)] | None = None
    """Growth: channels that each layer adds; null for that of the size."""
    blocks: tuple[Annotated[int, Ge(1)], ...] | None = None
    """Dense layers in each block; the grid is halved between blocks. Null for those of the size."""
    bottleneck: bool | None = None
    """A 1x1 convolution to four times the growth before each 3x3; null for what the size has."""
    compression: Annotated[float, Gt(0), Le(1)] | None = None
    """Part of the channels that is kept between blocks; null for what the size has."""
    stem: Stem = "auto"
    """``imagenet`` divides the grid by 4, ``small`` keeps it, ``auto`` looks at the images."""
    norm: Norm = "batch"
    """Before each convolution; layer and RMS norm work on each pixel by itself."""
    activation: Activation = "relu"
    """After each norm."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")
    reads: ClassVar[tuple[Form, ...]] = ("image",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "bc-16": _size((2, 2, 2), 12),
        "bc-40": _size((6, 6, 6), 12),
        "cifar-40": _size((12, 12, 12), 12, 1_019_722, _TABLE + "1.0M", plain=True),
        "bc-100": _size((16, 16, 16), 12, 769_162, _TABLE + "0.8M"),
        "cifar-100": _size((32, 32, 32), 12, 6_979_642, _TABLE + "7.0M", plain=True),
        "bc-250": _size((41, 41, 41), 24, 15_324_406, _TABLE + "15.3M"),
        "bc-190": _size((31, 31, 31), 40, 25_624_430, _TABLE + "25.6M"),
        "densenet-121": _imagenet((6, 12, 24, 16), 32, 7_978_856),
        "densenet-169": _imagenet((6, 12, 32, 32), 32, 14_149_480),
        "densenet-201": _imagenet((6, 12, 48, 32), 32, 20_013_928),
        "densenet-161": _imagenet((6, 12, 36, 24), 48, 28_681_000),
    }
    paper: ClassVar[str] = "Huang et al., arXiv 1608.06993"
    example: ClassVar[Mapping[str, object]] = {"width": 3, "blocks": [1, 1, 1]}

    def __post_init__(self) -> None:
        if self.blocks is not None and not self.blocks:
            raise RecipeError("needs at least one block, got none", path="blocks", mend="for example blocks=[4, 4, 4]")
        self.layers_by_block()

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees the batch as a whole."""
        return batch_exceptions(self.norm)

    def layers_by_block(self) -> tuple[int, ...]:
        """Dense layers in each block."""
        profile: tuple[int, ...] = self.of("blocks")
        return profile if self.depth is None else divided(self.depth, profile)

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Stem, layers of each block, and growth, where they were not given."""
        reason = f"{self.depth} in the proportions of the size" if self.depth is not None else f"size {self.size}"
        layers = ", ".join(map(str, self.layers_by_block()))
        return (
            *((stem_figure(data),) if self.stem == "auto" else ()),
            *((Figure("dense layers", layers, "", reason),) if self.blocks is None else ()),
            *((Figure("growth", self.of("width"), "channels", f"size {self.size}"),) if self.width is None else ()),
        )

    def make(self, data: DataFacts, outputs: int) -> DenseNetNet:
        """The network, sized to the data."""
        layers, stem = self.layers_by_block(), stem_for(self.stem, data)
        halvings = len(layers) - 1 + (2 if stem == "imagenet" else 0)
        mend = "use stem=auto" if stem != stem_for("auto", data) else "use fewer blocks, for example blocks=[4, 4]"
        check_halvings(data, halvings, "stem" if stem != stem_for("auto", data) else "blocks", mend)
        return DenseNetNet(
            data.inputs[0][0][0],
            outputs,
            layers,
            self.of("width"),
            stem,
            bottleneck=self.of("bottleneck"),
            compression=self.of("compression"),
            norm=self.norm,
            activation=self.activation,
        )
