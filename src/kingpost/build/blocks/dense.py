"""Dense blocks: each layer reads what all layers before it have written.

Legend of shapes: ``B`` samples, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.build.blocks.convolution import pooling
from kingpost.build.blocks.norms import Norm, grid_norm

BOTTLENECK = 4  # channels of the 1x1 convolution for each one that a layer adds


class DenseLayer(nn.Module):
    """Norm, activation, convolution to ``growth`` channels, put behind those that came in.

    ``(B, inputs, H, W)`` to ``(B, inputs + growth, H, W)``.
    Source: Huang et al., "Densely Connected Convolutional Networks", arXiv 1608.06993.

    Args:
        inputs: channels that come in.
        growth: channels that are added.
        bottleneck: a 1x1 convolution to ``4 growth`` channels comes first.
        norm: before each convolution.
        activation: after each norm.

    >>> DenseLayer(8, 4)(torch.zeros(2, 8, 5, 5)).shape
    torch.Size([2, 12, 5, 5])
    """

    def __init__(
        self,
        inputs: int,
        growth: int,
        *,
        bottleneck: bool = True,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        middle = BOTTLENECK * growth
        squeeze = _norm_conv(inputs, middle, 1, norm, activation) if bottleneck else []
        self.branch = nn.Sequential(
            *squeeze,
            *_norm_conv(middle if bottleneck else inputs, growth, 3, norm, activation),
            nn.Dropout(0.0),
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        """What came in, and behind it what was added."""
        return torch.cat([x_bchw, self.branch(x_bchw)], 1)


def dense_block(
    inputs: int,
    growth: int,
    layers: int,
    *,
    bottleneck: bool = True,
    norm: Norm = "batch",
    activation: Activation = "relu",
) -> nn.Sequential:
    """Dense layers in a row: ``(B, inputs, H, W)`` to ``(B, inputs + layers * growth, H, W)``."""
    return nn.Sequential(
        *(
            DenseLayer(inputs + index * growth, growth, bottleneck=bottleneck, norm=norm, activation=activation)
            for index in range(layers)
        )
    )


def transition(inputs: int, outputs: int, *, norm: Norm = "batch", activation: Activation = "relu") -> nn.Sequential:
    """Between dense blocks: norm, activation, 1x1 convolution, 2x2 average; an odd row or column is dropped.

    ``(B, inputs, H, W)`` to ``(B, outputs, H // 2, W // 2)``.

    >>> transition(8, 4)(torch.zeros(2, 8, 5, 6)).shape
    torch.Size([2, 4, 2, 3])
    """
    return nn.Sequential(*_norm_conv(inputs, outputs, 1, norm, activation), pooling("average"))


def _norm_conv(inputs: int, outputs: int, kernel: int, norm: Norm, activation: Activation) -> list[nn.Module]:
    return [
        grid_norm(norm, inputs),
        ACTIVATIONS[activation](),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=norm == "none"),
    ]
