"""Feed-forward blocks: two linear layers with an activation between them, or a gated product.

Legend of shapes: ``D`` width, ``F`` hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS

FeedForwardName = Literal[
    "relu", "gelu", "gelu-tanh", "silu", "relu-squared", "glu", "swiglu", "geglu", "geglu-tanh", "reglu"
]  # fmt: skip


class FeedForward(nn.Module):
    """``down(activation(up x))``, ``(..., D)`` to ``(..., D)``.

    Args:
        width: ``D``.
        hidden: ``F``; by default ``4 D``.
        activation: makes the activation module.
        bias: of both layers.

    >>> import torch
    >>> FeedForward(8, activation=nn.ReLU)(torch.zeros(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(
        self, width: int, hidden: int | None = None, activation: Callable[[], nn.Module] = nn.GELU, bias: bool = True
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        self.up = nn.Linear(width, hidden, bias)
        self.activation = activation()
        self.drop = nn.Dropout(0.0)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., D)``."""
        y: Tensor = self.down(self.drop(self.activation(self.up(x))))
        return y


class GatedFeedForward(nn.Module):
    """``down(activation(gate x) * up x)``, ``(..., D)`` to ``(..., D)``.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.

    Args:
        width: ``D``.
        hidden: ``F``; by default ``8/3 D`` rounded up to a multiple of 8, so that three matrices hold about as
            many parameters as the two of :class:`FeedForward`.
        activation: of the gate: sigmoid for GLU, SiLU for SwiGLU, GELU for GeGLU, ReLU for ReGLU.
        bias: of all three layers.
    """

    def __init__(
        self, width: int, hidden: int | None = None, activation: Callable[[], nn.Module] = nn.SiLU, bias: bool = False
    ) -> None:
        super().__init__()
        hidden = hidden or gated_hidden(width)
        self.gate = nn.Linear(width, hidden, bias)
        self.up = nn.Linear(width, hidden, bias)
        self.activation = activation()
        self.drop = nn.Dropout(0.0)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., D)``."""
        y: Tensor = self.down(self.drop(self.activation(self.gate(x)) * self.up(x)))
        return y


PLAIN: dict[FeedForwardName, Callable[[], nn.Module]] = {
    "relu": ACTIVATIONS["relu"],
    "gelu": ACTIVATIONS["gelu"],
    "gelu-tanh": ACTIVATIONS["gelu-tanh"],
    "silu": ACTIVATIONS["silu"],
    "relu-squared": ACTIVATIONS["relu-squared"],
}
GATED: dict[FeedForwardName, Callable[[], nn.Module]] = {
    "glu": ACTIVATIONS["sigmoid"],
    "swiglu": ACTIVATIONS["silu"],
    "geglu": ACTIVATIONS["gelu"],
    "geglu-tanh": ACTIVATIONS["gelu-tanh"],
    "reglu": ACTIVATIONS["relu"],
}


def gated_hidden(width: int) -> int:
    """Units of a gated block where nobody says: ``8/3 D`` rounded up to a multiple of 8.

    >>> gated_hidden(64), gated_hidden(768)
    (176, 2048)
    """
    return -(-8 * width // 24) * 8


def feed_forward(name: FeedForwardName, width: int, hidden: int | None = None, bias: bool = True) -> nn.Module:
    """The block of this name.

    >>> feed_forward("swiglu", width=64).up.out_features
    176
    """
    if name in GATED:
        return GatedFeedForward(width, hidden, GATED[name], bias)
    if name in PLAIN:
        return FeedForward(width, hidden, PLAIN[name], bias)
    raise ValueError(f"unknown feed-forward block '{name}'; known: {', '.join([*PLAIN, *GATED])}")
