"""Graphs as data: the nodes of one graph, or many graphs.

Legend of shapes: ``N`` nodes, ``E`` edges, ``F`` features of a node, ``B`` graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kingpost.data import scaling
from kingpost.data.arrays import load_npz
from kingpost.data.facts import TaskName, as_targets, class_numbers, facts_of
from kingpost.data.graph_files import ManyGraphs, as_edges, as_features, padded, read_npz, read_tu
from kingpost.data.parts import FilePath, Fraction, Seed, divide
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError, RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Graph, Source, existing_file, fingerprint


@checked
class GraphNpz(Source):
    """Nodes of one graph, from arrays in an ``.npz`` file; a sample is the number of a node.

    All nodes and edges are known in training, the targets of the training nodes only. ``fitted["graph"]`` counts what
    may be a mistake: loops, repeated edges, edges without their reverse, nodes without edges.
    """

    path: FilePath
    """The file."""
    x: str = "x"
    """Key of the features, ``(N, F)`` numbers."""
    edges: str = "edge_index"
    """Key of the edges, ``(2, E)`` whole numbers: from row 0 to row 1."""
    targets: str = "y"
    """Key of the targets: ``(N,)`` classes (< 0: unknown) or values, ``(N, D)`` values, or ``(N, L)`` labels."""
    train: str = "train_idx"
    """Key of the training nodes, numbers or a mask ``(N,)``; empty: all known ones that are in no other part."""
    validation: float | str = "val_idx"
    """Key of the validation nodes, or a fraction held out of the training nodes (the same of each class)."""
    test: float | str = "test_idx"
    """Key of the test nodes, or a fraction held out of the training nodes (the same of each class)."""
    classes: str = ""
    """Key of the names of the classes; by default they are their numbers."""
    task: TaskName | None = None
    """What the targets are for; null guesses it: whole numbers are classes, others are values."""
    normalise: bool = False
    """Divide each node's features by the sum of their sizes, as is usual for counts of words."""
    both_directions: bool = False
    """Add the reverse of each edge that stands in one direction only."""
    split_seed: Seed = 0
    """Seed of the split, where fractions are held out; not that of the run."""

    def __post_init__(self) -> None:
        for part in ("validation", "test"):
            value = getattr(self, part)
            if value == "" or (not isinstance(value, str) and not 0 <= value < 1):
                raise RecipeError(f"got {value!r}", path=part, mend="expected a key, or a number >= 0 and < 1")

    def open(self) -> Dataset:
        """Read the arrays, check the graph and divide the nodes."""
        file = existing_file(self.path)
        arrays = load_npz(file)
        x = as_features(_key(arrays, self.x, file), f"{file}, {self.x}")
        edges = as_edges(_key(arrays, self.edges, file), len(x), f"{file}, {self.edges}")
        targets, task = as_targets(_key(arrays, self.targets, file), self.task, self.targets)
        if len(targets) != len(x):
            raise DataError(f"{file}: '{self.x}' has {len(x)} nodes, '{self.targets}' {len(targets)}")
        parts, made = self._parts(arrays, file, targets, task)
        everyone = torch.cat(list(parts.values()))
        names = tuple(map(str, _key(arrays, self.classes, file))) if self.classes else ()
        facts = facts_of(task, [everyone], targets[everyone], names)
        printed = fingerprint([*(t.numpy() for t in (x, edges, targets)), *(p.numpy() for p in parts.values())])
        counted = _oddities(edges, len(x))
        if self.both_directions:
            edges = _with_reverse(edges, len(x))
        if self.normalise:
            x = x / x.abs().sum(1, keepdim=True).clamp(min=1e-12)
        return Dataset(
            facts=replace(facts, graph=Graph(x=x, edges=edges)),
            splits={part: TensorSplit((nodes,), targets[nodes]) for part, nodes in parts.items()},
            fingerprint=printed,
            fitted={"graph": counted},
            indices=parts if made else {},
        )

    def _parts(
        self, arrays: Mapping[str, np.ndarray], file: Path, targets: Tensor, task: TaskName
    ) -> tuple[dict[str, Tensor], bool]:
        """Nodes of each part, and whether some were held out here."""
        keys = {part: key for part in ("train", "validation", "test") if isinstance(key := getattr(self, part), str)}
        given = {part: _nodes(_key(arrays, key, file), len(targets), f"{file}, {key}")
                 for part, key in keys.items() if key}  # fmt: skip
        if "train" not in given:
            free = targets >= 0 if task == "classification" else torch.ones(len(targets), dtype=torch.bool)
            for nodes in given.values():
                free[nodes] = False
            given["train"] = free.nonzero()[:, 0]
        taken = torch.bincount(torch.cat(list(given.values())), minlength=len(targets))
        if bool((taken > 1).any()):
            raise DataError(f"{file}: {int((taken > 1).sum())} nodes are in a part twice, or in more than one part")
        if task == "classification" and (unknown := int((targets[taken > 0] < 0).sum())):
            raise DataError(f"{file}: {unknown} nodes of the parts have a class below 0, which stands for unknown")
        fraction = {p: v for p in ("validation", "test") if not isinstance(v := getattr(self, p), str)}
        if not any(fraction.values()):
            return given, False
        known = given.pop("train")
        groups = targets[known].numpy() if task == "classification" else None
        held = divide(len(known), fraction.get("validation", 0.0), fraction.get("test", 0.0), self.split_seed, groups)
        return {part: known[index] for part, index in held.items()} | given, True


