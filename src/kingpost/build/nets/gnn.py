"""Graph networks: one score vector for each node of a graph, or for each graph of many.

Legend of shapes: ``B`` samples, ``N`` nodes, ``E`` edges, ``F`` features of a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.build.blocks.graph import GAT, GCN, GIN, Aggregation, GraphSAGE
from kingpost.build.blocks.graph_pooling import GraphPool, NodeBatchNorm, Pooling, disjoint_union
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size
from kingpost.option import checked
from kingpost.source import DataFacts, Form, Graph

Conv = Literal["gcn", "gat", "gatv2", "sage", "gin"]
NodeNorm = Literal["none", "layer", "batch"]


class GNNNet(nn.Module):
    """Layers of (dropout, convolution, norm, activation), each one reaching one edge further.

    Input: features ``(N, F)`` and edges ``(2, E)`` int64 from row 0 to row 1; output ``(N, outputs)``.
    Sources: Kipf and Welling, arXiv 1609.02907 (GCN); Veličković et al., arXiv 1710.10903, and Brody et al.,
    arXiv 2105.14491 (GAT); Hamilton et al., arXiv 1706.02216 (GraphSAGE); Xu et al., arXiv 1810.00826 (GIN).

    Args:
        features: of a node.
        outputs: units of the last layer, a bare convolution; None: all layers are alike, and give ``(N, width)``.
        conv: kind of convolution.
        depth: layers.
        width: features of a node between layers; of all heads together.
        heads: of attention; divides the width. A bare last layer has one.
        aggregation: of GraphSAGE.
        learn_eps: of GIN.
        norm: after each convolution; ``batch`` over the real nodes.
        activation: after each norm, and in GIN's perceptrons.
        residual: add each layer's input to its output, where both have the same shape.

    >>> GNNNet(3, 2, width=8)(torch.zeros(5, 3), torch.tensor([[0, 1], [1, 0]])).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        outputs: int | None,
        conv: Conv = "gcn",
        depth: int = 2,
        width: int = 64,
        heads: int = 1,
        aggregation: Aggregation = "mean",
        learn_eps: bool = False,
        norm: NodeNorm = "none",
        activation: Activation = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()

        def convolution(inputs: int, given: int, heads: int) -> nn.Module:
            if conv == "gcn":
                return GCN(inputs, given)
            if conv == "sage":
                return GraphSAGE(inputs, given, aggregation)
            if conv == "gin":
                return GIN(inputs, given, width, learn_eps, activation)
            return GAT(inputs, given, heads, 2 if conv == "gatv2" else 1)

        hidden = depth if outputs is None else depth - 1
        sizes = [features, *[width] * hidden]
        self.residual = residual
        self.drops = nn.ModuleList(nn.Dropout(0.0) for _ in range(depth))
        self.convs = nn.ModuleList(convolution(inputs, width, heads) for inputs in sizes[:-1])
        self.norms = nn.ModuleList(_norm(norm, width) for _ in range(hidden))
        self.activations = nn.ModuleList(ACTIVATIONS[activation]() for _ in range(hidden))
        if outputs is not None:
            self.convs.append(convolution(sizes[-1], outputs, 1))

    def forward(self, x: Tensor, edges: Tensor, real: Tensor | None = None) -> Tensor:
        """Features of each node; ``real`` ``(N,)`` bool tells the norms which nodes are no filling."""
        for index, (drop, conv) in enumerate(zip(self.drops, self.convs, strict=True)):
            y = conv(drop(x), edges)
            if index < len(self.norms):
                norm = self.norms[index]
                y = self.activations[index](norm(y, real) if isinstance(norm, NodeBatchNorm) else norm(y))
                y = y + x if self.residual and y.shape == x.shape else y
            x = y
        return x


class NodeNet(nn.Module):
    """A network on one graph, which it keeps; it is asked for nodes by number, and always computes all of them.

    Input: nodes ``(B,)`` int64; output ``(B, outputs)``. The graph is no part of the weights' file.

    Args:
        net: takes features and edges.
        x: features of all nodes, ``(N, F)``.
        edges: ``(2, E)`` int64.
    """

    x: Tensor
    edges: Tensor

    def __init__(self, net: GNNNet, x: Tensor, edges: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("x", x, persistent=False)
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, nodes: Tensor) -> Tensor:
        """Scores of the nodes."""
        y: Tensor = self.net(self.x, self.edges).index_select(0, nodes)
        return y


