"""Convolutions on graphs: GCN, GAT (both versions), GraphSAGE and GIN.

Legend of shapes: ``N`` nodes, ``E`` edges, ``H`` heads, ``D`` features of a head. All take features ``(N, inputs)``
and edges ``(2, E)`` int64, from row 0 to row 1, and give ``(N, outputs)``. An edge that stands twice counts twice.
No shape depends on values, so they can be compiled, exported and run on tensors without memory.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation

Aggregation = Literal["mean", "max", "sum"]


class GCN(nn.Module):
    """Sum over neighbours and the node itself of ``W x_j / sqrt(d_i d_j)``, plus a bias.

    ``d`` counts incoming edges and one loop at each node; loops in the edges are not counted again.
    Source: Kipf and Welling, arXiv 1609.02907, equation 2.

    Args:
        inputs: features of a node.
        outputs: features that it gets.

    >>> GCN(3, 4)(torch.zeros(5, 3), torch.tensor([[0, 1], [1, 0]])).shape
    torch.Size([5, 4])
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = _glorot(nn.Linear(inputs, outputs, bias=False))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """``(N, inputs)`` to ``(N, outputs)``."""
        nodes = len(x)
        (source, target), counts = with_loops(edges, nodes)
        weight = counts.to(torch.promote_types(x.dtype, torch.float32))  # half precision cannot count beyond 256
        scale = gathered(weight, target, nodes).rsqrt()
        weight = weight * scale.index_select(0, source) * scale.index_select(0, target)
        h = self.linear(x)
        return gathered(h.index_select(0, source) * weight[:, None].to(h.dtype), target, nodes) + self.bias


class GAT(nn.Module):
    """Sum over neighbours and the node itself of ``a_ij W x_j``, the weights by attention.

    ``a_ij`` is the softmax over j of ``e_ij``. Version 1: ``e_ij = leaky_relu(s . W x_j + t . W x_i)``, in which all
    nodes rank their neighbours alike. Version 2: ``e_ij = s . leaky_relu(W x_j + b + V x_i + c)``, which ranks anew for
    each node, with twice the weights. The slope of the leaky ReLU is 0.2.
    Source: Veličković et al., arXiv 1710.10903; version 2 by Brody, Alon and Yahav, arXiv 2105.14491.

    Args:
        inputs: features of a node.
        outputs: features that it gets, of all heads together.
        heads: weightings side by side; divides the outputs unless they are averaged.
        version: 1 or 2.
        average: the mean over heads instead of all side by side.

    >>> GAT(3, 8, heads=2)(torch.zeros(5, 3), torch.tensor([[0, 1], [1, 0]])).shape
    torch.Size([5, 8])
    """

    def __init__(
        self, inputs: int, outputs: int, heads: int = 1, version: Literal[1, 2] = 1, average: bool = False
    ) -> None:
        super().__init__()
        if not average and outputs % heads:
            raise ValueError(f"heads: got {heads}, which does not divide the outputs {outputs}; use average=True")
        self.heads, self.version, self.average = heads, version, average
        width = outputs if average else outputs // heads
        self.source = _glorot(nn.Linear(inputs, heads * width, bias=version == 2))
        self.target = _glorot(nn.Linear(inputs, heads * width)) if version == 2 else None
        self.attend_source = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width)))
        self.attend_target = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width))) if version == 1 else None
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """``(N, inputs)`` to ``(N, outputs)``."""
        nodes = len(x)
        (source, target), counts = with_loops(edges, nodes)
        h_nhd = self.source(x).unflatten(1, (self.heads, -1))
        h_ehd = h_nhd.index_select(0, source)
        if self.attend_target is not None:
            of_source = (h_nhd * self.attend_source).sum(-1).index_select(0, source)
            of_target = (h_nhd * self.attend_target).sum(-1).index_select(0, target)
            scores_eh = F.leaky_relu(of_source + of_target, 0.2)
        else:
            assert self.target is not None
            asks_ehd = self.target(x).unflatten(1, (self.heads, -1)).index_select(0, target)
            scores_eh = (F.leaky_relu(h_ehd + asks_ehd, 0.2) * self.attend_source).sum(-1)
        weights_eh = self.drop(edge_softmax(scores_eh.masked_fill(~counts[:, None], -torch.inf), target, nodes))
        y_nhd = gathered(h_ehd * weights_eh[..., None].to(h_ehd.dtype), target, nodes)
        return (y_nhd.mean(1) if self.average else y_nhd.flatten(1)) + self.bias