@checked
class Graphs(Source):
    """Many graphs laid end to end in an ``.npz`` file; a sample is a graph, filled up to the largest one.

    Inputs: nodes ``(N, 1 + F)`` float32, whose first feature is 1 for a node and 0 where there is none, and edges
    ``(E, 2)`` int64, filled up with -1. Memory follows the largest graph.
    """

    path: FilePath
    """The file."""
    x: str = "x"
    """Key of the features of all nodes, ``(M, F)``; empty for nodes without features."""
    graph: str = "graph"
    """Key of the number of each node's graph, ``(M,)``, from 0."""
    edges: str = "edge_index"
    """Key of the edges, ``(2, L)`` whole numbers from row 0 to row 1; nodes are counted through all graphs."""
    targets: str = "y"
    """Key of the graphs' targets, ``(B,)`` classes or values, ``(B, D)`` values or ``(B, L)`` labels."""
    degree: bool = False
    """Add a feature: the number of edges that arrive at the node."""
    standardise: bool = False
    """Scale the features by mean and deviation over the nodes of the training graphs."""
    validation: Fraction = 0.1
    """Part of the graphs held out for validation, the same of each class."""
    test: Fraction = 0.1
    """Part of the graphs held out for the test, the same of each class."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""
    task: TaskName | None = None
    """What the targets are for; null guesses it: whole numbers are classes, others are values."""

    def open(self) -> Dataset:
        """Read, fill up, divide and scale the graphs."""
        file = existing_file(self.path)
        many = read_npz(file, self.x, self.graph, self.edges, self.targets)
        if many.targets is None:
            raise DataError(f"{file}: no array '{self.targets}' with the targets")
        targets, task = as_targets(many.targets, self.task, self.targets)
        classes = class_numbers([targets]) if task == "classification" else ()
        return _dataset(self, many, targets, task, classes, str(file), {})

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> TensorSplit:
        """Graphs of another file with the same keys, of any size; targets may be absent, and are 0 then."""
        many = read_npz(path, self.x, self.graph, self.edges, self.targets)
        return _new_split(self, many, fitted, facts, str(path), many.targets)


@checked
class TuGraphs(Source):
    """Many classified graphs in a folder of the TU Dortmund collection; inputs as of ``graphs``.

    Labels of nodes become columns of 0 and 1, attributes follow them as they are. Edge labels and attributes are not
    used. Source: Morris et al., "TUDataset", arXiv 2007.08663.
    """

    folder: FilePath
    """Where ``DS_A.txt``, ``DS_graph_indicator.txt``, ``DS_graph_labels.txt`` and the others are."""
    degree: bool = False
    """Add a feature: the number of edges that arrive at the node."""
    standardise: bool = False
    """Scale the features by mean and deviation over the nodes of the training graphs."""
    validation: Fraction = 0.1
    """Part of the graphs held out for validation, the same of each class."""
    test: Fraction = 0.1
    """Part of the graphs held out for the test, the same of each class."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""

    def open(self) -> Dataset:
        """Read, fill up, divide and scale the graphs."""
        folder = existing_file(self.folder, where="data.folder")
        many, labels = read_tu(folder)
        assert many.targets is not None
        targets = torch.from_numpy(many.targets)
        classes = tuple(map(str, labels["graphs"]))
        return _dataset(self, many, targets, "classification", classes, str(folder), {"labels": labels})

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> TensorSplit:
        """Graphs of another folder of this form; their classes are not used."""
        many, _ = read_tu(path, fitted["labels"])
        return _new_split(self, many, fitted, facts, str(path), None)


