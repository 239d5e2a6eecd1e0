"""Where data comes from: sources declare splits; a split gives batches in a seeded order.

A split is made once, with its own seed, so that runs that differ in their seed share their test samples;
it is recorded in the run folder with the fingerprint of the data.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kingpost import seeds
from kingpost.assembly import Batch
from kingpost.errors import DataError
from kingpost.option import Option


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a model and a task must know of the data.

    Args:
        task: name of the task that the data is for.
        inputs: shape (without ``B``) and dtype of each input of a sample.
        target_shape: shape of one sample's target, ``()`` for a class.
        classes: names of the classes or labels, in order; empty for regression.
        vocabulary: number of distinct tokens, where inputs are tokens; else 0.
        features: names of the input columns, where they have names.
    """

    task: str
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    target_shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    vocabulary: int = 0
    features: tuple[str, ...] = ()


class Split(ABC):
    """One part of the data: training, validation or test."""

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
    """

    batch_size: int
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0
    start: int = 0
    rank: int = 0
    ranks: int = 1

    def generator(self, purpose: str, rank: int = 0) -> torch.Generator:
        """A generator seeded by (seed, purpose, epoch, rank)."""
        return seeds.generator(self.seed, purpose, self.epoch, rank)

    def indices(self, samples: int) -> Tensor:
        """All sample indices of the pass, ``(samples,)`` int64."""
        return torch.randperm(samples, generator=self.generator("order")) if self.shuffle else torch.arange(samples)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Opened data: its splits, its facts, and a record of how they came about.

    Args:
        facts: shapes and names.
        splits: ``train``, and where there are such, ``validation`` and ``test``.
        fingerprint: SHA-256 over the data as read.
        fitted: what was learned from the training part (scales, categories, vocabulary); plain values.
        indices: for splits that kingpost made, which samples of the source each one holds.
    """

    facts: DataFacts
    splits: Mapping[str, Split]
    fingerprint: str
    fitted: Mapping[str, Any] = field(default_factory=dict)
    indices: Mapping[str, Tensor] = field(default_factory=dict)


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

        Raises:
            DataError: this source cannot read single files, or the file does not fit.
        """
        raise DataError(f"'{self.name}' data has no files to predict on; use --part test")


def original_units(values: Tensor, fitted: Mapping[str, Any]) -> Tensor:
    """Regression values as the source had them: undoes the scaling in ``fitted["target"]``, if there is one.

    Args:
        values: predictions or targets, ``(N,)`` or ``(N, D)``, standardised.
        fitted: of the :class:`Dataset`; ``{"target": {"mean": [D numbers], "std": [D numbers]}}``.

    >>> original_units(torch.tensor([[-1.0], [0.5]]), {"target": {"mean": [20.0], "std": [4.0]}}).tolist()
    [[16.0], [22.0]]
    """
    if "target" not in fitted:
        return values
    mean, std = (
        torch.tensor(fitted["target"][key], dtype=values.dtype, device=values.device) for key in ("mean", "std")
    )
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
