"""Residual networks, and plain ones of the same depth to compare them with.

Legend of shapes: ``B`` samples, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Lt
from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.build.blocks.convolution import ConvNormActivation, GlobalPool, pooling, start_as_he
from kingpost.build.blocks.norms import Norm, grid_norm
from kingpost.build.blocks.residual import BlockStyle, PreActivationBlock, ResidualBlock, Shortcut
from kingpost.build.blocks.stochastic_depth import set_stochastic_depth
from kingpost.build.images import Stem, batch_exceptions, check_halvings, divided, stem_figure, stem_for
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, image_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form


class ResNetNet(nn.Module):
    """A stem, stages of residual blocks, mean over the grid, one linear layer.

    Input ``(B, channels, H, W)``; output ``(B, outputs)``. Each stage after the first halves the grid and doubles
    the width. Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385.

    Args:
        channels: of the input.
        outputs: units of the last layer.
        blocks: number in each stage.
        width: channels of the stem and of the first stage's 3x3 convolutions.
        stem: ``imagenet`` is a 7x7 convolution and 3x3 max pooling, which divide the grid by 4; ``small`` is a 3x3
            convolution that keeps it.
        style: what all blocks have in common.

    >>> import torch
    >>> ResNetNet(3, 10, [1, 1, 1], 8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        blocks: Sequence[int],
        width: int,
        stem: Literal["small", "imagenet"] = "small",
        style: BlockStyle | None = None,
    ) -> None:
        super().__init__()
        style = style or BlockStyle()
        self.stem = _stem(channels, width, stem, style)
        self.stages = nn.Sequential()
        inputs, block = width, PreActivationBlock if style.preactivation else ResidualBlock
        for stage, count in enumerate(blocks):
            made = nn.Sequential()
            for index in range(count):
                made.append(block(inputs, width * 2**stage, 2 if stage and not index else 1, style))
                inputs = style.outputs(width * 2**stage)
            self.stages.append(made)
        last = (grid_norm(style.norm, inputs), ACTIVATIONS[style.activation]()) if style.preactivation else ()
        self.pool = nn.Sequential(*last, GlobalPool(), nn.Dropout(0.0))
        self.head = nn.Linear(inputs, outputs)
        start_as_he(self)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        y: Tensor = self.head(self.pool(self.stages(self.stem(x_bchw))))
        return y


def _stem(channels: int, width: int, stem: Literal["small", "imagenet"], style: BlockStyle) -> nn.Module:
    kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
    first: list[nn.Module] = (
        [nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=style.norm == "none")]
        if style.preactivation
        else [ConvNormActivation(channels, width, kernel, stride, norm=style.norm, activation=style.activation)]
    )
    return nn.Sequential(*first, *([pooling("max", 3, 2, 1)] if stem == "imagenet" else []))


def _cifar(blocks: int, parameters: int | None, published: str = "") -> Size:
    fields = {"blocks": (blocks,) * 3, "depth": 3 * blocks, "width": 16, "shortcut": "padding", "bottleneck": False}
    source = f"arXiv 1512.03385, table 6, which rounds to {published}" if published else ""
    return Size(fields=fields, data=image_facts(3, 32, 32, 10), parameters=parameters, source=source)


def _imagenet(blocks: tuple[int, ...], parameters: int, bottleneck: bool) -> Size:
    fields = {
        "blocks": blocks, "depth": sum(blocks), "width": 64, "shortcut": "projection", "bottleneck": bottleneck
    }  # fmt: skip
    source = "arXiv 1512.03385, table 1; counted in torchvision and timm"
    return Size(fields=fields, data=image_facts(3, 224, 224, 1000), parameters=parameters, source=source)


