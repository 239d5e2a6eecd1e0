"""Convolution, norm and activation as one unit; pooling; He's starting weights.

Legend of shapes: ``B`` samples, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.build.blocks.norms import Norm, grid_norm

Pool = Literal["max", "average"]


class ConvNormActivation(nn.Sequential):
    """Convolution, norm, activation; the parts are ``conv``, ``norm`` and ``activation``.

    ``(B, inputs, H, W)`` to ``(B, outputs, ceil(H / stride), ceil(W / stride))`` for odd kernels and the default
    padding. The convolution has a bias only if there is no norm. Source: Ioffe and Szegedy, arXiv 1502.03167.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: side of the kernel, or (rows, columns).
        stride: step of the kernel.
        padding: zeros on each side; null for half the kernel, which keeps the grid at stride 1.
        groups: of channels that do not see each other.
        norm: after the convolution.
        activation: after the norm; None for none.
        eps: of the norm.

    >>> import torch
    >>> ConvNormActivation(3, 8, stride=2)(torch.zeros(2, 3, 7, 6)).shape
    torch.Size([2, 8, 4, 3])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        padding: int | None = None,
        *,
        groups: int = 1,
        norm: Norm = "batch",
        activation: Activation | None = "relu",
        eps: float = 1e-5,
    ) -> None:
        rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        around = (rows // 2, columns // 2) if padding is None else (padding, padding)
        parts: dict[str, nn.Module] = {
            "conv": nn.Conv2d(inputs, outputs, (rows, columns), stride, around, groups=groups, bias=norm == "none"),
            "norm": grid_norm(norm, outputs, eps),
            "activation": ACTIVATIONS[activation]() if activation else nn.Identity(),
        }
        super().__init__(OrderedDict(parts))


def pooling(kind: Pool, kernel: int = 2, stride: int | None = None, padding: int = 0, odd: bool = False) -> nn.Module:
    """The largest number or the mean of each window.

    Args:
        kind: ``max`` or ``average``; an average is over the pixels inside the image.
        kernel: side of the window.
        stride: step of the window; None for its side.
        padding: on each side.
        odd: a last row or column that does not fill a window has one of its own; else it is dropped.

    >>> import torch
    >>> pooling("average", odd=True)(torch.tensor([[[[1.0, 3.0, 8.0]]]]))
    tensor([[[[2., 8.]]]])
    """
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, padding, ceil_mode=odd)
    return nn.AvgPool2d(kernel, stride, padding, ceil_mode=odd, count_include_pad=False)


class GlobalPool(nn.Module):
    """The largest number or the mean of each channel, ``(B, C, H, W)`` to ``(B, C)``.

    Source: Lin, Chen and Yan, "Network In Network", arXiv 1312.4400.

    >>> import torch
    >>> GlobalPool("max")(torch.arange(8.0).view(1, 2, 2, 2))
    tensor([[3., 7.]])
    """

    def __init__(self, kind: Pool = "average") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(B, C)``."""
        return x_bchw.mean((2, 3)) if self.kind == "average" else x_bchw.amax((2, 3))

    def extra_repr(self) -> str:
        """For the print."""
        return self.kind


def adaptive_pooling(kind: Pool, rows: int, columns: int) -> nn.Module:
    """A grid of a given form from one of any form, each cell the largest number or the mean of its part.

    >>> import torch
    >>> adaptive_pooling("average", 2, 1)(torch.zeros(1, 3, 5, 7)).shape
    torch.Size([1, 3, 2, 1])
    """
    return nn.AdaptiveMaxPool2d((rows, columns)) if kind == "max" else nn.AdaptiveAvgPool2d((rows, columns))


def start_as_he(net: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / fan_out), and set their biases to zero.

    Keeps the variance of gradients through ReLU layers. Source: He et al., arXiv 1502.01852.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
