"""Where data comes from: sources declare splits; a split gives batches in a seeded order.

A split is made once, with its own seed, so that runs that differ in their seed share their test samples;
it is recorded in the run folder with the fingerprint of the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kingpost import seeds
from kingpost.assembly import Batch
from kingpost.errors import DataError
from kingpost.option import Option

Form = Literal[
    "features", "table", "image", "clip", "series", "tokens", "token-pair", "nodes", "graph", "other"
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """One graph whose nodes are the samples.

    Args:
        x: features of every node, ``(N, F)``.
        edges: from (row 0) and to (row 1), ``(2, E)`` int64; an undirected edge stands in both directions.
    """

    x: Tensor
    edges: Tensor


@dataclass(frozen=True, kw_only=True)
class Head:
    """One of several things that are predicted at once.

    Args:
        name: of the column.
        classes: names of its classes; empty for a value.
    """

    name: str
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Units that its prediction takes."""
        return len(self.classes) or 1


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a model and a task must know of the data.

    Args:
        task: name of the task that the data is for.
        inputs: shape (without ``B``) and dtype of each input of a sample.
        target_shape: shape of one sample's target, ``()`` for a class.
        classes: names of the classes or labels, in order; empty for regression.
        vocabulary: number of distinct tokens, where inputs are tokens; else 0.
        target_vocabulary: that of the second sequence, where there are two.
        padding: the token that fills up short sequences; None if none is filled up.
        begin: the token that a generated sequence starts with.
        end: the token that ends a sequence.
        features: names of the input columns, where they have names.
        scales: mean and standard deviation that each of them was scaled with; empty where nothing was scaled.
        cardinalities: number of codes of each category, where the last input is codes ``(K,)``; 0 is 'another'.
        heads: what is predicted, for several things at once; the target has one column for each.
        graph: the graph that all samples are nodes of.
        targets: names of the target's columns, where they have names.
        class_counts: training samples of each class, in their order; empty where they were not counted.
    """

    task: str
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    target_shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    vocabulary: int = 0
    target_vocabulary: int = 0
    padding: int | None = None
    begin: int | None = None
    end: int | None = None
    features: tuple[str, ...] = ()
    scales: tuple[tuple[float, float], ...] = ()
    cardinalities: tuple[int, ...] = ()
    heads: tuple[Head, ...] = ()
    graph: Graph | None = None
    targets: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()

    @property
    def form(self) -> Form:
        """What kind of thing a sample is, from the shapes of its inputs."""
        if self.graph is not None:
            return "nodes"
        shapes = [shape for shape, _ in self.inputs]
        whole = [not dtype.is_floating_point for _, dtype in self.inputs]
        if len(shapes) == 1:
            if whole[0]:
                return "tokens" if len(shapes[0]) == 1 and not self.cardinalities else "other"
            return {1: "features", 2: "series", 3: "image", 4: "clip"}.get(len(shapes[0]), "other")  # type: ignore[return-value]
        if len(shapes) == 2 and [len(s) for s in shapes] == [1, 1]:
            return "token-pair" if all(whole) else "table" if whole == [False, True] else "other"
        if len(shapes) == 2 and [len(s) for s in shapes] == [2, 2] and whole == [False, True]:
            return "graph"
        return "other"


class Split(ABC):
    """One part of the data: training, validation or test.

    Attributes:
        labelled: whether targets are known; if not, they are only placeholders.
        texts: source and target sentence of each sample as the file has them, where samples are sentences.
    """

    labelled: bool = True
    texts: Sequence[tuple[str, str]] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def batches(self, order: Order) -> Iterator[Batch]:
        """Batches in the given order, starting at ``order.start``."""

    @property
    @abstractmethod
    def sharded(self) -> bool:
        """True if a batch holds only this rank's rows, False if it holds the global batch."""

    def steps(self, batch_size: int) -> int:
        """Number of batches of a pass; the last may be smaller."""
        return -(-len(self) // batch_size)

    def class_counts(self, classes: int) -> tuple[int, ...]:
        """Samples of each class, for one class of several; empty where labels are not at hand."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of one pass over a split, and this process's part of it.

    Args:
        batch_size: samples in a global batch.
        shuffle: a new random order, else the order of the data.
        seed: the run's seed.
        epoch: number of the pass, from 0.
        start: how many batches of the pass are already done.
        rank: this process.
        ranks: number of processes.
        balanced: every class has the same part of a shuffled pass.
    """

    batch_size: int
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0
    start: int = 0
    rank: int = 0
    ranks: int = 1
    balanced: bool = False

    def generator(self, purpose: str, rank: int = 0) -> torch.Generator:
        """A generator seeded by (seed, purpose, epoch, rank)."""
        return seeds.generator(self.seed, purpose, self.epoch, rank)

    def indices(self, samples: int, labels: Tensor | None = None) -> Tensor:
        """All sample indices of the pass, ``(samples,)`` int64.

        Args:
            samples: how many there are.
            labels: the class of each, ``(samples,)`` int64, where it is at hand; a balanced pass needs them.

        Raises:
            DataError: the pass is balanced, and there are no labels.
        """
        if not self.shuffle:
            return torch.arange(samples)
        generator = self.generator("order")
        if not self.balanced:
            return torch.randperm(samples, generator=generator)
        if labels is None or labels.ndim != 1 or labels.is_floating_point():
            raise DataError("a balanced pass needs the class of each sample in memory; use class-weights instead")
        return balanced_indices(labels, generator)


def balanced_indices(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many indices as there are labels, in random order, each class as often as any other (or one time more).

    Samples of a class are all taken once before one is taken twice; of a class with too many, some are left out.

    >>> labels = torch.tensor([0, 0, 0, 0, 0, 1])
    >>> labels[balanced_indices(labels, torch.Generator())].bincount().tolist()
    [3, 3]
    """
    members = [(labels == label).nonzero().flatten() for label in labels.bincount().nonzero()]
    share, rest = divmod(len(labels), len(members))
    one_more = set(torch.randperm(len(members), generator=generator)[:rest].tolist())
    taken = []
    for number, own in enumerate(members):
        wanted = share + (number in one_more)
        rounds = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-wanted // len(own)))]
        taken += [torch.cat(rounds)[:wanted]] if rounds else []
    together = torch.cat(taken)
    return together[torch.randperm(len(together), generator=generator)]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Opened data: its splits, its facts, and a record of how they came about.

    Args:
        facts: shapes and names.
        splits: ``train``, and where there are such, ``validation`` and ``test``.
        fingerprint: SHA-256 over the data as read.
        fitted: what was learned from the training part (scales, categories, vocabulary); plain values.
        indices: for splits that kingpost made, which samples of the source each one holds.
        decode: the text that target tokens stand for, special ones left out; None if targets are no text.
    """

    facts: DataFacts
    splits: Mapping[str, Split]
    fingerprint: str
    fitted: Mapping[str, Any] = field(default_factory=dict)
    indices: Mapping[str, Tensor] = field(default_factory=dict)
    decode: Callable[[Sequence[int]], str] | None = None

    def __post_init__(self) -> None:
        facts = self.facts
        if facts.task == "classification" and not facts.class_counts and "train" in self.splits:
            counts = self.splits["train"].class_counts(len(facts.classes))
            object.__setattr__(self, "facts", dataclasses.replace(facts, class_counts=counts))


class Source(Option):
    """Base of all data sources."""

    @property
    def reproducible(self) -> bool:
        """Whether the recipe's file alone can make it again."""
        return True

    @abstractmethod
    def open(self) -> Dataset:
        """Read the data and make its splits.

        Raises:
            DataError: a file is absent or damaged, or is not what the recipe says.
        """

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> Split:
        """New samples from a file, prepared exactly as the training part was.

        A split whose targets are not known says so: ``labelled = False``.

        Raises:
            DataError: this source cannot read single files, or the file does not fit.
        """
        raise DataError(f"'{self.name}' data has no files to predict on; use --part test")


def original_units(values: Tensor, fitted: Mapping[str, Any], key: str = "target") -> Tensor:
    """Regression values as the source had them: undoes the scaling in ``fitted[key]``, if there is one.

    Args:
        values: predictions or targets, ``(N,)`` or ``(N, D)``, standardised.
        fitted: of the :class:`Dataset`; ``{"target": {"mean": [D numbers], "std": [D numbers]}}``.
        key: ``target``, or ``prediction`` where predictions have other columns than targets (multi-task).

    >>> original_units(torch.tensor([[-1.0], [0.5]]), {"target": {"mean": [20.0], "std": [4.0]}}).tolist()
    [[16.0], [22.0]]
    """
    if key not in fitted:
        return values
    mean, std = (torch.tensor(fitted[key][part], dtype=values.dtype, device=values.device) for part in ("mean", "std"))
    return values * std + mean


def held_out(samples: int, fraction: float, seed: int, groups: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Indices kept and held out, both sorted; with ``groups``, the same fraction of each.

    Args:
        samples: how many there are to divide.
        fraction: part that is held out, in (0, 1).
        seed: of the split, not of the run.
        groups: a class per sample, ``(samples,)``.

    >>> kept, out = held_out(10, 0.2, seed=0)
    >>> len(kept), len(out), sorted([*kept.tolist(), *out.tolist()]) == list(range(10))
    (8, 2, True)
    """
    rng = np.random.default_rng(seeds.derive(seed, "split"))
    labels = np.zeros(samples, dtype=np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    out = np.zeros(samples, dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        out[members[: round(len(members) * fraction)]] = True
    if out.all() or not out.any():
        raise DataError(f"{samples} samples are too few to hold out a part of {fraction}")
    return torch.from_numpy(np.flatnonzero(~out)), torch.from_numpy(np.flatnonzero(out))


def fingerprint(parts: Iterable[np.ndarray | bytes | str]) -> str:
    """SHA-256 over arrays (dtype, shape, bytes) and texts, as hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\x1e")
    return digest.hexdigest()


def existing_file(path: Path | str, *, where: str = "data.path", root: Path | None = None) -> Path:
    """The path as given, or under the folder ``KINGPOST_DATA``; it must exist.

    Raises:
        DataError: it does not; says where it was looked for.
    """
    import os

    given = Path(path).expanduser()
    folders: Sequence[Path] = [root or Path.cwd()]
    if home := os.environ.get("KINGPOST_DATA"):
        folders = [*folders, Path(home)]
    for folder in folders:
        if (found := folder / given).exists():
            return found
    looked = ", ".join(str(folder) for folder in folders)
    hint = "" if home else "; set KINGPOST_DATA to the folder that holds the data sets"
    raise DataError(f"{where}: no '{given}' in {looked}{hint}")
