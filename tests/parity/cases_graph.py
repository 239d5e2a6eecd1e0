"""Graph convolutions and pooling against PyTorch Geometric, on a graph with loops, repeated edges and lone nodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kingpost.build.blocks.graph import GAT, GCN, GIN, GraphSAGE
from kingpost.build.blocks.graph_pooling import GraphPool
from parity.case import Case, Errors, largest, relative

NODES, INPUTS, OUTPUTS, HEADS = 40, 7, 12, 3
WHY = "64 bits; sums over some twenty edges in another order, and 1e-16 that the reference adds to a softmax"

Names = Mapping[str, str]


def graph() -> tuple[Tensor, Tensor]:
    """Features in 64 bits and edges: 150 at random among 35 nodes, so 5 are alone; ten loops, twenty repeats."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(NODES, INPUTS, generator=draw, dtype=torch.float64)
    edges = torch.randint(0, NODES - 5, (2, 150), generator=draw)
    loops = torch.arange(10).expand(2, 10)
    return x, torch.cat([edges, loops, edges[:, :20], loops[:, :2]], 1)


def compared(
    make: Callable[[], nn.Module], reference: Callable[[Any], nn.Module], names: Names
) -> Callable[[], Errors]:
    """Copies the reference's weights by name (ours -> theirs) and compares outputs and all gradients."""

    def compare() -> Errors:
        import torch_geometric.nn as pyg

        torch.manual_seed(0)
        theirs, ours = reference(pyg).double(), make().double()
        given = dict(theirs.named_parameters())
        own = dict(ours.named_parameters())
        assert own.keys() == names.keys() and set(given) == set(names.values())
        for name, other in names.items():
            nn.init.normal_(given[other], generator=torch.Generator().manual_seed(len(name)))
            with torch.no_grad():
                own[name].copy_(given[other].view_as(own[name]))
        x, edges = graph()
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = ours(a, edges), theirs(b, edges)
        weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (y * weight).sum().backward()
        (z * weight).sum().backward()
        assert a.grad is not None and b.grad is not None
        pairs = [(own[n].grad.flatten(), given[o].grad.flatten()) for n, o in names.items()]  # type: ignore[union-attr]
        return Errors(relative(y.detach(), z.detach()), largest([(a.grad, b.grad), *pairs]))

    return compare


def _pooled(how: str) -> Callable[[], Errors]:
    """Ten graphs of 1 to 6 nodes: padded here, laid end to end there."""

    def compare() -> Errors:
        import torch_geometric.nn as pyg

        draw = torch.Generator().manual_seed(0)
        sizes = torch.randint(1, 7, (10,), generator=draw)
        real = torch.arange(6)[None] < sizes[:, None]
        padded = torch.randn(10, 6, 5, generator=draw, dtype=torch.float64)
        a = padded.clone().requires_grad_()
        b = padded[real].clone().requires_grad_()
        pool = GraphPool(5, how).double()  # type: ignore[arg-type]
        theirs: Any = {"mean": pyg.MeanAggregation, "sum": pyg.SumAggregation, "max": pyg.MaxAggregation}.get(how)
        gate = copy.deepcopy(pool.gate)
        theirs = theirs() if theirs else pyg.AttentionalAggregation(gate)
        y, z = pool(a, real), theirs(b, torch.arange(10).repeat_interleave(sizes))
        weight = torch.randn(z.shape, generator=draw, dtype=torch.float64)
        (y * weight).sum().backward()
        (z * weight).sum().backward()
        assert a.grad is not None and b.grad is not None and not a.grad[~real].any()
        gates = [] if gate is None else [(pool.gate.weight.grad, gate.weight.grad)]  # type: ignore[union-attr]
        return Errors(relative(y.detach(), z.detach()), largest([(a.grad[real], b.grad), *gates]))  # type: ignore[list-item]

    return compare


def _gat(version: int, average: bool) -> Callable[[], Errors]:
    width = OUTPUTS if average else OUTPUTS // HEADS
    first = {"attend_source": "att_src", "attend_target": "att_dst", "source.weight": "lin.weight", "bias": "bias"}
    second = {
        "attend_source": "att", "source.weight": "lin_l.weight", "source.bias": "lin_l.bias",
        "target.weight": "lin_r.weight", "target.bias": "lin_r.bias", "bias": "bias",
    }  # fmt: skip

    def reference(pyg: Any) -> nn.Module:
        layer: nn.Module = (pyg.GATConv if version == 1 else pyg.GATv2Conv)(INPUTS, width, HEADS, concat=not average)
        return layer

    return compared(
        lambda: GAT(INPUTS, OUTPUTS, HEADS, version, average),  # type: ignore[arg-type]
        reference,
        first if version == 1 else second,
    )


_SAGE = {"neighbours.weight": "lin_l.weight", "neighbours.bias": "lin_l.bias", "own.weight": "lin_r.weight"}
_GIN = {f"layers.{i}.{kind}": f"nn.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, 9), nn.ReLU(), nn.Linear(9, OUTPUTS))


COMPARISONS: dict[str, tuple[str, Callable[[], Errors]]] = {
    "GCN()": ("GCNConv", compared(
        lambda: GCN(INPUTS, OUTPUTS), lambda pyg: pyg.GCNConv(INPUTS, OUTPUTS),
        {"linear.weight": "lin.weight", "bias": "bias"},
    )),
    "GAT(heads=3)": ("GATConv", _gat(1, average=False)),
    "GAT(heads=3, average=True)": ("GATConv(concat=False)", _gat(1, average=True)),
    "GAT(heads=3, version=2)": ("GATv2Conv", _gat(2, average=False)),
    "GAT(heads=3, version=2, average=True)": ("GATv2Conv(concat=False)", _gat(2, average=True)),
    "GraphSAGE(aggregation='mean')": ("SAGEConv", compared(
        lambda: GraphSAGE(INPUTS, OUTPUTS), lambda pyg: pyg.SAGEConv(INPUTS, OUTPUTS), _SAGE,
    )),
    "GraphSAGE(aggregation='max')": ("SAGEConv(aggr='max')", compared(
        lambda: GraphSAGE(INPUTS, OUTPUTS, "max"), lambda pyg: pyg.SAGEConv(INPUTS, OUTPUTS, aggr="max"), _SAGE,
    )),
    "GraphSAGE(aggregation='sum')": ("SAGEConv(aggr='sum')", compared(
        lambda: GraphSAGE(INPUTS, OUTPUTS, "sum"), lambda pyg: pyg.SAGEConv(INPUTS, OUTPUTS, aggr="sum"), _SAGE,
    )),
    "GIN()": ("GINConv", compared(
        lambda: GIN(INPUTS, OUTPUTS, 9), lambda pyg: pyg.GINConv(_perceptron()), _GIN,
    )),
    "GIN(learn_eps=True)": ("GINConv(train_eps=True)", compared(
        lambda: GIN(INPUTS, OUTPUTS, 9, learn_eps=True), lambda pyg: pyg.GINConv(_perceptron(), train_eps=True),
        _GIN | {"eps": "eps"},
    )),
    **{f"GraphPool('{how}')": (f"{cls}Aggregation", _pooled(how)) for how, cls in
       (("mean", "Mean"), ("sum", "Sum"), ("max", "Max"), ("attention", "Attentional"))},
}  # fmt: skip

CASES = [
    Case(
        ours=ours,
        reference=f"torch_geometric {theirs}",
        needs="torch_geometric",
        compare=compare,
        tolerance=1e-13,
        why=WHY,
    )
    for ours, (theirs, compare) in COMPARISONS.items()
]
