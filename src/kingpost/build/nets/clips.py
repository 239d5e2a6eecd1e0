"""Nets for clips: a small convolutional net reads each frame, and something else reads the frames in order.

Legend of shapes: ``B`` clips, ``T`` frames, ``C`` channels, ``H`` x ``W`` pixels, ``F`` features of a frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.blocks.convolution import ConvNormActivation, pooling, start_as_he
from kingpost.build.blocks.norms import Norm
from kingpost.build.blocks.positions import Rotary
from kingpost.build.blocks.recurrent import Kind, Recurrent
from kingpost.build.blocks.transformer import TransformerBlock
from kingpost.build.heads import check_heads, heads_figure, heads_for
from kingpost.build.nets.recurrent import dial_figures
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size
from kingpost.option import checked
from kingpost.source import DataFacts, Form


class FrameFeatures(nn.Module):
    """Stages of (3x3 convolution, norm, ReLU, 2x2 max pooling) on every frame, then a linear layer.

    The linear layer sees the whole last grid: a mean over it would forget where things are, and with that motion.
    Input ``(B, T, C, H, W)``; output ``(B, T, F)``.

    Args:
        channels: of a frame, ``C``.
        widths: channels of each stage.
        rows: of a frame, ``H``.
        columns: of a frame, ``W``.
        features: ``F``.
        norm: after each convolution.

    >>> FrameFeatures(1, [4, 8], 16, 16, features=6)(torch.zeros(2, 5, 1, 16, 16)).shape
    torch.Size([2, 5, 6])
    """

    def __init__(
        self, channels: int, widths: Sequence[int], rows: int, columns: int, features: int, norm: Norm = "group"
    ) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(
                nn.Sequential(ConvNormActivation(a, b, norm=norm), pooling("max"))
                for a, b in itertools.pairwise([channels, *widths])
            )
        )
        start_as_he(self.stages)
        cells = (rows >> len(widths)) * (columns >> len(widths))
        self.project = nn.Linear(widths[-1] * cells, features)
        self.drop = nn.Dropout(0.0)

    def forward(self, clips_btchw: Tensor) -> Tensor:
        """``(B, T, C, H, W)`` to ``(B, T, F)``."""
        b, t = clips_btchw.shape[:2]
        grids = self.stages(clips_btchw.flatten(0, 1))
        features: Tensor = self.drop(self.project(grids.flatten(1)))
        return features.view(b, t, -1)


class CNNRNNNet(nn.Module):
    """Features of each frame, recurrent layers over them, and a linear layer on what stands at the end.

    With ``kind="mean"`` nothing reads the order: the mean of the frames, a baseline that shows what order is worth.
    Input ``(B, T, C, H, W)``; output ``(B, outputs)``.
    Source: Donahue et al., "Long-term Recurrent Convolutional Networks", arXiv 1411.4389.

    Args:
        frame: shape of a frame, ``(C, H, W)``.
        widths: channels of each convolutional stage.
        outputs: units of the last layer.
        kind: of recurrent layer, or ``mean``.
        width: features of a frame, and units of each direction.
        depth: recurrent layers; without meaning for ``mean``.
        bidirectional: also read backwards.
        norm: after each convolution.

    >>> CNNRNNNet((1, 16, 16), [4, 8], 3, "gru", width=6)(torch.zeros(2, 5, 1, 16, 16)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        frame: tuple[int, int, int],
        widths: Sequence[int],
        outputs: int,
        kind: Kind | Literal["mean"],
        width: int = 64,
        depth: int = 1,
        bidirectional: bool = False,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        channels, rows, columns = frame
        self.frames = FrameFeatures(channels, widths, rows, columns, width, norm)
        self.recurrent = None if kind == "mean" else Recurrent(kind, width, width, depth, bidirectional)
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(width if self.recurrent is None else self.recurrent.outputs, outputs)

    def forward(self, clips_btchw: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        x_btf = self.frames(clips_btchw)
        x = x_btf.mean(1) if self.recurrent is None else self.recurrent.summary(x_btf)
        y: Tensor = self.head(self.drop(x))
        return y


class CNNTransformerNet(nn.Module):
    """Features of each frame, transformer blocks over them, and a linear layer on their mean.

    Attention sees how far apart two frames are and which comes first (rotary positions): motion is a matter of
    distances in time, and clips of any length can be read.
    Input ``(B, T, C, H, W)``; output ``(B, outputs)``.
    Source: the factorised encoder of Arnab et al., "ViViT", arXiv 2103.15691, with a convolutional net for the frames
    and the positions of Su et al., "RoFormer", arXiv 2104.09864.

    Args:
        frame: shape of a frame, ``(C, H, W)``.
        widths: channels of each convolutional stage.
        outputs: units of the last layer.
        width: features of a frame, and of the residual stream.
        depth: blocks.
        heads: divides the width, by an even number.
        norm: after each convolution.

    >>> net = CNNTransformerNet((1, 16, 16), [4, 8], 3, width=8, depth=1, heads=2)
    >>> net(torch.zeros(2, 5, 1, 16, 16)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        frame: tuple[int, int, int],
        widths: Sequence[int],
        outputs: int,
        width: int,
        depth: int,
        heads: int,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        channels, rows, columns = frame
        self.frames = FrameFeatures(channels, widths, rows, columns, width, norm)
        self.rotary = Rotary(width // heads)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, clips_btchw: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        x_btd = self.frames(clips_btchw)
        rotation = self.rotary(torch.arange(x_btd.shape[1], device=x_btd.device), x_btd.dtype)
        for block in self.blocks:
            x_btd = block(x_btd, rotation=rotation)
        y: Tensor = self.head(self.norm(x_btd).mean(1))
        return y


def clip_facts(frames: int, channels: int, rows: int, columns: int, classes: int) -> DataFacts:
    """Facts of classified clips, on which sizes are counted."""
    return DataFacts(
        task="classification",
        inputs=(((frames, channels, rows, columns), torch.float32),),
        classes=tuple(map(str, range(classes))),
    )


def _frame(data: DataFacts) -> tuple[int, int, int]:
    channels, rows, columns = data.inputs[0][0][1:]
    return channels, rows, columns


def _check_channels(channels: Sequence[int], data: DataFacts) -> None:
    rows, columns = data.inputs[0][0][2:]
    if min(rows, columns) < 2 ** len(channels):
        raise RecipeError(
            f"{len(channels)} stages halve {rows} x {columns} pixels to nothing",
            path="channels",
            mend=f"use at most {min(rows, columns).bit_length() - 1} stages",
        )


def _batch_norm_exceptions(norm: Norm) -> Mapping[str, str]:
    reason = "batch norm takes its statistics over the frames it is given; norm=group has no such exception"
    return {"accumulation": reason, "two processes": reason} if norm == "batch" else {}


_TASKS = ("classification", "regression", "multi-label", "multi-task")
RNN_DEFAULTS = {"depth": 1, "width": 64}


@checked
class CNNRNN(Net):
    """Fills ``model`` with a CNN on each frame and recurrent layers over the frames, or their mean as a baseline."""

    channels: tuple[Annotated[int, Ge(1)], ...] = (16, 32, 64)
    """Channels of each convolutional stage; every stage halves the grid."""
    over_time: Literal["lstm", "gru", "rnn", "mean"] = "gru"
    """What reads the frames; mean does not see their order."""
    depth: Annotated[int, Ge(1)] | None = None
    """Recurrent layers; null takes 1."""
    width: Annotated[int, Ge(1)] | None = None
    """Features of a frame, and units of each direction; null takes 64."""
    bidirectional: bool = False
    """Also read backwards."""
    norm: Norm = "group"
    """After each convolution."""

    tasks: ClassVar[tuple[str, ...]] = _TASKS
    reads: ClassVar[tuple[Form, ...]] = ("clip",)
    sizes: ClassVar[Mapping[str, Size]] = {"default": Size(data=clip_facts(8, 1, 32, 32, 10))}
    paper: ClassVar[str] = "Donahue et al., arXiv 1411.4389"
    example: ClassVar[Mapping[str, Any]] = {"channels": (4, 8), "width": 8}

    def __post_init__(self) -> None:
        if not self.channels:
            raise RecipeError("needs at least one stage, got none", path="channels", mend="channels=[16, 32]")
        idle = [name for name in ("depth", "bidirectional") if getattr(self, name)]
        if self.over_time == "mean" and idle:
            raise RecipeError("has no effect on a mean over the frames", path=idle[0], mend="remove it")

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees the batch as a whole."""
        return _batch_norm_exceptions(self.norm)

    def value(self, name: str) -> int:
        """Depth or width: as given, or the default."""
        given: int | None = self.of(name)
        return RNN_DEFAULTS[name] if given is None else given

    def make(self, data: DataFacts, outputs: int) -> CNNRNNNet:
        """The network, sized to the data."""
        _check_channels(self.channels, data)
        return CNNRNNNet(
            _frame(data), self.channels, outputs, self.over_time, self.value("width"), self.value("depth"),
            self.bidirectional, self.norm,
        )  # fmt: skip

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Depth and width where they are not given."""
        figures = dial_figures(self, RNN_DEFAULTS)
        return tuple(f for f in figures if self.over_time != "mean" or f.name != "model.depth")


TRANSFORMER_DEFAULTS = {"depth": 2, "width": 64}


@checked
class CNNTransformer(Net):
    """Fills ``model`` with a CNN on each frame and transformer blocks over the frames."""

    channels: tuple[Annotated[int, Ge(1)], ...] = (16, 32, 64)
    """Channels of each convolutional stage; every stage halves the grid."""
    depth: Annotated[int, Ge(1)] | None = None
    """Transformer blocks; null takes 2."""
    width: Annotated[int, Ge(1)] | None = None
    """Features of a frame, and of the residual stream; null takes 64."""
    heads: Annotated[int, Ge(1)] | None = None
    """Attention heads; must divide the width by an even number; null takes one for about 32 of the width."""
    norm: Norm = "group"
    """After each convolution."""

    tasks: ClassVar[tuple[str, ...]] = _TASKS
    reads: ClassVar[tuple[Form, ...]] = ("clip",)
    sizes: ClassVar[Mapping[str, Size]] = {"default": Size(data=clip_facts(8, 1, 32, 32, 10))}
    paper: ClassVar[str] = "Arnab et al., arXiv 2103.15691; Su et al., arXiv 2104.09864"
    example: ClassVar[Mapping[str, Any]] = {"channels": (4, 8), "width": 8, "depth": 1, "heads": 2}

    def __post_init__(self) -> None:
        if not self.channels:
            raise RecipeError("needs at least one stage, got none", path="channels", mend="channels=[16, 32]")
        width, heads = self.value("width"), self.value("heads")
        check_heads(width, heads)
        if width // heads % 2:
            raise RecipeError(
                f"{heads} heads of {width // heads} each; rotary positions turn pairs, so a head's width must be even",
                path="width",
                mend=f"use a multiple of {2 * heads}",
            )

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees the batch as a whole."""
        return _batch_norm_exceptions(self.norm)

    def value(self, name: str) -> int:
        """Depth, width or heads: as given, else the default or what follows from the width."""
        given: int | None = self.of(name)
        if given is not None:
            return given
        return heads_for(self.value("width")) if name == "heads" else TRANSFORMER_DEFAULTS[name]

    def make(self, data: DataFacts, outputs: int) -> CNNTransformerNet:
        """The network, sized to the data."""
        _check_channels(self.channels, data)
        return CNNTransformerNet(
            _frame(data), self.channels, outputs, self.value("width"), self.value("depth"),
            self.value("heads"), self.norm,
        )  # fmt: skip

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Depth, width and heads where they are not given."""
        figures = dial_figures(self, TRANSFORMER_DEFAULTS)
        if self.heads is None:
            figures.append(heads_figure(self.value("width")))
        return tuple(figures)
