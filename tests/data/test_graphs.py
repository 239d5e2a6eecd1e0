"""Graph sources: against loops written out, files written by hand, and Cora where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kingpost.data.graph_files import ManyGraphs, padded
from kingpost.data.graphs import GraphNpz, Graphs, TuGraphs
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose
from kingpost.source import Dataset, Order

NODES = 30


def node_arrays(**changes: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x": rng.integers(0, 2, (NODES, 4)).astype(np.uint8),
        "edge_index": np.array([[0, 1, 2, 2, 5, 5], [1, 0, 2, 3, 6, 6]], dtype=np.int32),
        "y": np.arange(NODES) % 3,
        "train_idx": np.arange(0, 12),
        "val_idx": np.arange(12, 20),
        "test_idx": np.arange(20, 30),
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def written(folder: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez(folder / "graph.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "graph.npz")


def open_nodes(folder: Path, fields: dict[str, Any] | None = None, **changes: Any) -> Dataset:
    return GraphNpz(path=written(folder, node_arrays(**changes)), **(fields or {})).open()


def test_nodes_are_samples_and_the_graph_is_a_fact(tmp_path: Path) -> None:
    data = open_nodes(tmp_path)
    arrays = node_arrays()
    assert data.facts.form == "nodes" and data.facts.inputs == (((), torch.int64),)
    assert data.facts.classes == ("0", "1", "2") and data.facts.target_shape == ()
    assert data.facts.graph is not None
    assert data.facts.graph.x.dtype == torch.float32  # 8-bit features are numbers, not pixels
    assert np.array_equal(data.facts.graph.x.numpy(), arrays["x"])
    assert np.array_equal(data.facts.graph.edges.numpy(), arrays["edge_index"])
    for part, key in (("train", "train_idx"), ("validation", "val_idx"), ("test", "test_idx")):
        (batch,) = data.splits[part].batches(Order(batch_size=100))
        assert np.array_equal(batch.inputs[0].numpy(), arrays[key])
        assert np.array_equal(batch.targets.numpy(), arrays["y"][arrays[key]])
    assert data.indices == {}


def test_oddities_are_counted(tmp_path: Path) -> None:
    counted = open_nodes(tmp_path).fitted["graph"]
    assert counted == {
        "nodes": 30, "edges": 6, "loops": 1, "repeated_edges": 1, "edges_without_reverse": 3, "nodes_without_edges": 24,
    }  # fmt: skip


def test_reverse_edges_are_added_where_they_are_absent(tmp_path: Path) -> None:
    graph = open_nodes(tmp_path, {"both_directions": True}).facts.graph
    assert graph is not None
    assert graph.edges.T.tolist() == [[0, 1], [1, 0], [2, 2], [2, 3], [5, 6], [5, 6], [3, 2], [6, 5]]


def test_features_are_normalised_by_row(tmp_path: Path) -> None:
    graph = open_nodes(tmp_path, {"normalise": True}).facts.graph
    x = node_arrays()["x"].astype(np.float64)
    sums = x.sum(1, keepdims=True)
    assert graph is not None and (sums == 0).any()
    # One rounding of a 32-bit number below 1.
    np.testing.assert_allclose(graph.x.numpy(), np.divide(x, sums, where=sums > 0, out=np.zeros_like(x)), atol=1e-7)


def test_masks_are_taken_as_well_as_numbers(tmp_path: Path) -> None:
    plain = open_nodes(tmp_path)
    mask = np.zeros(NODES, dtype=bool)
    mask[:12] = True
    masked = open_nodes(tmp_path, train_idx=mask)
    assert masked.fingerprint == plain.fingerprint
    assert open_nodes(tmp_path, val_idx=np.arange(12, 19)).fingerprint != plain.fingerprint


def test_fractions_are_held_out_of_the_training_nodes(tmp_path: Path) -> None:
    unknown = np.where(np.arange(NODES) < 3, -1, np.arange(NODES) % 3)
    fields = {"train": "", "validation": 0.2, "test": "test_idx"}
    data = open_nodes(tmp_path, fields, y=unknown)
    found = {part: sorted(next(split.batches(Order(batch_size=100))).inputs[0].tolist())
             for part, split in data.splits.items()}  # fmt: skip
    assert found["test"] == list(range(20, 30))
    assert sorted(found["train"] + found["validation"]) == list(range(3, 20))
    assert 3 <= len(found["validation"]) <= 4
    assert {part: index.tolist() for part, index in data.indices.items()} == found
    again = open_nodes(tmp_path, fields, y=unknown)
    assert torch.equal(again.indices["validation"], data.indices["validation"])
    other = open_nodes(tmp_path, {**fields, "split_seed": 1}, y=unknown)
    assert not torch.equal(other.indices["validation"], data.indices["validation"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": np.array([[0, 30], [1, 0]])}, r"edges name nodes 0\.\.30, expected 0\.\.29; number the nodes"),
        ({"edge_index": np.array([[-1, 3], [1, 0]])}, r"edges name nodes -1\.\.3"),
        ({"edge_index": np.zeros((5, 2), int)}, r"edges of shape \(5, 2\), expected \(2, E\).*; transpose it"),
        ({"edge_index": np.zeros((2, 5))}, "edges of dtype float64, expected whole numbers"),
        ({"x": np.full((NODES, 2), np.nan)}, "30 nodes have features that are not finite"),
        ({"x": np.zeros(NODES)}, r"features of shape \(30,\) and dtype float64, expected numbers \(N, F\)"),
        ({"y": np.arange(5)}, "'x' has 30 nodes, 'y' 5"),
        ({"val_idx": np.arange(10, 20)}, "2 nodes are in a part twice, or in more than one part"),
        ({"test_idx": np.array([30])}, r"test_idx: nodes 30\.\.30, expected 0\.\.29"),
        ({"test_idx": np.zeros(7, dtype=bool)}, r"got bool \(7,\), expected numbers of nodes, or a mask \(30,\)"),
        ({"test_idx": None}, "no array 'test_idx'; it holds: edge_index, train_idx, val_idx, x, y"),
        ({"y": np.arange(NODES) - 1}, "1 nodes of the parts have a class below 0, which stands for unknown"),
    ],
)
def test_errors_of_node_files_say_what_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_nodes(tmp_path, **changes)


@pytest.mark.parametrize("value", ["", 1.0, -0.1])
def test_a_part_is_a_key_or_a_fraction(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"validation: got .*; expected a key, or a number >= 0 and < 1"):
        GraphNpz(path="a.npz", validation=value)


def many(graphs: int = 20) -> dict[str, np.ndarray]:
    """Graphs of 1 to 5 nodes, their nodes mixed up in the file; every third has no edge."""
    rng = np.random.default_rng(1)
    graph = np.concatenate([np.full(rng.integers(1, 6), g) for g in range(graphs)])
    graph = rng.permutation(graph)
    pairs = []
    for g in range(graphs):
        members = np.flatnonzero(graph == g)
        if g % 3:
            pairs += [tuple(rng.choice(members, 2)) for _ in range(rng.integers(1, 8))]
    return {
        "x": rng.normal(3, 2, (len(graph), 2)),
        "graph": graph,
        "edge_index": rng.permutation(np.array(pairs)).T,
        "y": np.arange(graphs) % 2,
    }


def test_padding_equals_a_loop() -> None:
    arrays = many()
    given = ManyGraphs(
        x=torch.from_numpy(arrays["x"]).float(),
        graph=torch.from_numpy(arrays["graph"]),
        edges=torch.from_numpy(arrays["edge_index"]),
        targets=arrays["y"],
    )
    x, edges = padded(given, True, "here")
    assert x.shape == (20, 5, 4)
    for g in range(20):
        members = np.flatnonzero(arrays["graph"] == g).tolist()
        own = [(int(a), int(b)) for a, b in arrays["edge_index"].T if a in members]
        for place, node in enumerate(members):
            arriving = sum(b == node for _, b in own)
            assert x[g, place].tolist() == [1.0, *arrays["x"][node].astype(np.float32).tolist(), arriving]
        assert not x[g, len(members) :].any()
        assert edges[g, : len(own)].tolist() == [[members.index(a), members.index(b)] for a, b in own]
        assert bool((edges[g, len(own) :] == -1).all())


def test_graphs_are_divided_and_scaled_by_the_training_part(tmp_path: Path) -> None:
    arrays = many()
    path = written(tmp_path, arrays)
    data = Graphs(path=path, validation=0.2, test=0.2, standardise=True).open()
    assert data.facts.form == "graph" and data.facts.classes == ("0", "1")
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 12, "validation": 4, "test": 4}
    known = np.isin(arrays["graph"], data.indices["train"].numpy())
    np.testing.assert_allclose(data.fitted["x"]["mean"], arrays["x"][known].mean(0), rtol=1e-6)  # from 32 bits
    np.testing.assert_allclose(data.fitted["x"]["std"], arrays["x"][known].std(0), rtol=1e-6)
    (batch,) = data.splits["test"].batches(Order(batch_size=10))
    x, edges = batch.inputs
    assert x.shape[1:] == data.facts.inputs[0][0] and edges.shape[1:] == data.facts.inputs[1][0]
    graph = int(data.indices["test"][0])
    own = (arrays["x"][arrays["graph"] == graph] - arrays["x"][known].mean(0)) / arrays["x"][known].std(0)
    np.testing.assert_allclose(x[0, : len(own), 1:].numpy(), own, atol=1e-5)  # 32-bit numbers around 3
    assert not x[0, len(own) :].any() and batch.rows(1, 3).inputs[0].shape[0] == 2


def test_new_graphs_may_be_larger_and_have_no_targets(tmp_path: Path) -> None:
    source = Graphs(path=written(tmp_path, many()), standardise=True, degree=True)
    data = source.open()
    rng = np.random.default_rng(0)
    new = {"x": rng.normal(size=(9, 2)), "graph": np.zeros(9, int), "edge_index": np.array([[0, 1], [8, 8]])}
    np.savez(tmp_path / "new.npz", **new)  # type: ignore[arg-type]
    split = source.read(tmp_path / "new.npz", data.fitted, data.facts)
    (batch,) = split.batches(Order(batch_size=1))
    assert batch.inputs[0].shape == (1, 9, 4) and batch.inputs[1].tolist() == [[[0, 8], [1, 8]]]
    assert batch.targets.tolist() == [0]
    np.savez(tmp_path / "new.npz", **{**new, "x": np.zeros((9, 5))})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nodes have 6 features, the model was trained on 3"):
        source.read(tmp_path / "new.npz", data.fitted, data.facts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros(25, int)}, r"nodes belong to graphs 0\.\.19, 5 graphs have none; expected nodes in each of 0"),
        ({"edge_index": np.array([[0], [1]]), "graph": np.arange(20), "x": np.zeros((20, 1))}, "1 edges join nodes of"),
        ({"x": np.zeros((3, 2))}, "'x' has 3 nodes, 'graph'"),
        ({"graph": np.zeros((3, 2))}, "expected the number of each node's graph"),
    ],
)
def test_errors_of_graph_files_say_what_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Graphs(path=written(tmp_path, {**many(), **changes})).open()


def test_targets_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no array 'z' with the targets"):
        Graphs(path=written(tmp_path, many()), targets="z").open()


def tu(folder: Path, labels: str = "7\n7\n9\n7\n9\n") -> Path:
    """Two graphs, a triangle cut open and a pair, as their authors would write them."""
    folder.mkdir(exist_ok=True)
    (folder / "DS_A.txt").write_text("1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n")
    (folder / "DS_graph_indicator.txt").write_text("1\n1\n1\n2\n2\n")
    (folder / "DS_graph_labels.txt").write_text("1\n-1\n")
    (folder / "DS_node_labels.txt").write_text(labels)
    (folder / "DS_node_attributes.txt").write_text("0.5\n1.5\n2.5\n3.5\n4.5\n")
    return folder


def test_tu_folders_are_read(tmp_path: Path) -> None:
    source = TuGraphs(folder=str(tu(tmp_path / "DS")), validation=0, test=0)
    data = source.open()
    (batch,) = data.splits["train"].batches(Order(batch_size=5))
    x, edges = batch.inputs
    assert x.tolist() == [
        [[1, 1, 0, 0.5], [1, 1, 0, 1.5], [1, 0, 1, 2.5]],
        [[1, 1, 0, 3.5], [1, 0, 1, 4.5], [0, 0, 0, 0]],
    ]
    assert edges.tolist() == [[[0, 1], [1, 0], [1, 2], [2, 1]], [[0, 1], [1, 0], [-1, -1], [-1, -1]]]
    assert batch.targets.tolist() == [1, 0] and data.facts.classes == ("-1", "1")
    new = source.read(tu(tmp_path / "new", labels="9\n9\n9\n9\n9\n"), data.fitted, data.facts)
    (batch,) = new.batches(Order(batch_size=5))
    assert batch.inputs[0][0, 0].tolist() == [1, 0, 1, 0.5]
    with pytest.raises(DataError, match=r"labels \[8\] are not in the data that was trained on"):
        source.read(tu(tmp_path / "new", labels="8\n9\n9\n9\n9\n"), data.fitted, data.facts)


def test_damaged_tu_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0 files named \*_A.txt, expected one"):
        TuGraphs(folder=str(tmp_path)).open()
    folder = tu(tmp_path / "DS")
    (folder / "DS_node_labels.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="features of 2 nodes, but 5 in the graph indicator"):
        TuGraphs(folder=str(folder)).open()
    (folder / "DS_A.txt").write_text("a, b\n")
    with pytest.raises(DataError, match=r"DS_A\.txt: not rows of numbers separated by commas"):
        TuGraphs(folder=str(folder)).open()


@pytest.mark.skipif("KINGPOST_DATA" not in os.environ, reason="KINGPOST_DATA does not name the data sets' folder")
def test_cora_is_as_published() -> None:
    """Sen et al. 2008, and table 1 of Kipf and Welling: 2,708 nodes, 5,429 links (as drawn, some twice), 7 classes."""
    data = choose("data", {"name": "graph-npz", "path": "cora/cora.npz", "normalise": True}).open()  # type: ignore[attr-defined]
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 140, "validation": 500, "test": 1000}
    assert data.facts.graph.x.shape == (2708, 1433) and len(data.facts.classes) == 7
    assert data.fitted["graph"] == {
        "nodes": 2708, "edges": 10556, "loops": 0, "repeated_edges": 0, "edges_without_reverse": 0,
        "nodes_without_edges": 0,
    }  # fmt: skip
    counts = torch.bincount(next(data.splits["train"].batches(Order(batch_size=140))).targets)
    assert counts.tolist() == [20] * 7
    torch.testing.assert_close(data.facts.graph.x.sum(1), torch.ones(2708), rtol=1e-6, atol=0)  # sums of 30 in 32 bits
