"""Normalisation by name, for grids and for vectors.

Legend of shapes: ``B`` samples, ``C`` channels, ``H`` rows, ``W`` columns, ``D`` width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "layer", "group", "rms", "none"]

MOST_GROUPS, CHANNELS_PER_GROUP = 32, 8


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm over the last axis, in the weight's precision, as autocast does for layer norm.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return super().forward(x.to(self.weight.dtype))


class GridLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each position of a grid ``(B, C, H, W)``.

    Source: Ba, Kiros and Hinton, arXiv 1607.06450; on grids: Liu et al., "ConvNeXt", arXiv 2201.03545.

    >>> import torch
    >>> GridLayerNorm(4)(torch.arange(8.0).view(1, 4, 2, 1)).mean(1).abs().max() < 1e-6
    tensor(True)
    """

    def forward(self, x_bchw: Tensor) -> Tensor:
        """The same shape."""
        return super().forward(x_bchw.movedim(1, -1)).movedim(-1, 1)


class GridRMSNorm(RMSNorm):
    """Root-mean-square norm over the channels of each position of a grid ``(B, C, H, W)``.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """

    def forward(self, x_bchw: Tensor) -> Tensor:
        """The same shape."""
        return super().forward(x_bchw.movedim(1, -1)).movedim(-1, 1)


def groups_for(channels: int) -> int:
    """The most groups, up to 32, that divide the channels into groups of at least 8; one group if there are none.

    Source: Wu and He, "Group Normalization", arXiv 1803.08494, which has 32 groups.

    >>> groups_for(512), groups_for(64), groups_for(20), groups_for(7)
    (32, 8, 2, 1)
    """
    most = min(MOST_GROUPS, max(1, channels // CHANNELS_PER_GROUP))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


def grid_norm(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """A norm for grids ``(B, C, H, W)``; layer and RMS norm work on each position by itself.

    Args:
        norm: its name; ``none`` gives the identity.
        channels: ``C``.
        eps: added to the variance.

    >>> grid_norm("group", 64).num_groups
    8
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels, eps)
    if norm == "layer":
        return GridLayerNorm(channels, eps)
    if norm == "group":
        return nn.GroupNorm(groups_for(channels), channels, eps)
    return GridRMSNorm(channels, eps) if norm == "rms" else nn.Identity()


def vector_norm(norm: Norm, width: int, eps: float = 1e-5) -> nn.Module:
    """A norm over the last axis: of vectors ``(B, D)``; layer and RMS norm also of grids ``(B, H, W, C)``.

    Args:
        norm: its name; ``batch`` and ``group`` take ``(B, D)`` only, ``none`` gives the identity.
        width: ``D``, or the channels ``C`` of a grid that has them last.
        eps: added to the variance.

    >>> import torch
    >>> vector_norm("rms", 2)(torch.tensor([[1.0, 7.0]]))
    tensor([[0.2000, 1.4000]], grad_fn=<...>)
    """
    if norm == "batch":
        return nn.BatchNorm1d(width, eps)
    if norm == "layer":
        return nn.LayerNorm(width, eps)
    if norm == "group":
        return nn.GroupNorm(groups_for(width), width, eps)
    return RMSNorm(width, eps) if norm == "rms" else nn.Identity()