class GraphSAGE(nn.Module):
    """``W m_i + b + V x_i``, where m is the mean, maximum or sum over the neighbours' features; zero without any.

    Loops in the edges make a node its own neighbour. Source: Hamilton, Ying and Leskovec, arXiv 1706.02216
    (without its scaling of the outputs to length one).

    Args:
        inputs: features of a node.
        outputs: features that it gets.
        aggregation: over the neighbours.

    >>> GraphSAGE(3, 4)(torch.zeros(5, 3), torch.tensor([[0, 1], [1, 0]])).shape
    torch.Size([5, 4])
    """

    def __init__(self, inputs: int, outputs: int, aggregation: Aggregation = "mean") -> None:
        super().__init__()
        self.aggregation = aggregation
        self.neighbours = nn.Linear(inputs, outputs)
        self.own = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """``(N, inputs)`` to ``(N, outputs)``."""
        y: Tensor = self.neighbours(aggregate(x, edges, self.aggregation)) + self.own(x)
        return y


class GIN(nn.Module):
    """A perceptron on ``(1 + eps) x_i`` plus the sum over the neighbours' features.

    With enough width it tells apart all graphs that the Weisfeiler-Lehman test tells apart; mean and maximum do not.
    Source: Xu et al., arXiv 1810.00826, equation 4.1.

    Args:
        inputs: features of a node.
        outputs: features that it gets.
        hidden: units of the perceptron's hidden layer; by default as many as outputs.
        learn_eps: learn eps, which starts at 0; else it stays there.
        activation: of the hidden layer.

    >>> GIN(3, 4)(torch.zeros(5, 3), torch.tensor([[0, 1], [1, 0]])).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int | None = None,
        learn_eps: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        hidden = hidden or outputs
        self.eps = nn.Parameter(torch.zeros(1)) if learn_eps else None
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """``(N, inputs)`` to ``(N, outputs)``."""
        own = x if self.eps is None else (1 + self.eps).to(x.dtype) * x
        y: Tensor = self.layers(own + aggregate(x, edges, "sum"))
        return y


def with_loops(edges: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """The edges and then one loop at each node ``(2, E + N)``, and which of them count: all but the given loops.

    >>> edges, counts = with_loops(torch.tensor([[0, 1], [1, 1]]), nodes=2)
    >>> edges.tolist(), counts.tolist()
    ([[0, 1, 0, 1], [1, 1, 0, 1]], [True, False, True, True])
    """
    loops = torch.arange(nodes, device=edges.device)
    counts = torch.cat([edges[0] != edges[1], torch.ones_like(loops, dtype=torch.bool)])
    return torch.cat([edges, loops.expand(2, nodes)], 1), counts


def gathered(messages: Tensor, target: Tensor, nodes: int) -> Tensor:
    """Sum of the messages ``(E, ...)`` that arrive at each node, ``(N, ...)``; added up in 32 bits at least."""
    wide = torch.promote_types(messages.dtype, torch.float32)
    sums = messages.new_zeros(nodes, *messages.shape[1:], dtype=wide)
    return sums.index_add(0, target, messages.to(wide)).to(messages.dtype)


def aggregate(x: Tensor, edges: Tensor, how: Aggregation) -> Tensor:
    """Mean, maximum or sum of the neighbours' features, ``(N, F)``; zero at a node that no edge goes to.

    >>> aggregate(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1, 2], [0, 0]]), "mean").tolist()
    [[3.0], [0.0], [0.0]]
    """
    source, target = edges
    messages = x.index_select(0, source)
    if how == "max":
        where = target[:, None].expand_as(messages)
        return torch.zeros_like(x).scatter_reduce(0, where, messages, "amax", include_self=False)
    sums = gathered(messages, target, len(x))
    if how == "sum":
        return sums
    ones = torch.ones_like(target, dtype=torch.promote_types(x.dtype, torch.float32))
    return sums / gathered(ones, target, len(x)).clamp(min=1).to(sums.dtype)[:, None]


def edge_softmax(scores_eh: Tensor, target: Tensor, nodes: int) -> Tensor:
    """Softmax over the edges that arrive at the same node, ``(E, H)``, in 32 bits at least.

    At each node at least one score must be finite.
    """
    scores_eh = scores_eh.to(torch.promote_types(scores_eh.dtype, torch.float32))
    where = target[:, None].expand_as(scores_eh)
    lowest = scores_eh.new_full((nodes, scores_eh.shape[1]), -torch.inf)
    highest = lowest.scatter_reduce(0, where, scores_eh.detach(), "amax").index_select(0, target)
    parts = (scores_eh - highest).exp()
    return parts / gathered(parts, target, nodes).index_select(0, target)


def _glorot(layer: nn.Linear) -> nn.Linear:
    """The start that both papers use: Glorot's weights, no bias."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