@checked
class ResNet(Net):
    """Fills ``model`` with a residual network; ``residual: false`` makes a plain one of the same depth.

    Source: He et al., arXiv 1512.03385; pre-activation: He et al., arXiv 1603.05027.
    """

    size: Literal[
        "cifar-8", "cifar-14", "cifar-20", "cifar-32", "cifar-44", "cifar-56", "cifar-110",
        "resnet-18", "resnet-34", "resnet-50", "resnet-101", "resnet-152",
    ] = "cifar-8"  # fmt: skip
    """Named size; the number is that of layers with weights."""
    depth: Annotated[int, Ge(1)] | None = None
    """Residual blocks in all, divided among the stages in proportion to ``blocks``; null for those of the size."""
    width: Annotated[int, Ge(1)] | None = None
    """Channels of the first stage; each next one has twice as many. Null for that of the size."""
    blocks: tuple[Annotated[int, Ge(1)], ...] | None = None
    """Residual blocks in each stage; every stage but the first halves the grid. Null for those of the size."""
    bottleneck: bool | None = None
    """Blocks of 1x1, 3x3, 1x1 convolutions instead of 3x3, 3x3; null for what the size has."""
    shortcut: Shortcut | None = None
    """Where the shape changes: a 1x1 convolution, or zeros put in; null for what the size has."""
    preactivation: bool = False
    """Norm and activation before each convolution instead of after it."""
    residual: bool = True
    """False leaves out all shortcuts, to see what they are good for."""
    stem: Stem = "auto"
    """``imagenet`` divides the grid by 4, ``small`` keeps it, ``auto`` looks at the images."""
    norm: Norm = "batch"
    """In all blocks; layer and RMS norm work on each pixel by itself."""
    activation: Activation = "relu"
    """After norms."""
    squeeze_excite: Annotated[int, Ge(1)] | None = None
    """Reduction of a squeeze-and-excitation in each block, 16 in its paper; null for none."""
    stochastic_depth: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability that training leaves out the last block's branch; it grows from 0 linearly over the blocks."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")
    reads: ClassVar[tuple[Form, ...]] = ("image",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "cifar-8": _cifar(1, None),
        "cifar-14": _cifar(2, None),
        "cifar-20": _cifar(3, 269_722, "0.27M"),
        "cifar-32": _cifar(5, 464_154, "0.46M"),
        "cifar-44": _cifar(7, 658_586, "0.66M"),
        "cifar-56": _cifar(9, 853_018, "0.85M"),
        "cifar-110": _cifar(18, 1_727_962, "1.7M"),
        "resnet-18": _imagenet((2, 2, 2, 2), 11_689_512, bottleneck=False),
        "resnet-34": _imagenet((3, 4, 6, 3), 21_797_672, bottleneck=False),
        "resnet-50": _imagenet((3, 4, 6, 3), 25_557_032, bottleneck=True),
        "resnet-101": _imagenet((3, 4, 23, 3), 44_549_160, bottleneck=True),
        "resnet-152": _imagenet((3, 8, 36, 3), 60_192_808, bottleneck=True),
    }
    paper: ClassVar[str] = "He et al., arXiv 1512.03385 and 1603.05027"
    example: ClassVar[Mapping[str, object]] = {"width": 4}

    def __post_init__(self) -> None:
        if self.blocks is not None and not self.blocks:
            raise RecipeError("needs at least one stage, got none", path="blocks", mend="for example blocks=[1, 1, 1]")
        if self.stochastic_depth and not self.residual:
            raise RecipeError(
                "a plain net has no branch that could be left out",
                path="stochastic_depth",
                mend="set it to 0, or residual=true",
            )
        self.blocks_by_stage()

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees the batch as a whole; stochastic depth draws for each piece."""
        if not self.stochastic_depth:
            return batch_exceptions(self.norm)
        reason = "each piece of a batch draws which branches are left out, so only the expectation is the same"
        return {"accumulation": reason, "two processes": reason}

    def blocks_by_stage(self) -> tuple[int, ...]:
        """Residual blocks in each stage."""
        profile: tuple[int, ...] = self.of("blocks")
        return profile if self.depth is None else divided(self.depth, profile)

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Stem, blocks, width and layers."""
        blocks, width = self.blocks_by_stage(), self.of("width")
        reason = f"{self.depth} in the proportions of the size" if self.depth is not None else f"size {self.size}"
        layers = sum(blocks) * (3 if self.of("bottleneck") else 2) + 2
        figures = (
            *((stem_figure(data),) if self.stem == "auto" else ()),
            *((Figure("blocks", ", ".join(map(str, blocks)), "", reason),) if self.blocks is None else ()),
            Figure(
                "widths",
                ", ".join(str(width * 2**stage) for stage in range(len(blocks))),
                "channels",
                "doubled each time the grid is halved",
            ),
        )
        return (*figures, Figure("layers", layers, "", "with weights, in a row: blocks, stem and head"))

    def make(self, data: DataFacts, outputs: int) -> ResNetNet:
        """The network, sized to the data."""
        blocks, stem = self.blocks_by_stage(), stem_for(self.stem, data)
        halvings = len(blocks) - 1 + (2 if stem == "imagenet" else 0)
        mend = "use stem=auto" if stem != stem_for("auto", data) else "use fewer stages, for example blocks=[1, 1, 1]"
        check_halvings(data, halvings, "stem" if stem != stem_for("auto", data) else "blocks", mend)
        style = BlockStyle(
            bottleneck=self.of("bottleneck"),
            preactivation=self.preactivation,
            shortcut=self.of("shortcut"),
            residual=self.residual,
            norm=self.norm,
            activation=self.activation,
            squeeze_excite=self.squeeze_excite,
        )
        net = ResNetNet(data.inputs[0][0][0], outputs, blocks, self.of("width"), stem, style)
        set_stochastic_depth(net, self.stochastic_depth)
        return net
