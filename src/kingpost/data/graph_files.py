"""Many graphs of different sizes: read from files, and padded so that a batch of them is an array.

Legend of shapes: ``B`` graphs, ``M`` nodes and ``L`` edges of all of them together, ``N`` nodes and ``E`` edges of the
largest, ``F`` features of a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kingpost.data.arrays import load_npz
from kingpost.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ManyGraphs:
    """Graphs laid end to end.

    Args:
        x: features of the nodes, ``(M, F)`` float32; F may be 0.
        graph: which graph each node belongs to, ``(M,)`` int64.
        edges: ``(2, L)`` int64, numbers of nodes counted through all graphs.
        targets: as the file has them, ``(B, ...)``; None if it has none.
    """

    x: Tensor
    graph: Tensor
    edges: Tensor
    targets: np.ndarray | None


def as_edges(given: np.ndarray, nodes: int, where: str) -> Tensor:
    """Edges as ``(2, E)`` int64, checked.

    Raises:
        DataError: of another shape or dtype, or an edge to a node that there is not.
    """
    if given.ndim != 2 or given.shape[0] != 2:
        mend = "; transpose it" if given.ndim == 2 and given.shape[1] == 2 else ""
        raise DataError(f"{where}: edges of shape {given.shape}, expected (2, E): from row 0 to row 1{mend}")
    if given.dtype.kind not in "iu":
        raise DataError(f"{where}: edges of dtype {given.dtype}, expected whole numbers")
    if given.size and (int(given.min()) < 0 or int(given.max()) >= nodes):
        raise DataError(
            f"{where}: edges name nodes {int(given.min())}..{int(given.max())}, expected 0..{nodes - 1}; "
            "number the nodes from 0"
        )
    return torch.from_numpy(given.astype(np.int64))


def as_features(given: np.ndarray, where: str) -> Tensor:
    """Features of nodes as ``(N, F)`` float32; 8-bit numbers are numbers here, not pixels.

    Raises:
        DataError: of another shape or dtype, or not all finite.
    """
    if given.ndim != 2 or given.dtype.kind not in "fiub":
        raise DataError(f"{where}: features of shape {given.shape} and dtype {given.dtype}, expected numbers (N, F)")
    x = torch.from_numpy(given.astype(np.float32))
    if not bool(x.isfinite().all()):
        raise DataError(f"{where}: {int((~x.isfinite()).any(1).sum())} nodes have features that are not finite")
    return x


def read_npz(file: Path, x: str, graph: str, edges: str, targets: str) -> ManyGraphs:
    """Graphs from arrays in an ``.npz`` file, under the given keys; ``x`` may be empty for nodes without features.

    Raises:
        DataError: a key is absent (except that of the targets), or the arrays do not fit one another.
    """
    arrays = load_npz(file)
    for key in filter(None, (x, graph, edges)):
        if key not in arrays:
            raise DataError(f"{file}: no array '{key}'; it holds: {', '.join(sorted(arrays))}")
    of_node = arrays[graph]
    if of_node.ndim != 1 or of_node.dtype.kind not in "iu":
        raise DataError(f"{file}, {graph}: expected the number of each node's graph, (M,), got {of_node.shape}")
    features = as_features(arrays[x], f"{file}, {x}") if x else torch.zeros(len(of_node), 0)
    if len(features) != len(of_node):
        raise DataError(f"{file}: '{x}' has {len(features)} nodes, '{graph}' {len(of_node)}; they must be aligned")
    return ManyGraphs(
        x=features,
        graph=torch.from_numpy(of_node.astype(np.int64)),
        edges=as_edges(arrays[edges], len(of_node), f"{file}, {edges}"),
        targets=arrays.get(targets),
    )


def read_tu(folder: Path, labels: Mapping[str, Any] | None = None) -> tuple[ManyGraphs, dict[str, Any]]:
    """Graphs in the text format of the TU Dortmund collection, and the labels that its columns stand for.

    Files ``DS_A.txt`` (edges ``i, j``, numbered from 1), ``DS_graph_indicator.txt``, ``DS_graph_labels.txt``, and where
    there are such ``DS_node_labels.txt`` (one column of 0 and 1 for each label) and ``DS_node_attributes.txt``.
    Source: Morris et al., "TUDataset", arXiv 2007.08663.

    Args:
        folder: where they are; DS is the same for all of them.
        labels: those of an earlier folder, whose columns are wanted again.

    Raises:
        DataError: a file is absent or damaged, or has labels that the earlier one lacks.
    """
    found = sorted(folder.glob("*_A.txt"))
    if len(found) != 1:
        raise DataError(f"{folder}: {len(found)} files named *_A.txt, expected one")
    name = found[0].name.removesuffix("_A.txt")
    of_node = _rows(folder / f"{name}_graph_indicator.txt", np.int64)[:, 0] - 1
    pairs = _rows(found[0], np.int64).T - 1
    columns = []
    if (file := folder / f"{name}_node_labels.txt").exists():
        of_nodes = _rows(file, np.int64)[:, 0]
        known = (labels or {}).get("nodes") or np.unique(of_nodes).tolist()
        if strange := sorted(set(of_nodes.tolist()) - set(known)):
            raise DataError(f"{file}: labels {strange[:5]} are not in the data that was trained on")
        columns.append((of_nodes[:, None] == np.asarray(known)).astype(np.float32))
    else:
        known = []
    if (file := folder / f"{name}_node_attributes.txt").exists():
        columns.append(_rows(file, np.float32))
    if strange_files := [len(c) for c in columns if len(c) != len(of_node)]:
        raise DataError(f"{folder}: features of {strange_files[0]} nodes, but {len(of_node)} in the graph indicator")
    classes, numbers = np.unique(_rows(folder / f"{name}_graph_labels.txt", np.int64)[:, 0], return_inverse=True)
    many = ManyGraphs(
        x=as_features(np.concatenate([np.zeros((len(of_node), 0), np.float32), *columns], 1), str(folder)),
        graph=torch.from_numpy(of_node),
        edges=as_edges(pairs, len(of_node), str(found[0])),
        targets=numbers,
    )
    return many, {"nodes": known, "graphs": classes.tolist()}


def padded(many: ManyGraphs, degree: bool, where: str) -> tuple[Tensor, Tensor]:
    """Every graph filled up to the largest: nodes ``(B, N, 1 + F)`` float32 and edges ``(B, E, 2)`` int64.

    The first feature of a node is 1; a row that only fills up is all 0. An edge that only fills up is -1, -1.

    Args:
        many: the graphs.
        degree: add a feature, the number of edges that arrive at the node.
        where: for messages.

    Raises:
        DataError: an edge between two graphs, or a graph without nodes.
    """
    graphs = int(many.graph.max()) + 1 if many.targets is None else len(many.targets)
    nodes = torch.bincount(many.graph, minlength=graphs)
    if int(many.graph.min()) < 0 or len(nodes) > graphs or bool((nodes == 0).any()):
        raise DataError(
            f"{where}: nodes belong to graphs {int(many.graph.min())}..{int(many.graph.max())}, "
            f"{int((nodes == 0).sum())} graphs have none; expected nodes in each of 0..{graphs - 1}"
        )
    of_edge, other = many.graph[many.edges]
    if bool((of_edge != other).any()):
        raise DataError(f"{where}: {int((of_edge != other).sum())} edges join nodes of different graphs")
    arriving = torch.bincount(many.edges[1], minlength=len(many.graph)).float()
    columns = [torch.ones(len(many.graph), 1), many.x, *([arriving[:, None]] if degree else [])]
    place = _place(many.graph, nodes)
    x = torch.zeros(graphs, int(nodes.max()), sum(c.shape[1] for c in columns))
    x[many.graph, place] = torch.cat(columns, 1)
    lengths = torch.bincount(of_edge, minlength=graphs)
    edges = torch.full((graphs, max(1, int(lengths.max())), 2), -1)
    edges[of_edge, _place(of_edge, lengths)] = place[many.edges].T
    return x, edges


def _place(group: Tensor, sizes: Tensor) -> Tensor:
    """The number of each item within its group, in the order of the file."""
    order = torch.argsort(group, stable=True)
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]
    return place


def _rows(file: Path, dtype: type) -> np.ndarray:
    try:
        return np.loadtxt(file, delimiter=",", dtype=dtype, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not rows of numbers separated by commas ({error})") from error
