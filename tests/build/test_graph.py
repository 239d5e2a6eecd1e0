"""Graph networks: against dense twins, under permutation and padding, and what a message-passing net cannot see."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kingpost.build.blocks.graph import GAT, GCN, GIN, GraphSAGE, edge_softmax
from kingpost.build.blocks.graph_pooling import NodeBatchNorm
from kingpost.build.nets.gnn import GNN, GNNNet, GraphNet, NodeNet, graph_facts, node_facts
from kingpost.errors import RecipeError
from kingpost.source import DataFacts, Graph
from kingpost.train import checkpoint

CONVS: dict[str, Callable[[int, int], nn.Module]] = {
    "gcn": GCN,
    "gat": lambda a, b: GAT(a, b, heads=2),
    "gat, mean of heads": lambda a, b: GAT(a, b, heads=3, average=True),
    "gatv2": lambda a, b: GAT(a, b, heads=2, version=2),
    "sage mean": GraphSAGE,
    "sage max": lambda a, b: GraphSAGE(a, b, "max"),
    "sage sum": lambda a, b: GraphSAGE(a, b, "sum"),
    "gin": lambda a, b: GIN(a, b, learn_eps=True, activation="tanh"),  # no unit of which can be dead
}
KINDS = ("gcn", "gat", "gatv2", "sage", "gin")
each_conv = pytest.mark.parametrize("name", CONVS)
each_kind = pytest.mark.parametrize("kind", KINDS)

# Sums of some tens of numbers around 1, added up in another order.
ROUNDING = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def noisy(model: nn.Module) -> nn.Module:
    """No parameter at a value that hides a mistake, such as a bias of zero."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw) * 0.3)
    return model


def messy(nodes: int = 12, features: int = 5) -> tuple[Tensor, Tensor]:
    """Features and edges with loops, repeats, one-way edges, and the last node alone."""
    draw = torch.Generator().manual_seed(0)
    edges = torch.randint(0, nodes - 1, (2, 3 * nodes), generator=draw)
    edges = torch.cat([edges, edges[:, :5], torch.tensor([[2, 3], [2, 3]])], 1)
    return torch.randn(nodes, features, generator=draw), edges


def graphs(b: int = 6, n: int = 7, e: int = 14, features: int = 4) -> tuple[Tensor, Tensor]:
    """Graphs of 2 to ``n`` nodes, filled up; the first is full, the second has no edge."""
    draw = torch.Generator().manual_seed(2)
    nodes, lengths = torch.randint(2, n + 1, (b, 1), generator=draw), torch.randint(1, e + 1, (b, 1), generator=draw)
    nodes[0], lengths[0], lengths[1] = n, e, 0
    x = torch.randn(b, n, features, generator=draw)
    x[..., 0] = 1
    ends = (torch.rand(b, e, 2, generator=draw) * nodes[..., None]).long()
    edges = torch.where((torch.arange(e) < lengths)[..., None], ends, -1)
    return x * (torch.arange(n) < nodes)[..., None], edges


def graph_net(kind: Any = "gin", pooling: Any = "sum", norm: Any = "layer", features: int = 4, **more: Any) -> GraphNet:
    torch.manual_seed(0)
    net = GraphNet(GNNNet(features, None, kind, 3, 8, 2, norm=norm, residual=True, **more), 8, 3, pooling)
    noisy(net)
    return net


def neighbours(edges: Tensor, node: int) -> list[int]:
    return [int(s) for s, t in edges.T if int(t) == node]


def test_gcn_is_the_normalised_matrix_of_the_paper() -> None:
    x, edges = messy()
    layer = noisy(GCN(5, 4))
    counts = torch.zeros(12, 12)
    for s, t in edges.T:
        if s != t:
            counts[t, s] += 1
    counts += torch.eye(12)
    scale = torch.diag(counts.sum(1) ** -0.5)
    expected = scale @ counts @ scale @ x @ layer.linear.weight.T + layer.bias  # type: ignore[operator,union-attr]
    torch.testing.assert_close(layer(x, edges), expected, **ROUNDING)