def _dataset(
    source: Graphs | TuGraphs,
    many: ManyGraphs,
    targets: Tensor,
    task: TaskName,
    classes: tuple[str, ...],
    where: str,
    fitted: dict[str, Any],
) -> Dataset:
    """The graphs filled up, divided and scaled."""
    x, edges = padded(many, source.degree, where)
    facts = facts_of(task, [x, edges], targets, classes)
    groups = targets.numpy() if task == "classification" else None
    indices = divide(len(targets), source.validation, source.test, source.split_seed, groups)
    if source.standardise and x.shape[2] > 1:
        of_training = x[indices["train"]]
        fitted = {**fitted, "x": scaling.fit(of_training[of_training[..., 0] > 0][:, 1:])}
    whole = TensorSplit((_scaled(x, fitted), edges), targets)
    return Dataset(
        facts=facts,
        splits={part: whole.subset(index) for part, index in indices.items()},
        fingerprint=fingerprint(t.numpy() for t in (many.x, many.graph, many.edges, targets)),
        fitted=fitted,
        indices=indices if len(indices) > 1 else {},
    )


def _new_split(
    source: Graphs | TuGraphs,
    many: ManyGraphs,
    fitted: Mapping[str, Any],
    facts: DataFacts,
    where: str,
    given: np.ndarray | None,
) -> TensorSplit:
    """New graphs, prepared as those that were trained on."""
    x, edges = padded(replace(many, targets=given), source.degree, where)
    wanted = facts.inputs[0][0][1]
    if x.shape[2] != wanted:
        raise DataError(f"{where}: nodes have {x.shape[2] - 1} features, the model was trained on {wanted - 1}")
    if given is not None:
        targets = as_targets(given, facts.task, where)[0]  # type: ignore[arg-type]
    else:
        dtype = torch.int64 if facts.task == "classification" else torch.float32
        targets = torch.zeros(len(x), *facts.target_shape, dtype=dtype)
    return TensorSplit((_scaled(x, fitted), edges), targets, labelled=given is not None)


def _scaled(x: Tensor, fitted: Mapping[str, Any]) -> Tensor:
    """Features of the nodes scaled, the first one and the filling left as they are."""
    if "x" not in fitted:
        return x
    features = scaling.apply(x[..., 1:].flatten(0, 1), fitted["x"]).view_as(x[..., 1:])
    return torch.cat([x[..., :1], features * x[..., :1]], -1)


def _key(arrays: Mapping[str, np.ndarray], key: str, file: Path) -> np.ndarray:
    if key not in arrays:
        raise DataError(f"{file}: no array '{key}'; it holds: {', '.join(sorted(arrays))}")
    return arrays[key]


def _nodes(given: np.ndarray, nodes: int, where: str) -> Tensor:
    """Numbers of nodes, from numbers or a mask."""
    if given.dtype == bool and given.shape == (nodes,):
        given = np.flatnonzero(given)
    if given.ndim != 1 or given.dtype.kind not in "iu" or not given.size:
        raise DataError(
            f"{where}: got {given.dtype} {given.shape}, expected numbers of nodes, or a mask ({nodes},) of bool"
        )
    if int(given.min()) < 0 or int(given.max()) >= nodes:
        raise DataError(f"{where}: nodes {int(given.min())}..{int(given.max())}, expected 0..{nodes - 1}")
    return torch.from_numpy(given.astype(np.int64))


def _codes(edges: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """One number for each edge, and for its reverse."""
    return edges[0] * nodes + edges[1], edges[1] * nodes + edges[0]


def _oddities(edges: Tensor, nodes: int) -> dict[str, int]:
    """Counts of what may be a mistake in a graph."""
    there, back = _codes(edges, nodes)
    touched = torch.bincount(edges.flatten(), minlength=nodes) > 0
    return {
        "nodes": nodes,
        "edges": edges.shape[1],
        "loops": int((edges[0] == edges[1]).sum()),
        "repeated_edges": edges.shape[1] - len(np.unique(there)),
        "edges_without_reverse": int((~torch.isin(there, back)).sum()),
        "nodes_without_edges": int((~touched).sum()),
    }


def _with_reverse(edges: Tensor, nodes: int) -> Tensor:
    there, back = _codes(edges, nodes)
    missing = torch.from_numpy(np.unique(back[~torch.isin(back, there)]))
    return torch.cat([edges, torch.stack([missing // nodes, missing % nodes])], 1)
