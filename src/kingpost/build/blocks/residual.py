"""Residual blocks: basic and bottleneck, with the norm after each convolution or before it.

Legend of shapes: ``B`` samples, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.build.blocks.convolution import ConvNormActivation
from kingpost.build.blocks.norms import Norm, grid_norm
from kingpost.build.blocks.squeeze_excite import SqueezeExcite
from kingpost.build.blocks.stochastic_depth import StochasticDepth

Shortcut = Literal["projection", "padding"]

EXPANSION = 4  # a bottleneck's outputs for each channel of its 3x3 convolution


@dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """What all blocks of one residual net have in common.

    Args:
        bottleneck: 1x1, 3x3, 1x1 convolutions, the last to four times the width; else 3x3, 3x3.
        preactivation: norm and activation before each convolution, and nothing after the sum.
        shortcut: where the shape changes, a 1x1 convolution (option B of the paper), or every other pixel with
            channels of zeros put in at the end (option A, without parameters).
        residual: False leaves out the shortcut and the sum: a plain net of the same depth.
        norm: of the convolutions.
        activation: after norms.
        squeeze_excite: reduction of a squeeze-and-excitation at the end of the branch; None for none.
        stride_first: a bottleneck halves the grid in its first convolution, as the paper has it; else in its 3x3,
            which sees all pixels and is what most implementations do.
    """

    bottleneck: bool = False
    preactivation: bool = False
    shortcut: Shortcut = "projection"
    residual: bool = True
    norm: Norm = "batch"
    activation: Activation = "relu"
    squeeze_excite: int | None = None
    stride_first: bool = False

    def outputs(self, width: int) -> int:
        """Channels that a block of this width gives."""
        return width * EXPANSION if self.bottleneck else width

    def convolutions(self, inputs: int, width: int, stride: int) -> list[tuple[int, int, int, int]]:
        """(inputs, outputs, kernel, stride) of each convolution of a block."""
        if not self.bottleneck:
            return [(inputs, width, 3, stride), (width, width, 3, 1)]
        first, middle = (stride, 1) if self.stride_first else (1, stride)
        return [(inputs, width, 1, first), (width, width, 3, middle), (width, width * EXPANSION, 1, 1)]


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, with channels of zeros put in at the end: ``(B, C, H, W)`` to ``(B, outputs, ...)``.

    >>> import torch
    >>> PaddedShortcut(2, 3, stride=2)(torch.ones(1, 2, 5, 5)).sum((2, 3)).tolist()
    [[9.0, 9.0, 0.0]]
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs < inputs:
            raise ValueError(f"outputs: got {outputs}, expected at least the {inputs} channels that come in")
        self.more, self.stride = outputs - inputs, stride

    def forward(self, x_bchw: Tensor) -> Tensor:
        """The shape of the branch."""
        return F.pad(x_bchw[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))

    def extra_repr(self) -> str:
        """For the print."""
        return f"more={self.more}, stride={self.stride}"


class ResidualBlock(nn.Module):
    """``activation(shortcut(x) + branch(x))``; each convolution of the branch is followed by a norm.

    ``(B, inputs, H, W)`` to ``(B, style.outputs(width), ceil(H / stride), ceil(W / stride))``.
    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385.

    Args:
        inputs: channels that come in.
        width: channels of the 3x3 convolutions.
        stride: step between pixels.
        style: what the blocks of a net have in common.

    >>> import torch
    >>> ResidualBlock(8, 4, 2, BlockStyle(bottleneck=True))(torch.zeros(2, 8, 7, 7)).shape
    torch.Size([2, 16, 4, 4])
    """

    def __init__(self, inputs: int, width: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        *hidden, last = style.convolutions(inputs, width, stride)
        self.branch = nn.Sequential(
            *(ConvNormActivation(*shape, norm=style.norm, activation=style.activation) for shape in hidden),
            ConvNormActivation(*last, norm=style.norm, activation=None),
        )
        outputs = style.outputs(width)
        self.squeeze_excite = _squeeze_excite(style, outputs)
        self.stochastic_depth = StochasticDepth() if style.residual else nn.Identity()
        self.shortcut: nn.Module | None = None
        if style.residual:
            projection = ConvNormActivation(inputs, outputs, 1, stride, norm=style.norm, activation=None)
            self.shortcut = _shortcut(style, inputs, outputs, stride, projection)
        self.activation = ACTIVATIONS[style.activation]()

    def forward(self, x_bchw: Tensor) -> Tensor:
        """The block's outputs."""
        y: Tensor = self.stochastic_depth(self.squeeze_excite(self.branch(x_bchw)))
        if self.shortcut is not None:
            y = y + self.shortcut(x_bchw)
        out: Tensor = self.activation(y)
        return out


class PreActivationBlock(nn.Module):
    """``shortcut(x) + branch(activation(norm(x)))``, and nothing after the sum; a projection sees what is activated.

    Shapes and arguments as in :class:`ResidualBlock`.
    Source: He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027.

    >>> import torch
    >>> PreActivationBlock(8, 16, 2, BlockStyle(preactivation=True))(torch.zeros(2, 8, 7, 7)).shape
    torch.Size([2, 16, 4, 4])
    """

    def __init__(self, inputs: int, width: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        bias = style.norm == "none"
        self.norm, self.activation = grid_norm(style.norm, inputs), ACTIVATIONS[style.activation]()
        first, *others = [
            nn.Conv2d(a, b, kernel, step, kernel // 2, bias=bias)
            for a, b, kernel, step in style.convolutions(inputs, width, stride)
        ]
        layers: list[nn.Module] = [first]
        for conv in others:
            layers += [grid_norm(style.norm, conv.in_channels), ACTIVATIONS[style.activation](), conv]
        self.branch = nn.Sequential(*layers)
        outputs = style.outputs(width)
        self.squeeze_excite = _squeeze_excite(style, outputs)
        self.stochastic_depth = StochasticDepth() if style.residual else nn.Identity()
        self.shortcut: nn.Module | None = None
        if style.residual:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=bias)
            self.shortcut = _shortcut(style, inputs, outputs, stride, projection)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """The block's outputs."""
        activated = self.activation(self.norm(x_bchw))
        y: Tensor = self.stochastic_depth(self.squeeze_excite(self.branch(activated)))
        if self.shortcut is not None:
            y = y + self.shortcut(activated if isinstance(self.shortcut, nn.Conv2d) else x_bchw)
        return y


def _squeeze_excite(style: BlockStyle, channels: int) -> nn.Module:
    return SqueezeExcite(channels, style.squeeze_excite) if style.squeeze_excite else nn.Identity()


def _shortcut(style: BlockStyle, inputs: int, outputs: int, stride: int, projection: nn.Module) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return projection if style.shortcut == "projection" else PaddedShortcut(inputs, outputs, stride)