@pytest.mark.parametrize("version", [1, 2])
def test_gat_equals_a_loop_over_nodes_and_heads(version: Any) -> None:
    x, edges = messy()
    layer = noisy(GAT(5, 6, heads=2, version=version))
    assert isinstance(layer, GAT)
    rows = []
    for i in range(12):
        around = [j for j in neighbours(edges, i) if j != i] + [i]
        parts = []
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            message = [layer.source(x[j])[part] for j in around]
            scores = []
            for m in message:
                if version == 1:
                    assert layer.attend_target is not None
                    own = layer.source(x[i])[part]
                    scores.append(F.leaky_relu(m @ layer.attend_source[head] + own @ layer.attend_target[head], 0.2))
                else:
                    assert layer.target is not None
                    scores.append(F.leaky_relu(m + layer.target(x[i])[part], 0.2) @ layer.attend_source[head])
            weights = torch.stack(scores).softmax(0)
            parts.append(sum(w * m for w, m in zip(weights, message, strict=True)))
        rows.append(torch.cat(parts) + layer.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(layer(x, edges), torch.stack(rows), **ROUNDING)


@pytest.mark.parametrize("how", ["mean", "max", "sum"])
def test_sage_and_gin_equal_a_loop_over_nodes(how: Any) -> None:
    x, edges = messy()
    reduce = {"mean": lambda v: v.mean(0), "max": lambda v: v.amax(0), "sum": lambda v: v.sum(0)}[how]
    around = [x[neighbours(edges, i)] for i in range(12)]
    gathered = torch.stack([reduce(v) if len(v) else torch.zeros(5) for v in around])
    sage = noisy(GraphSAGE(5, 4, how))
    assert isinstance(sage, GraphSAGE)
    torch.testing.assert_close(sage(x, edges), sage.neighbours(gathered) + sage.own(x), **ROUNDING)
    if how == "sum":
        gin = noisy(GIN(5, 4, learn_eps=True))
        assert isinstance(gin, GIN) and gin.eps is not None and abs(float(gin.eps.detach())) > 0.01
        torch.testing.assert_close(gin(x, edges), gin.layers((1 + gin.eps) * x + gathered), **ROUNDING)


@each_conv
def test_renaming_the_nodes_renames_the_outputs(name: str) -> None:
    x, edges = messy()
    layer = noisy(CONVS[name](5, 6))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    place = torch.argsort(order)  # node order[k] becomes node k
    shuffled = place[edges][:, torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(4))]
    torch.testing.assert_close(layer(x[order], shuffled), layer(x, edges)[order], **ROUNDING)


@each_conv
def test_a_layer_reaches_exactly_one_edge_far_and_in_its_direction(name: str) -> None:
    chain = torch.tensor([[0, 1, 2], [1, 2, 3]])
    x = messy()[0][:4].requires_grad_()
    layer = noisy(CONVS[name](5, 6))
    (g,) = torch.autograd.grad(layer(x, chain)[2].square().sum(), x)
    assert g.abs().amax(1).gt(0).tolist() == [False, True, True, False]


@each_conv
def test_half_precision_is_close_and_stays_half(name: str) -> None:
    x, edges = messy()
    layer = noisy(CONVS[name](5, 6))
    half = copy.deepcopy(layer).bfloat16()(x.bfloat16(), edges)
    assert half.dtype == torch.bfloat16
    # 8 bits: each of a handful of roundings costs up to 0.4 % of the largest intermediate value, which is below 10.
    torch.testing.assert_close(half.to(x.dtype), layer(x, edges), rtol=0.03, atol=0.15)


def test_many_edges_are_counted_right_in_half_precision() -> None:
    """A star of 1,000: bfloat16 cannot count beyond 256."""
    edges = torch.stack([torch.arange(1, 1001), torch.zeros(1000, dtype=torch.long)])
    mean = GraphSAGE(1, 1).bfloat16()
    nn.init.ones_(mean.neighbours.weight), nn.init.zeros_(mean.neighbours.bias), nn.init.zeros_(mean.own.weight)
    assert float(mean(torch.ones(1001, 1).bfloat16(), edges)[0].detach()) == 1.0


def test_edge_softmax_does_not_overflow() -> None:
    target = torch.tensor([0, 0, 1])
    weights = edge_softmax(torch.tensor([[1000.0], [1000.0], [-1000.0]]), target, 3)
    assert weights[:, 0].tolist() == [0.5, 0.5, 1.0]


