"""Batches of whole graphs: one disjoint union of them, norms that leave padding out, and pooling of the nodes.

Legend of shapes: ``B`` graphs, ``N`` nodes and ``E`` edges of the largest, ``F`` features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "sum", "max", "attention"]


def disjoint_union(x_bnf: Tensor, edges_be2: Tensor) -> tuple[Tensor, Tensor]:
    """All graphs of a batch as one: nodes ``(B N + 1, F)``, edges ``(2, B E)``.

    The last node is a sink: an edge with a negative end is filling, and becomes a loop there, so that no shape
    depends on how many edges a graph has.

    >>> x, edges = disjoint_union(torch.zeros(2, 3, 4), torch.tensor([[[0, 1]], [[-1, -1]]]))
    >>> x.shape, edges.tolist()
    (torch.Size([7, 4]), [[0, 6], [1, 6]])
    """
    b, n, f = x_bnf.shape
    first = torch.arange(b, device=x_bnf.device)[:, None, None] * n
    filling = (edges_be2 < 0).any(-1, keepdim=True)
    edges = torch.where(filling, b * n, edges_be2 + first)
    return torch.cat([x_bnf.reshape(b * n, f), x_bnf.new_zeros(1, f)]), edges.reshape(-1, 2).T


class NodeBatchNorm(nn.BatchNorm1d):
    """Batch norm over the nodes that are real; with no padding it is ``nn.BatchNorm1d``.

    Source: Ioffe and Szegedy, arXiv 1502.03167.
    """

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """``(N, F)`` to ``(N, F)``; ``real`` is ``(N,)`` bool."""
        if real is None or not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        wide, part = x.to(self.running_mean.dtype), real[:, None].to(self.running_mean.dtype)
        nodes = part.sum().clamp(min=1)
        mean = (wide * part).sum(0) / nodes
        variance = ((wide - mean).square() * part).sum(0) / nodes
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * nodes / (nodes - 1).clamp(min=1), self.momentum)
        return ((wide - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)


class GraphPool(nn.Module):
    """One vector for each graph: the mean, sum or maximum over its real nodes, or a mean weighted by attention.

    Attention: softmax over the nodes of ``g . h``. Source of that: Li et al., arXiv 1511.05493, equation 7.

    Args:
        width: features of a node.
        pooling: how.

    >>> pool, real = GraphPool(4, "mean"), torch.tensor([[True, False]])
    >>> pool(torch.tensor([[[1.0] * 4, [9.0] * 4]]), real).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, width: int, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        self.gate = nn.Linear(width, 1, bias=False) if pooling == "attention" else None

    def forward(self, h_bnf: Tensor, real_bn: Tensor) -> Tensor:
        """``(B, N, F)`` to ``(B, F)``; a graph without nodes gives zeros."""
        real = real_bn[..., None]
        if self.pooling == "max":
            return h_bnf.masked_fill(~real, -torch.inf).amax(1).masked_fill(~real.any(1), 0.0)
        weights = real.to(torch.promote_types(h_bnf.dtype, torch.float32))
        if self.gate is not None:
            scores = self.gate(h_bnf).to(weights.dtype).masked_fill(~real, torch.finfo(weights.dtype).min)
            weights = scores.softmax(1) * weights
        elif self.pooling == "mean":
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        return (h_bnf * weights).sum(1).to(h_bnf.dtype)
