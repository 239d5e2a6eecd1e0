"""Activations by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

Activation = Literal[
    "relu", "leaky-relu", "prelu", "relu6", "relu-squared", "elu", "selu", "celu", "gelu", "gelu-tanh", "silu",
    "swish", "mish", "hardswish", "softplus", "softsign", "tanh", "hardtanh", "sigmoid", "hardsigmoid",
]  # fmt: skip


class SquaredReLU(nn.Module):
    """``max(x, 0) ** 2``. Source: So et al., "Primer", arXiv 2109.08668.

    >>> import torch
    >>> SquaredReLU()(torch.tensor([-1.0, 3.0])).tolist()
    [0.0, 9.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x.relu().square()


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "relu6": nn.ReLU6,
    "relu-squared": SquaredReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "gelu-tanh": functools.partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
}
