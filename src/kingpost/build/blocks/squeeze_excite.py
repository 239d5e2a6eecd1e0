"""Squeeze and excitation: each channel is weighed by what all channels see on average."""

from __future__ import annotations

from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation

LEAST_UNITS = 4  # with fewer, the gate of a narrow net hears nearly nothing


class SqueezeExcite(nn.Module):
    """``x * gate(W2 a(W1 mean(x)))``, the mean over the grid; ``(B, C, H, W)`` to the same.

    Source: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", arXiv 1709.01507.

    Args:
        channels: ``C``.
        reduction: the hidden layer has ``C / reduction`` units, rounded down, and at least 4.
        units: of the hidden layer, if it is to be something else.
        activation: ``a``.
        gate: ends in 0..1.

    >>> import torch
    >>> SqueezeExcite(32)(torch.zeros(2, 32, 5, 5)).shape
    torch.Size([2, 32, 5, 5])
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        units: int | None = None,
        activation: Activation = "relu",
        gate: Activation = "sigmoid",
    ) -> None:
        super().__init__()
        units = units or max(LEAST_UNITS, channels // reduction)
        self.squeeze, self.activation = nn.Linear(channels, units), ACTIVATIONS[activation]()
        self.excite, self.gate = nn.Linear(units, channels), ACTIVATIONS[gate]()

    def forward(self, x_bchw: Tensor) -> Tensor:
        """The same shape."""
        weights_bc = self.gate(self.excite(self.activation(self.squeeze(x_bchw.mean((2, 3))))))
        y: Tensor = x_bchw * weights_bc[:, :, None, None]
        return y