@each_kind
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("pooling", ["mean", "sum", "max", "attention"])
def test_filling_changes_nothing(kind: str, norm: str, pooling: str) -> None:
    """Outputs, gradients and running statistics, in training."""
    x, edges = graphs()
    more_x = F.pad(x, (0, 0, 0, 5))
    more_edges = F.pad(edges, (0, 0, 3, 4), value=-1)
    one, other = graph_net(kind, pooling, norm), graph_net(kind, pooling, norm)
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    a, b = one(x, edges), other(more_x, more_edges)
    torch.testing.assert_close(a, b, **ROUNDING)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        # Gradients add up some hundred terms of sizes up to 100.
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10, msg=name)
    for (name, p), q in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(p, q, **ROUNDING, msg=name)
    assert (norm == "batch") == bool(list(one.buffers()))


@each_kind
@pytest.mark.parametrize("pooling", ["mean", "sum", "max", "attention"])
def test_a_graph_sees_neither_the_others_nor_the_names_of_its_nodes(kind: str, pooling: str) -> None:
    x, edges = graphs()
    net = graph_net(kind, pooling).eval()
    alone = torch.cat([net(x[i : i + 1], edges[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(net(x, edges), alone, **ROUNDING)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    renamed = torch.where(edges < 0, edges, torch.argsort(order)[edges])
    torch.testing.assert_close(net(x[:, order], renamed), alone, **ROUNDING)


def test_batch_norm_is_that_of_the_real_nodes() -> None:
    x, real = messy(12, 4)[0], torch.arange(12) < 9
    ours, theirs = NodeBatchNorm(4), nn.BatchNorm1d(4)
    noisy(ours), noisy(theirs)
    for _ in range(2):
        torch.testing.assert_close(ours(x, real)[real], theirs(x[real]), **ROUNDING)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, **ROUNDING)
    torch.testing.assert_close(ours.eval()(x, real)[real], theirs.eval()(x[real]), **ROUNDING)


def rings(*sizes: int) -> tuple[Tensor, Tensor]:
    """Rings side by side as one graph, all nodes alike."""
    pairs, first = [], 0
    for size in sizes:
        there = [(first + i, first + (i + 1) % size) for i in range(size)]
        pairs += [*there, *((b, a) for a, b in there)]
        first += size
    return torch.ones(1, first, 1), torch.tensor([pairs])


@each_kind
@pytest.mark.parametrize("pooling", ["mean", "sum", "max", "attention"])
def test_none_tells_a_ring_of_six_from_two_triangles(kind: str, pooling: str) -> None:
    """The Weisfeiler-Lehman test cannot, so no such network can (Xu et al., theorem 2)."""
    net = graph_net(kind, pooling, features=1)
    torch.testing.assert_close(net(*rings(6)), net(*rings(3, 3)), **ROUNDING)


def test_only_the_sum_counts_neighbours() -> None:
    """A node with two and one with three equal neighbours (Xu et al., section 5.2)."""
    x = torch.ones(7, 3)
    stars = torch.tensor([[1, 2, 4, 5, 6], [0, 0, 3, 3, 3]])
    for how in ("mean", "max"):
        y = noisy(GraphSAGE(3, 4, how))(x, stars)  # type: ignore[arg-type]
        torch.testing.assert_close(y[0], y[3], **ROUNDING)
    for layer in (GraphSAGE(3, 4, "sum"), GIN(3, 4)):
        y = noisy(layer)(x, stars)
        assert (y[0] - y[3]).abs().max() > 0.01
    net = graph_net("gin", "sum", features=1)
    assert (net(*rings(6)) - net(*rings(7))).abs().max() > 0.01
    net = graph_net("gin", "mean", features=1)
    torch.testing.assert_close(net(*rings(6)), net(*rings(7)), **ROUNDING)


def test_gin_learns_to_tell_rings_from_paths() -> None:
    """Both have nodes of the same features; only the two ends of a path differ."""
    torch.manual_seed(0)
    x, edges = torch.zeros(16, 11, 1), torch.full((16, 22, 2), -1)
    classes = torch.arange(16) % 2
    for i in range(16):
        size = 4 + i // 2
        x[i, :size] = 1
        pairs = rings(size)[1][0]
        if classes[i]:
            pairs = pairs[(pairs != torch.tensor([size - 1, 0])).any(1) & (pairs != torch.tensor([0, size - 1])).any(1)]
        edges[i, : len(pairs)] = pairs
    net = GraphNet(GNNNet(1, None, "gin", 2, 16, norm="layer"), 16, 2, "mean")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x, edges), classes).backward()
        optimizer.step()
    assert torch.equal(net(x, edges).argmax(1), classes)


def option(**fields: Any) -> GNN:
    return GNN(**fields)


def case(form: str) -> tuple[DataFacts, tuple[Tensor, ...]]:
    """Facts and the inputs of a batch; in a function, so that they are made in 64 bits."""
    classes = tuple("abc")
    if form == "graph":
        x, edges = graphs()
        shapes = ((tuple(x.shape[1:]), x.dtype), (tuple(edges.shape[1:]), edges.dtype))
        return DataFacts(task="classification", inputs=shapes, classes=classes), (x, edges)
    x, edges = messy()
    facts = DataFacts(
        task="classification", inputs=(((), torch.int64),), classes=classes, graph=Graph(x=x, edges=edges)
    )
    return facts, (torch.tensor([3, 11, 0, 3]),)


def made(form: str, **fields: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    data, inputs = case(form)
    assert data.form == form
    return option(depth=2, width=16, **fields).make(data, 3), inputs


each_net = pytest.mark.parametrize(("form", "kind"), [(form, kind) for form in ("nodes", "graph") for kind in KINDS])


@each_net
def test_shapes_gradients_export_and_fakes(form: str, kind: str) -> None:
    net, inputs = made(form, conv=kind)
    y = net(*inputs)
    assert y.shape == (len(inputs[0]), 3) and bool(y.isfinite().all())
    assert net(*(x[:1] for x in inputs)).shape == (1, 3)
    y.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
    program = torch.export.export(net.eval(), inputs, strict=False)
    torch.testing.assert_close(program.module()(*inputs), net(*inputs), **ROUNDING)
    mode = FakeTensorMode()
    data, _ = case(form)
    fakes = tuple(mode.from_tensor(x) for x in inputs)
    if data.graph is not None:
        graph = Graph(x=mode.from_tensor(data.graph.x), edges=mode.from_tensor(data.graph.edges))
        data = DataFacts(task=data.task, inputs=data.inputs, classes=data.classes, graph=graph)
    with mode:
        fake = option(conv=kind, depth=2, width=16).make(data, 3)
        out = fake(*fakes)
        out.sum().backward()
    assert out.shape == y.shape


@each_net
def test_one_small_step_lowers_the_loss(form: str, kind: str) -> None:
    net, inputs = made(form, conv=kind)
    classes = torch.arange(len(inputs[0])) % 3

    def loss() -> Tensor:
        return F.cross_entropy(net(*inputs), classes)

    before = loss()
    before.backward()
    slope = sum(float((p.grad**2).sum()) for p in net.parameters() if p.grad is not None)
    torch.optim.SGD(net.parameters(), lr=1e-5).step()
    assert slope > 1e-4
    # First order: the gain is lr |g|^2; the curvature over a step this small takes away some percent at most.
    assert float((before - loss()).detach()) == pytest.approx(1e-5 * slope, rel=0.1)


@each_net
def test_weights_survive_the_file_and_the_graph_is_not_in_it(form: str, kind: str, tmp_path: Path) -> None:
    net, inputs = made(form, conv=kind, norm="batch")
    noisy(net)(*inputs)
    checkpoint.save_weights(tmp_path / "w.safetensors", net)
    torch.manual_seed(9)
    data, _ = case(form)
    other = option(depth=2, width=16, conv=kind, norm="batch").make(data, 3)
    checkpoint.load_weights(tmp_path / "w.safetensors", other)
    assert torch.equal(other.eval()(*inputs), net.eval()(*inputs))
    assert not [name for name in net.state_dict() if name in ("x", "edges")]
    assert torch.equal(copy.deepcopy(net)(*inputs), net(*inputs))


def test_a_node_net_gives_the_rows_of_the_whole_graph() -> None:
    net, (nodes,) = made("nodes", conv="gat")
    assert isinstance(net, NodeNet)
    assert torch.equal(net(nodes), net.net(*messy())[nodes])


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", GNN.sizes)
def test_sizes_have_the_published_number_of_parameters(name: str) -> None:
    size = GNN.sizes[name]
    with torch.device("meta"):
        net = GNN(size=name).make(size.data, len(size.data.classes))  # type: ignore[arg-type]
    if size.parameters is not None:
        assert count(net) == size.parameters
    inputs = [torch.zeros(2, *shape, dtype=dtype, device="meta") for shape, dtype in size.data.inputs]
    assert net(*inputs).shape == (2, len(size.data.classes))


def test_parameter_counts_in_closed_form() -> None:
    f, w, c = 5, 16, 3
    expected = {
        "gcn": f * w + w + w * c + c,
        "gat": f * w + 3 * w + w * c + 3 * c,
        "gatv2": 2 * (f * w + w) + 2 * w + 2 * (w * c + c) + 2 * c,
        "sage": 2 * f * w + w + 2 * w * c + c,
        "gin": f * w + w + w * w + w + w * w + w + w * c + c,
    }
    for kind, parameters in expected.items():
        assert count(made("nodes", conv=kind)[0]) == parameters, kind


def test_fields_come_before_the_size_and_the_rest_is_derived() -> None:
    def figures(data: DataFacts, **fields: Any) -> dict[str, Any]:
        return {figure.name.removeprefix("model."): figure.value for figure in option(**fields).derived(data)}

    nodes, graphs = case("nodes")[0], case("graph")[0]
    assert figures(nodes) == {"conv": "gcn", "depth": 2, "width": 64, "norm": "none", "activation": "relu"}
    assert figures(graphs) == {
        "conv": "gin", "depth": 4, "width": 64, "pooling": "sum", "norm": "layer", "activation": "relu",
    }  # fmt: skip
    assert figures(nodes, conv="gatv2", width=40)["heads"] == 5
    assert figures(nodes, conv="gat", width=7)["heads"] == 1
    assert figures(nodes, size="gat-cora", width=32) == {
        "conv": "gat", "depth": 2, "heads": 8, "norm": "none", "activation": "elu",
    }  # fmt: skip
    assert figures(graphs, conv="gcn", pooling="max") == {
        "depth": 4, "width": 64, "norm": "layer", "activation": "relu",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 2}, "heads: has no effect with conv=gcn; remove it, or use conv=gat"),
        (
            {"conv": "gin", "aggregation": "max"},
            "aggregation: has no effect with conv=gin; remove it, or use conv=sage",
        ),
        ({"learn_eps": True}, "learn_eps: has no effect with conv=gcn"),
        ({"pooling": "max"}, "pooling: has no effect on nodes of one graph; remove it"),
        ({"conv": "gat", "width": 12, "heads": 5}, "heads: got 5, which does not divide the width 12; use 4"),
    ],
)
def test_fields_without_effect_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        option(**fields).make(case("nodes")[0], 3)


def test_heads_must_divide_the_outputs() -> None:
    with pytest.raises(ValueError, match="heads: got 4, which does not divide the outputs 6; use average=True"):
        GAT(5, 6, heads=4)


def test_batch_norm_is_an_exception_to_accumulation() -> None:
    assert option(norm="layer").exceptions == {}
    assert set(option(norm="batch").exceptions) == set(option(size="gin-64").exceptions) == {
        "accumulation", "two processes",
    }  # fmt: skip


def test_facts_without_memory() -> None:
    data = node_facts(10, 3, 20, 2)
    assert data.graph is not None and data.graph.x.device.type == "meta" and data.form == "nodes"
    assert graph_facts(10, 3, 20, 2).form == "graph"


def test_gcn_starts_with_glorot_weights() -> None:
    torch.manual_seed(0)
    layer = GCN(400, 100)
    # Uniform with deviation sqrt(2 / 500); the standard error over 40,000 draws is below 0.4 %, five of them 2 %.
    assert float(layer.linear.weight.detach().std()) == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert not layer.bias.any()
