"""Capsule networks for images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.blocks.capsules import (
    AttentionCapsules,
    Decoder,
    PrimaryCapsules,
    RoutedCapsules,
    log_odds_of_length,
)
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, image_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

Routing = Literal["agreement", "self-attention"]


class CapsuleNet(nn.Module):
    """Convolutions, primary capsules, and one capsule a class, whose length says whether the class is there.

    Input ``(B, channels, H, W)``; output ``(B, outputs)``: the log odds of the lengths, so that ``output.sigmoid()`` is
    the length. Source: Sabour, Frosst and Hinton, arXiv 1710.09829; with ``self-attention``, Mazzia, Salvetti and
    Chiaberge, arXiv 2101.12491.

    Args:
        shape: of an input: channels, rows, columns.
        outputs: number of classes.
        channels: of each convolution.
        kernels: size of each convolution.
        stride: of the last convolution.
        norm: batch norm after each convolution.
        primary: kinds of primary capsules; not used if ``primary_kernel`` is 0.
        primary_kernel: their convolution's size; 0 covers the whole grid, one channel at a time.
        primary_stride: its stride.
        primary_dimension: units of a primary capsule.
        dimension: units of a class capsule.
        routing: how class capsules are reached.
        iterations: of routing by agreement.

    >>> net = CapsuleNet((1, 12, 12), 10, channels=[8], kernels=[5], primary=2, primary_kernel=3)
    >>> net(torch.zeros(2, 1, 12, 12)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        channels: Sequence[int],
        kernels: Sequence[int],
        stride: int = 1,
        norm: bool = False,
        primary: int = 32,
        primary_kernel: int = 9,
        primary_stride: int = 2,
        primary_dimension: int = 8,
        dimension: int = 16,
        routing: Routing = "agreement",
        iterations: int = 3,
    ) -> None:
        super().__init__()
        if not channels or len(channels) != len(kernels):
            raise ValueError(f"got {len(channels)} channels and {len(kernels)} kernels, expected as many, and some")
        layers: list[nn.Module] = []
        for (a, b), kernel in zip(itertools.pairwise([shape[0], *channels]), kernels, strict=True):
            last = len(layers) // (3 if norm else 2) == len(channels) - 1
            layers += [nn.Conv2d(a, b, kernel, stride if last else 1), nn.ReLU()] + [nn.BatchNorm2d(b)] * norm
        self.stem = nn.Sequential(*layers)
        grid = grid_after(shape[1:], kernels, stride)
        whole, attention = primary_kernel == 0, routing == "self-attention"
        kernel_2d = grid if whole else (primary_kernel, primary_kernel)
        self.primary = PrimaryCapsules(
            channels[-1], primary, primary_dimension, kernel_2d, primary_stride, depthwise=whole, exponential=attention
        )
        places = [(side - kernel) // primary_stride + 1 for side, kernel in zip(grid, kernel_2d, strict=True)]
        kinds = channels[-1] // primary_dimension if whole else primary
        inputs = kinds * places[0] * places[1]
        self.classes: RoutedCapsules | AttentionCapsules = (
            AttentionCapsules(inputs, primary_dimension, outputs, dimension)
            if attention
            else RoutedCapsules(inputs, primary_dimension, outputs, dimension, iterations)
        )
        self.decoder: Decoder | None = None

    def capsules(self, x: Tensor) -> Tensor:
        """One capsule a class, ``(B, classes, dimension)``."""
        capsules: Tensor = self.classes(self.primary(self.stem(x)))
        return capsules

    def forward(self, x: Tensor, rebuild: Tensor | None = None) -> Tensor:
        """Log odds ``(B, classes)``; with ``rebuild``, the input as the decoder sees it, flat, is put behind them.

        Args:
            x: images.
            rebuild: the classes ``(B,)``, or shares of them ``(B, classes)``, whose capsules the decoder reads.
        """
        capsules = self.capsules(x)
        scores = log_odds_of_length(capsules)
        if rebuild is None:
            return scores
        if self.decoder is None:
            raise RuntimeError("this net has no decoder; add the technique 'reconstruction'")
        return torch.cat([scores, self.decoder(capsules, rebuild).to(scores.dtype)], 1)


def grid_after(sides: Sequence[int], kernels: Sequence[int], stride: int) -> tuple[int, int]:
    """Rows and columns after convolutions without padding, the last one with a stride.

    >>> grid_after((28, 28), (5, 3, 3, 3), stride=2)
    (9, 9)
    """
    before = [side - sum(kernel - 1 for kernel in kernels[:-1]) for side in sides]
    rows, columns = ((side - kernels[-1]) // stride + 1 for side in before)
    return rows, columns


_MNIST = image_facts(1, 28, 28, 10)


@checked
class Capsule(Net):
    """Fills ``model`` with a capsule network. Its outputs are log odds of the capsules' lengths.

    It trains with the task's own loss as well as with the technique ``margin-loss``, which is the papers'; the
    technique ``reconstruction`` adds the decoder. Fails on pictures with much background, which capsules also try to
    explain, and is slow for what it reaches.
    """

    size: Literal["small", "efficient-capsnet", "capsnet"] | None = "small"
    """A named size; what is given beside it goes before."""
    channels: tuple[Annotated[int, Ge(1)], ...] | None = None
    """Of each convolution."""
    kernels: tuple[Annotated[int, Ge(1)], ...] | None = None
    """Size of each convolution."""
    stride: Annotated[int, Ge(1)] | None = None
    """Of the last convolution."""
    norm: Literal["batch", "none"] | None = None
    """After each convolution."""
    primary: Annotated[int, Ge(1)] | None = None
    """Kinds of primary capsules at each place."""
    primary_kernel: Annotated[int, Ge(0)] | None = None
    """Size of their convolution; 0 covers the whole grid, one channel at a time, and makes channels / 8 kinds."""
    primary_stride: Annotated[int, Ge(1)] | None = None
    """Stride of their convolution."""
    dimension: Annotated[int, Ge(1)] | None = None
    """Units of a class capsule; a primary one has 8."""
    routing: Routing | None = None
    """``agreement``, in several iterations, or ``self-attention``, in one pass."""
    iterations: Annotated[int, Ge(1)] | None = None
    """Of routing by agreement."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label")
    reads: ClassVar[tuple[Form, ...]] = ("image",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(
            fields={"channels": (32,), "kernels": (5,), "stride": 2, "norm": "none", "primary": 8, "primary_kernel": 5,
                    "primary_stride": 2, "dimension": 16, "routing": "agreement", "iterations": 3},
            data=_MNIST,
        ),
        "efficient-capsnet": Size(
            fields={"channels": (32, 64, 64, 128), "kernels": (5, 3, 3, 3), "stride": 2, "norm": "batch",
                    "primary_kernel": 0, "primary_stride": 1, "dimension": 16, "routing": "self-attention"},
            data=_MNIST,
            parameters=161_824,
            source="Mazzia, Salvetti and Chiaberge, arXiv 2101.12491 (161K; counted exactly in the published code)",
        ),
        "capsnet": Size(
            fields={"channels": (256,), "kernels": (9,), "stride": 1, "norm": "none", "primary": 32,
                    "primary_kernel": 9, "primary_stride": 2, "dimension": 16, "routing": "agreement", "iterations": 3},
            data=_MNIST,
            parameters=6_804_224,
            source="Sabour, Frosst and Hinton, arXiv 1710.09829 (6.8M without, 8.2M = 8,215,568 with the decoder)",
        ),
    }  # fmt: skip
    paper: ClassVar[str] = "Sabour, Frosst and Hinton, arXiv 1710.09829; Mazzia et al., arXiv 2101.12491"
    example: ClassVar[Mapping[str, object]] = {
        "channels": (8,), "kernels": (3,), "stride": 1, "primary": 2, "primary_kernel": 3, "dimension": 4
    }  # fmt: skip

    def __post_init__(self) -> None:
        fields = self._fields()
        unused = {"primary"} if fields["primary_kernel"] == 0 else set[str]()
        unused |= {"iterations"} if fields["routing"] == "self-attention" else set()
        if missing := [name for name, value in fields.items() if value is None and name not in unused]:
            raise RecipeError(f"not given, and there is no size: {', '.join(missing)}", path="size", mend="size=small")
        if not fields["channels"] or len(fields["channels"]) != len(fields["kernels"]):
            raise RecipeError(
                f"got {len(fields['kernels'])} for {len(fields['channels'])} channels",
                path="kernels",
                mend="give as many kernels as channels, at least one",
            )
        if fields["routing"] != "agreement" and self.iterations is not None:
            raise RecipeError(f"no effect with routing={fields['routing']}", path="iterations", mend="leave it out")
        if fields["primary_kernel"] == 0:
            if self.primary is not None:
                raise RecipeError("no effect with primary_kernel=0", path="primary", mend="set channels instead")
            if fields["channels"][-1] % 8:
                raise RecipeError(
                    f"the last is {fields['channels'][-1]}, which 8 units of a capsule do not divide",
                    path="channels",
                    mend=f"use {8 * max(1, round(fields['channels'][-1] / 8))}",
                )

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees the batch as a whole."""
        reason = "batch norm takes its statistics over the samples it is given; norm=none has no such exception"
        return {"accumulation": reason, "two processes": reason} if self.of("norm") == "batch" else {}

    def make(self, data: DataFacts, outputs: int) -> CapsuleNet:
        """The network, sized to the data."""
        fields, shape = self._fields(), data.inputs[0][0]
        grid = grid_after(shape[1:], fields["kernels"], fields["stride"])
        if min(grid) < max(1, fields["primary_kernel"]):
            raise RecipeError(
                f"the convolutions leave {grid[0]} x {grid[1]} of {shape[1]} x {shape[2]} pixels, too few for a "
                f"primary kernel of {fields['primary_kernel']}",
                path="kernels",
                mend="use smaller kernels or strides",
            )
        given = {name: value for name, value in fields.items() if value is not None}
        return CapsuleNet(shape, outputs, **{**given, "norm": fields["norm"] == "batch"})

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """The grid, and the number of capsules that are routed."""
        fields, (_, rows, columns) = self._fields(), data.inputs[0][0]
        grid = grid_after((rows, columns), fields["kernels"], fields["stride"])
        kernel = fields["primary_kernel"]
        places = [(side - (kernel or side)) // fields["primary_stride"] + 1 for side in grid]
        kinds = fields["primary"] if kernel else fields["channels"][-1] // 8
        reason = f"{kinds} kinds at {places[0]} x {places[1]} places, 8 units each"
        taken = tuple(
            Figure(f"model.{name}", str(value), "", f"of size {self.size}")
            for name, value in fields.items()
            if getattr(self, name) is None and value is not None
        )
        return (*taken, Figure("primary capsules", kinds * places[0] * places[1], "", reason))

    def _fields(self) -> dict[str, Any]:
        names = ("channels", "kernels", "stride", "norm", "primary", "primary_kernel", "primary_stride", "dimension")
        return {name: self.of(name) for name in (*names, "routing", "iterations")}
