"""The vision transformer: an image as a sequence of patches.

Legend of shapes: ``B`` images, ``P`` patches, ``D`` width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.blocks.transformer import TransformerBlock
from kingpost.build.heads import check_heads, default_figures, heads_figure, heads_for
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, image_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

DEPTH, WIDTH = 6, 96  # where nothing is given
ViTPooling = Literal["class", "mean"]


class PatchEmbedding(nn.Module):
    """Cuts images into squares and projects each: ``(B, channels, rows, columns)`` to ``(B, P, D)``.

    Args:
        channels: of the images.
        width: ``D``.
        patch: pixels a side of a square; must divide rows and columns.

    >>> PatchEmbedding(3, width=8, patch=4)(torch.zeros(2, 3, 12, 16)).shape
    torch.Size([2, 12, 8])
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Row by row, from the top left."""
        rows, columns = x.shape[2:]
        if rows % self.patch or columns % self.patch:
            raise ValueError(
                f"images of {rows} x {columns} pixels cannot be cut into patches of {self.patch} x {self.patch}; "
                f"resize or crop them to {rows // self.patch * self.patch} x {columns // self.patch * self.patch}"
            )
        y_bpd: Tensor = self.project(x).flatten(2).transpose(1, 2)
        return y_bpd


class ViTNet(nn.Module):
    """Patches with learned positions, pre-norm transformer blocks, a last norm, and one linear layer.

    Input ``(B, channels, rows, columns)`` of exactly the size given here; output ``(B, outputs)``.
    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929.

    Args:
        shape: channels, rows and columns of the images.
        patch: pixels a side of a patch.
        depth: blocks.
        width: ``D``.
        heads: of attention.
        outputs: units of the last layer.
        pooling: what the last layer sees: a class vector that runs along with the patches, or the patches' mean.

    >>> ViTNet((1, 28, 28), patch=4, depth=1, width=32, heads=2, outputs=10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int,
        depth: int,
        width: int,
        heads: int,
        outputs: int,
        pooling: ViTPooling = "class",
    ) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.shape = (channels, rows, columns)
        self.patches = PatchEmbedding(channels, width, patch)
        self.class_vector = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "class" else None
        extra = 0 if self.class_vector is None else 1
        self.positions = nn.Parameter(torch.zeros(1, (rows // patch) * (columns // patch) + extra, width))
        self.drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, outputs)
        self._start()

    def _start(self) -> None:
        """Xavier for the blocks, a small head, so that training starts near chance."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, outputs)``."""
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"made for images {self.shape}, got {tuple(x.shape[1:])}; resize them, or make another net"
            )
        x_bpd = self.patches(x)
        if self.class_vector is not None:
            x_bpd = torch.cat([self.class_vector.expand(len(x), -1, -1), x_bpd], 1)
        x_bpd = self.drop(x_bpd + self.positions)
        for block in self.blocks:
            x_bpd = block(x_bpd)
        x_bpd = self.norm(x_bpd)
        y: Tensor = self.head(x_bpd.mean(1) if self.class_vector is None else x_bpd[:, 0])
        return y


def patch_for(rows: int, columns: int) -> int | None:
    """The patch that cuts the shorter side into 8, between 2 and 16 pixels; the nearest that divides both sides.

    None if none divides them that is at most twice as large or small.

    >>> patch_for(28, 28), patch_for(32, 32), patch_for(224, 224), patch_for(29, 29)
    (4, 4, 16, None)
    """
    wanted = min(16.0, max(2.0, min(rows, columns) / 8))
    fits = [p for p in _patches(rows, columns) if wanted / 2 <= p <= wanted * 2]
    return min(fits, key=lambda p: abs(math.log(p / wanted)), default=None)


def _patches(rows: int, columns: int) -> list[int]:
    both = math.gcd(rows, columns)
    return [p for p in range(1, both + 1) if both % p == 0]


def _published(patch: int, depth: int, width: int, parameters: int) -> Size:
    return Size(
        fields={"patch": patch, "depth": depth, "width": width},
        data=image_facts(3, 224, 224, 1000),
        parameters=parameters,
        source="timm, vit_*_patch*_224; the tiny and small shapes from Touvron et al., arXiv 2012.12877",
    )


@checked
class ViT(Net):
    """Fills ``model`` with a vision transformer."""

    depth: Annotated[int, Ge(1)] | None = None
    """Blocks; null = that of the size, else 6."""
    width: Annotated[int, Ge(1)] | None = None
    """Of the patches' vectors; null = that of the size, else 96."""
    heads: Annotated[int, Ge(1)] | None = None
    """Of attention, a divisor of the width; null derives them from it."""
    patch: Annotated[int, Ge(1)] | None = None
    """Pixels a side of a patch, a divisor of rows and columns; null = that of the size, else derived."""
    pooling: ViTPooling = "class"
    """What the last layer sees: a class vector that runs along, or the mean of all patches."""
    size: Literal["small", "Ti/16", "S/16", "B/16", "B/32", "L/16"] | None = None
    """A named size; fields given beside it win."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label", "multi-task")
    reads: ClassVar[tuple[Form, ...]] = ("image",)
    example: ClassVar[Mapping[str, object]] = {"depth": 1, "width": 8, "heads": 2, "patch": 4}
    sizes: ClassVar[Mapping[str, Size]] = {
        "default": Size(data=image_facts(1, 28, 28, 10)),
        "small": Size(fields={"depth": 8, "width": 192}, data=image_facts(3, 32, 32, 10)),
        "Ti/16": _published(16, 12, 192, 5_717_416),
        "S/16": _published(16, 12, 384, 22_050_664),
        "B/16": _published(16, 12, 768, 86_567_656),
        "B/32": _published(32, 12, 768, 88_224_232),
        "L/16": _published(16, 24, 1024, 304_326_632),
    }
    paper: ClassVar[str] = "Dosovitskiy et al., arXiv 2010.11929"

    def __post_init__(self) -> None:
        if self.heads is not None:
            check_heads(self.of("width") or WIDTH, self.heads)

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Patch and heads, where they were not given."""
        _, rows, columns = data.inputs[0][0]
        figures = [*default_figures(self, depth=DEPTH, width=WIDTH)]
        if self.of("patch") is None:
            reason = f"cuts {rows} x {columns} pixels into about 8 x 8, and divides both sides"
            figures.append(Figure("model.patch", self._patch(rows, columns), "pixels", reason))
        if self.heads is None:
            figures.append(heads_figure(self.of("width") or WIDTH))
        return tuple(figures)

    def make(self, data: DataFacts, outputs: int) -> ViTNet:
        """The network, sized to the data."""
        shape = data.inputs[0][0]
        depth, width = self.of("depth") or DEPTH, self.of("width") or WIDTH
        return ViTNet(
            shape, self._patch(*shape[1:]), depth, width, self.heads or heads_for(width), outputs, self.pooling
        )

    def _patch(self, rows: int, columns: int) -> int:
        patch: int | None = self.of("patch") or patch_for(rows, columns)
        if patch is not None and not (rows % patch or columns % patch):
            return patch
        known = ", ".join(map(str, _patches(rows, columns)))
        what = "no patch of a sensible size divides" if patch is None else f"patches of {patch} pixels do not divide"
        raise RecipeError(
            f"{what} images of {rows} x {columns}",
            path="patch",
            mend=f"these do: {known}; or resize the images, to multiples of 4 for example",
        )
