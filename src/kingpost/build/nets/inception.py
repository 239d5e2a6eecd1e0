"""Inception networks: GoogLeNet, a small one for small images, and v3.

Legend of shapes: ``B`` samples, ``H`` rows, ``W`` columns.

All are without auxiliary heads, which serve in training only: v3's authors find that they do not speed up its start,
and take them for a regulariser (arXiv 1512.00567, section 4); here that is what techniques are for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.activations import Activation
from kingpost.build.blocks.convolution import ConvNormActivation, GlobalPool, pooling, start_as_he
from kingpost.build.blocks.inception import (
    Branches,
    Unit,
    Widths,
    inception_a,
    inception_b,
    inception_c,
    inception_d,
    inception_e,
    inception_v1,
)
from kingpost.build.blocks.norms import Norm
from kingpost.build.images import Stem, batch_exceptions, check_halvings, divided, stem_figure, stem_for
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, image_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

T = TypeVar("T")

EPS = 1e-3  # of batch norm, in all published Inception nets

# arXiv 1409.4842, table 1, for a stem of 64 channels.
V1_WIDTH = 64
V1_STAGES = (
    (Widths(64, 96, 128, 16, 32, 32), Widths(128, 128, 192, 32, 96, 64)),
    (
        Widths(192, 96, 208, 16, 48, 64),
        Widths(160, 112, 224, 24, 64, 64),
        Widths(128, 128, 256, 24, 64, 64),
        Widths(112, 144, 288, 32, 64, 64),
        Widths(256, 160, 320, 32, 128, 128),
    ),
    (Widths(256, 160, 320, 32, 128, 128), Widths(384, 192, 384, 48, 128, 128)),
)

# arXiv 1512.00567, table 1, for a stem of 32 channels; channels as in the authors' code.
V3_WIDTH = 32
V3_A = ((64, 48, 64, 64, 96, 32), (64, 48, 64, 64, 96, 64), (64, 48, 64, 64, 96, 64))
V3_B = (384, 64, 96)
V3_C = ((128, 192), (160, 192), (160, 192), (192, 192))
V3_D = (192, 320, 192)
V3_E = ((320, 384, 448, 192), (320, 384, 448, 192))
V3_PIXELS = 75  # fewer leave nothing for the last reduction


class InceptionNet(nn.Module):
    """GoogLeNet's stages of Inception modules, with max pooling between them; mean over the grid, one linear layer.

    Input ``(B, channels, H, W)``; output ``(B, outputs)``. Channels are those of the paper, in proportion to
    ``width``. Source: Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842; batch norm: 1502.03167.

    Args:
        channels: of the input.
        outputs: units of the last layer.
        modules: number in each of the three stages; the paper has 2, 5 and 2.
        width: channels of the first convolution, 64 in the paper.
        stem: ``imagenet`` divides the grid by 8; ``small`` keeps it.
        kernel: side of the largest convolutions: 5 in the paper, 3 in the widespread version with batch norm.
        norm: after each convolution.
        activation: after each norm.

    >>> import torch
    >>> InceptionNet(1, 10, [1, 1, 1], 8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        modules: Sequence[int],
        width: int,
        stem: Literal["small", "imagenet"] = "small",
        *,
        kernel: Literal[3, 5] = 3,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        unit: Unit = functools.partial(ConvNormActivation, norm=norm, activation=activation, eps=EPS)
        scale = _scale(width, V1_WIDTH)
        inputs = scale(192)
        if stem == "imagenet":
            self.stem = nn.Sequential(
                unit(channels, width, 7, 2),
                pooling("max", 3, 2, odd=True),
                unit(width, width, 1),
                unit(width, inputs, 3),
                pooling("max", 3, 2, odd=True),
            )
        else:
            self.stem = nn.Sequential(unit(channels, width, 3), unit(width, inputs, 3))
        self.stages = nn.Sequential()
        for index, (count, table) in enumerate(zip(modules, V1_STAGES, strict=True)):
            if index:
                self.stages.append(pooling("max", 3, 2, odd=True))
            for chosen in spread(count, table):
                widths = chosen.scaled(scale)
                self.stages.append(inception_v1(inputs, widths, unit, kernel=kernel))
                inputs = widths.outputs
        self.pool = nn.Sequential(GlobalPool(), nn.Dropout(0.0))
        self.head = nn.Linear(inputs, outputs)
        start_as_he(self)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        y: Tensor = self.head(self.pool(self.stages(self.stem(x_bchw))))
        return y


class InceptionV3Net(nn.Module):
    """Inception v3: large kernels are factorised, and the grid is halved by convolutions beside pooling.

    Input ``(B, channels, H, W)`` of at least 75 x 75; output ``(B, outputs)``.
    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567.

    Args:
        channels: of the input.
        outputs: units of the last layer.
        modules: number of A, C and E modules; the paper has 3, 4 and 2.
        width: channels of the first convolution, 32 in the paper; all others are in proportion.
        norm: after each convolution.
        activation: after each norm.

    >>> import torch
    >>> InceptionV3Net(3, 10, [1, 1, 1], 2)(torch.zeros(2, 3, 80, 75)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        modules: Sequence[int],
        width: int,
        *,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        unit: Unit = functools.partial(ConvNormActivation, norm=norm, activation=activation, eps=EPS)
        scale = _scale(width, V3_WIDTH)
        inputs = scale(192)
        self.stem = nn.Sequential(
            unit(channels, width, 3, 2, 0),
            unit(width, width, 3, 1, 0),
            unit(width, scale(64), 3),
            pooling("max", 3, 2),
            unit(scale(64), scale(80), 1),
            unit(scale(80), inputs, 3, 1, 0),
            pooling("max", 3, 2),
        )
        a, c, e = modules
        plan: list[tuple[Callable[..., Branches], Sequence[int]]] = [
            *((inception_a, widths) for widths in spread(a, V3_A)),
            (inception_b, V3_B),
            *((inception_c, widths) for widths in spread(c, V3_C)),
            (inception_d, V3_D),
            *((inception_e, widths) for widths in spread(e, V3_E)),
        ]
        self.stages = nn.Sequential()
        for make, widths in plan:
            module = make(inputs, [scale(w) for w in widths], unit)
            self.stages.append(module)
            inputs = module.outputs(inputs)
        self.pool = nn.Sequential(GlobalPool(), nn.Dropout(0.0))
        self.head = nn.Linear(inputs, outputs)
        start_as_he(self)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        y: Tensor = self.head(self.pool(self.stages(self.stem(x_bchw))))
        return y


def spread(count: int, table: Sequence[T]) -> list[T]:
    """So many entries of a table, evenly from its first to its last; one alone is the last.

    >>> spread(2, "abcde"), spread(5, "abcde"), spread(4, "ab"), spread(1, "abc")
    (['a', 'e'], ['a', 'b', 'c', 'd', 'e'], ['a', 'a', 'b', 'b'], ['c'])
    """
    if count == 1:
        return [table[-1]]
    return [table[round(index * (len(table) - 1) / (count - 1))] for index in range(count)]


def _scale(width: int, base: int) -> Callable[[int], int]:
    return lambda channels: max(1, round(channels * width / base))


_PROFILES = {"v1": (2, 5, 2), "v3": (3, 4, 2)}


@checked
class Inception(Net):
    """Fills ``model`` with an Inception network, without auxiliary heads."""

    size: Literal["tiny", "small", "googlenet", "v3"] = "tiny"
    """Named size; ``v3`` has factorised kernels and needs images of 75 x 75 or more."""
    depth: Annotated[int, Ge(1)] | None = None
    """Inception modules in all, divided among the three stages in the paper's proportions; null for the size's."""
    width: Annotated[int, Ge(1)] | None = None
    """Channels of the first convolution, to which all others are in proportion; null for that of the size."""
    kernel: Literal[3, 5] | None = None
    """Side of the largest convolutions but in v3: 5 in the paper, 3 (for null) in most versions with batch norm."""
    stem: Stem = "auto"
    """``imagenet`` divides the grid by 8, ``small`` keeps it, ``auto`` looks at the images; v3 has its own."""
    norm: Norm = "batch"
    """After each convolution; layer and RMS norm work on each pixel by itself."""
    activation: Activation = "relu"
    """After each norm."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")
    reads: ClassVar[tuple[Form, ...]] = ("image",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "tiny": Size(fields={"depth": 3, "width": 8}, data=image_facts(1, 28, 28, 10)),
        "small": Size(fields={"depth": 6, "width": 16}, data=image_facts(1, 28, 28, 10)),
        "googlenet": Size(
            fields={"depth": 9, "width": 64},
            data=image_facts(3, 224, 224, 1000),
            parameters=6_624_904,
            source="torchvision's googlenet without its auxiliary heads",
        ),
        "v3": Size(
            fields={"depth": 9, "width": 32},
            data=image_facts(3, 299, 299, 1000),
            parameters=23_834_568,
            source="torchvision's inception_v3, 27,161,264, less 3,326,696 in its auxiliary head",
        ),
    }
    paper: ClassVar[str] = "Szegedy et al., arXiv 1409.4842 and 1512.00567"
    example: ClassVar[Mapping[str, object]] = {"width": 8}

    def __post_init__(self) -> None:
        if self.size == "v3":
            for path, without in (("kernel", self.kernel is None), ("stem", self.stem == "auto")):
                if not without:
                    raise RecipeError(
                        f"got {getattr(self, path)!r}, but v3 has its own", path=path, mend="remove it, or change size"
                    )
        self.modules()

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees the batch as a whole."""
        return batch_exceptions(self.norm)

    def modules(self) -> tuple[int, ...]:
        """Inception modules in each stage."""
        return divided(self.of("depth"), _PROFILES["v3" if self.size == "v3" else "v1"])

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Stem, and modules of each stage."""
        modules = ", ".join(map(str, self.modules()))
        return (
            *((stem_figure(data),) if self.stem == "auto" and self.size != "v3" else ()),
            Figure("modules", modules, "", f"{self.of('depth')} in the paper's proportions"),
            *((Figure("stem width", self.of("width"), "channels", f"size {self.size}"),) if self.width is None else ()),
        )

    def make(self, data: DataFacts, outputs: int) -> nn.Module:
        """The network, sized to the data."""
        channels, rows, columns = data.inputs[0][0]
        if self.size == "v3":
            if min(rows, columns) < V3_PIXELS:
                raise RecipeError(
                    f"v3 needs images of {V3_PIXELS} x {V3_PIXELS} pixels or more, but these have {rows} x {columns}",
                    path="size",
                    mend="use size=small",
                )
            return InceptionV3Net(
                channels, outputs, self.modules(), self.of("width"), norm=self.norm, activation=self.activation
            )
        stem = stem_for(self.stem, data)
        check_halvings(data, 5 if stem == "imagenet" else 2, "stem", "use stem=auto, or larger images")
        return InceptionNet(
            channels,
            outputs,
            self.modules(),
            self.of("width"),
            stem,
            kernel=self.kernel or 3,
            norm=self.norm,
            activation=self.activation,
        )