class GraphNet(nn.Module):
    """A network on each of many graphs, pooled over its nodes, and one linear layer.

    Input: nodes ``(B, N, F)``, whose first feature is 1 for a node and 0 where there is none, and edges ``(B, E, 2)``
    int64, filled up with -1. Output ``(B, outputs)``, which does not depend on how much is filled up.

    Args:
        net: gives ``(N, width)``.
        width: features that it gives.
        outputs: units of the last layer.
        pooling: over the nodes.

    >>> net = GraphNet(GNNNet(3, None, "gin", width=8), width=8, outputs=2, pooling="sum")
    >>> net(torch.ones(4, 5, 3), torch.full((4, 6, 2), -1)).shape
    torch.Size([4, 2])
    """

    def __init__(self, net: GNNNet, width: int, outputs: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.net, self.pool = net, GraphPool(width, pooling)
        self.drop, self.head = nn.Dropout(0.0), nn.Linear(width, outputs)

    def forward(self, x_bnf: Tensor, edges_be2: Tensor) -> Tensor:
        """Scores of the graphs."""
        b, n, _ = x_bnf.shape
        x, edges = disjoint_union(x_bnf, edges_be2)
        real = x[:, 0] > 0
        h_bnf = self.net(x, edges, real)[:-1].unflatten(0, (b, n))
        y: Tensor = self.head(self.drop(self.pool(h_bnf, real[:-1].view(b, n))))
        return y


def _norm(norm: NodeNorm, width: int) -> nn.Module:
    if norm == "batch":
        return NodeBatchNorm(width)
    return nn.LayerNorm(width) if norm == "layer" else nn.Identity()


def node_facts(nodes: int, features: int, edges: int, classes: int) -> DataFacts:
    """Facts of the nodes of a graph, on which sizes are counted; the graph has shapes only."""
    meta = torch.device("meta")
    graph = Graph(
        x=torch.empty(nodes, features, device=meta), edges=torch.empty(2, edges, dtype=torch.int64, device=meta)
    )
    return DataFacts(
        task="classification",
        inputs=(((), torch.int64),),
        classes=tuple(map(str, range(classes))),
        graph=graph,
    )


def graph_facts(nodes: int, features: int, edges: int, classes: int) -> DataFacts:
    """Facts of classified graphs, on which sizes are counted; nodes and edges are those of the largest graph."""
    return DataFacts(
        task="classification",
        inputs=(((nodes, features), torch.float32), ((edges, 2), torch.int64)),
        classes=tuple(map(str, range(classes))),
    )


_CORA = {"nodes": 2708, "features": 1433, "edges": 10556, "classes": 7}


@checked
class GNN(Net):
    """Fills ``model`` with a graph network, for the nodes of one graph or for many graphs.

    Fails in depth on nodes: with each layer the neighbourhoods overlap more, until all nodes look alike.
    """

    size: Literal["small", "gcn-cora", "gat-cora", "sage-64", "gin-64"] | None = None
    """A named size; fields that are given come before it."""
    conv: Conv | None = None
    """Kind of convolution; null: that of the size, else gcn for nodes and gin for graphs."""
    depth: Annotated[int, Ge(1)] | None = None
    """Layers; null: 2 for nodes, 4 for graphs."""
    width: Annotated[int, Ge(1)] | None = None
    """Features of a node between layers, of all heads together; null: 64."""
    heads: Annotated[int, Ge(1)] | None = None
    """Of gat and gatv2, must divide the width; null: at most 8, each of at least 8 features."""
    aggregation: Aggregation | None = None
    """Of sage, over the neighbours; null: mean."""
    learn_eps: bool = False
    """Whether gin learns the weight of a node against its neighbours."""
    pooling: Pooling | None = None
    """Of the nodes of a graph; null: sum for gin, which counts, and mean for others."""
    norm: NodeNorm | None = None
    """After each convolution; null: none for nodes, layer for graphs."""
    activation: Activation | None = None
    """After each norm; null: elu for gat and gatv2, relu for others."""
    residual: bool = False
    """Add each layer's input to its output, where both have the same shape."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")
    reads: ClassVar[tuple[Form, ...]] = ("nodes", "graph")
    example: ClassVar[Mapping[str, Any]] = {"conv": "gat", "depth": 2, "width": 8, "heads": 2}
    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(fields={"depth": 2, "width": 16}, data=node_facts(100, 8, 400, 3)),
        "sage-64": Size(fields={"conv": "sage", "depth": 2, "width": 64}, data=node_facts(**_CORA)),
        "gin-64": Size(
            fields={"conv": "gin", "depth": 5, "width": 64, "norm": "batch", "pooling": "sum"},
            data=graph_facts(28, 8, 66, 2),
        ),
        "gcn-cora": Size(
            fields={"conv": "gcn", "depth": 2, "width": 16},
            data=node_facts(**_CORA),
            parameters=23_063,
            source="Kipf and Welling, arXiv 1609.02907, section 5.2: 16 hidden units; counted with biases",
        ),
        "gat-cora": Size(
            fields={"conv": "gat", "depth": 2, "width": 64, "heads": 8},
            data=node_facts(**_CORA),
            parameters=92_373,
            source="Veličković et al., arXiv 1710.10903, section 3.3: 8 heads of 8 features, then one head of 7",
        ),
    }
    paper: ClassVar[str] = (
        "Kipf and Welling, arXiv 1609.02907 (gcn); Veličković et al., arXiv 1710.10903 (gat); Brody et al., "
        "arXiv 2105.14491 (gatv2); Hamilton et al., arXiv 1706.02216 (sage); Xu et al., arXiv 1810.00826 (gin)"
    )

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Batch norm sees all nodes of the batch."""
        reason = "batch norm takes its statistics over the nodes it is given; norm=layer has no such exception"
        return {"accumulation": reason, "two processes": reason} if self.of("norm") == "batch" else {}

    def make(self, data: DataFacts, outputs: int) -> nn.Module:
        """The network, sized to the data.

        Raises:
            RecipeError: the heads do not divide the width, or a field that was given has no effect.
        """
        f = {name: value for name, (value, _) in self._settled(data).items()}
        self._check_effects(f["conv"], pooled=data.graph is None)
        if f["conv"] in ("gat", "gatv2") and f["width"] % f["heads"]:
            fits = max(h for h in range(1, f["heads"] + 1) if f["width"] % h == 0)
            raise RecipeError(
                f"got {f['heads']}, which does not divide the width {f['width']}", path="heads", mend=f"use {fits}"
            )
        pooling = f.pop("pooling")
        f |= {"aggregation": self.aggregation or "mean", "learn_eps": self.learn_eps, "residual": self.residual}
        if data.graph is None:
            return GraphNet(GNNNet(data.inputs[0][0][1], None, **f), f["width"], outputs, pooling)
        x = data.graph.x.to(torch.get_default_dtype())
        return NodeNet(GNNNet(x.shape[1], outputs, **f), x, data.graph.edges)

    def _check_effects(self, conv: Conv, pooled: bool) -> None:
        """Refuse fields that were given and would change nothing."""
        uses = {"heads": ("gat", "gatv2"), "aggregation": ("sage",), "learn_eps": ("gin",)}
        for field, convs in uses.items():
            if getattr(self, field) not in (None, False) and conv not in convs:
                raise RecipeError(
                    f"has no effect with conv={conv}", path=field, mend=f"remove it, or use conv={convs[0]}"
                )
        if self.pooling is not None and not pooled:
            raise RecipeError("has no effect on nodes of one graph", path="pooling", mend="remove it")

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """What was not given, with the reason."""
        settled = self._settled(data)
        unused = {"pooling"} if data.graph is not None else set()
        unused |= {"heads"} if settled["conv"][0] not in ("gat", "gatv2") else set()
        return tuple(
            Figure(f"model.{name}", value, "", reason)
            for name, (value, reason) in settled.items()
            if reason and name not in unused
        )

    def _settled(self, data: DataFacts) -> dict[str, tuple[Any, str]]:
        """Each number with the reason for it; without one if it was given."""
        nodes = data.graph is not None
        settled: dict[str, tuple[Any, str]] = {}

        def settle(name: str, value: Any, reason: str) -> Any:
            if (given := self.of(name)) is None:
                settled[name] = (value, reason)
            else:
                settled[name] = (given, "" if getattr(self, name) is not None else f"size {self.size}")
            return settled[name][0]

        conv = settle("conv", *(("gcn", "the plainest") if nodes else ("gin", "tells the most graphs apart")))
        settle("depth", 2 if nodes else 4, "more layers make nodes alike" if nodes else "reach of 4 edges")
        width = settle("width", 64, "small data")
        heads = max(h for h in range(1, 9) if width % h == 0 and (h == 1 or width // h >= 8))
        settle("heads", heads if conv in ("gat", "gatv2") else 1, "at most 8, each of at least 8 features")
        pooling = ("sum", "gin counts") if conv == "gin" else ("mean", "does not depend on the number of nodes")
        settle("pooling", *pooling)
        settle("norm", *(("none", "two layers need none") if nodes else ("layer", "sums over neighbours grow")))
        activation = ("elu", "as published for gat") if conv in ("gat", "gatv2") else ("relu", "as published")
        settle("activation", *activation)
        return settled
