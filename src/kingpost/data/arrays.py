"""Data that is already arrays: passed in Python, or kept in an ``.npz`` file."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from kingpost.data import scaling
from kingpost.data.facts import WHOLE, TaskName, as_targets, as_tensors, class_numbers, facts_of
from kingpost.data.parts import FilePath, Fraction, Names, Seed, divide
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError, RecipeError
from kingpost.option import GIVEN, checked
from kingpost.source import DataFacts, Dataset, Source, existing_file, fingerprint

Samples = tuple[tuple[Tensor, ...], Tensor]


@checked
class Arrays(Source):
    """Numpy arrays or tensors; a recipe's file cannot hold them, so such a run is not reproducible from it.

    Floating point inputs become float32, uint8 float32 in 0..1, other whole numbers stay (tokens, codes).

    >>> data = Arrays(inputs=np.eye(8), targets=np.arange(8) % 2, validation=0.25)
    >>> data.open().facts.classes
    ('0', '1')
    """

    inputs: Any
    """One array ``(N, ...)``, or a tuple of them, one for each argument of the model."""
    targets: Any
    """``(N,)`` classes or values, ``(N, D)`` values, or ``(N, L)`` labels of 0 and 1."""
    validation: Any = 0.1
    """Fraction held out (the same of each class), or a pair (inputs, targets)."""
    test: Any = 0.0
    """Fraction held out (the same of each class), or a pair (inputs, targets)."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""
    task: TaskName | None = None
    """What the targets are for; null guesses it: whole numbers are classes, others are values."""
    classes: Names = ()
    """Names of the classes or labels; by default their numbers."""
    standardise: bool = False
    """Scale each column, channel or feature, and targets that are values, by mean and deviation in training."""

    def __post_init__(self) -> None:
        for key in ("validation", "test"):
            part = getattr(self, key)
            pair = isinstance(part, tuple | list) and len(part) == 2
            fraction = isinstance(part, int | float) and not isinstance(part, bool) and 0 <= part < 1
            if not (pair or fraction):
                raise RecipeError(
                    f"got {part!r}", path=key, mend="expected a number >= 0 and < 1, or (inputs, targets)"
                )

    # Arrays have no single truth value, so two sources are equal only if they are the same one.
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Arrays({self.to_value()['what']})"

    @property
    def reproducible(self) -> bool:
        """Never: no file can hold arrays that were passed in Python."""
        return False

    @property
    def name(self) -> str:
        """``given``: a file cannot hold arrays, and says so when it is loaded."""
        return GIVEN

    def to_value(self) -> dict[str, Any]:
        """A description, since the arrays themselves do not belong in a recipe."""
        shapes = [tuple(np.shape(x)) for x in (self.inputs if isinstance(self.inputs, tuple) else (self.inputs,))]
        return {"what": f"arrays, inputs {', '.join(map(str, shapes))}, targets {tuple(np.shape(self.targets))}"}

    def open(self) -> Dataset:
        """Divide the arrays, and scale them if that is wanted."""
        targets, task = as_targets(self.targets, self.task, "targets")
        given = {"train": (as_tensors(self.inputs, "inputs"), targets)}
        for part in ("validation", "test"):
            if isinstance(pair := getattr(self, part), tuple | list):
                given[part] = (as_tensors(pair[0], part), as_targets(pair[1], task, part)[0])
        fraction = {p: 0.0 if p in given else float(getattr(self, p)) for p in ("validation", "test")}
        return assemble(given, task, self.classes, fraction, self.split_seed, self.standardise)


@checked
class Npz(Source):
    """Arrays in an ``.npz`` file; no pickle is ever read.

    uint8 (pixels) becomes float32 in 0..1; all inputs are then standardised by the training part.
    """

    path: FilePath
    """The file."""
    inputs: Names = ("x_train",)
    """Keys of the training inputs, one for each argument of the model."""
    targets: str = "y_train"
    """Key of the training targets."""
    validation: Fraction = 0.1
    """Fraction held out of the training samples (the same of each class) if there are no validation keys."""
    validation_inputs: Names = ()
    """Keys of the validation inputs."""
    validation_targets: str = ""
    """Key of the validation targets."""
    test: Fraction = 0.0
    """Fraction held out of the training samples if there are no test keys."""
    test_inputs: Names = ()
    """Keys of the test inputs, ``x_test`` for example."""
    test_targets: str = ""
    """Key of the test targets."""
    classes: str = ""
    """Key of the names of the classes; by default they are their numbers."""
    channels: Literal["first", "last", "none"] = "first"
    """Where images ``(N, H, W)`` and clips ``(N, T, H, W)`` have their channels: before the rows, after the columns
    (``last``), or nowhere (``none`` adds an axis of one)."""
    task: TaskName | None = None
    """What the targets are for; null guesses it: whole numbers are classes, others are values."""
    standardise: bool = True
    """Scale each column, channel or feature, and targets that are values, by mean and deviation in training."""
    split_seed: Annotated[int, Ge(0)] = 0
    """Seed of the split; not that of the run."""

    def __post_init__(self) -> None:
        for part in ("validation", "test"):
            if bool(getattr(self, f"{part}_inputs")) != bool(getattr(self, f"{part}_targets")):
                raise RecipeError(f"{part}_inputs and {part}_targets belong together", path=part, mend="give both keys")

    def open(self) -> Dataset:
        """Read the arrays, divide and scale them."""
        file = existing_file(self.path)
        arrays = load_npz(file)
        train_targets, task = as_targets(_key(arrays, self.targets, file), self.task, self.targets)
        given = {"train": (self._inputs(arrays, self.inputs, file), train_targets)}
        for part in ("validation", "test"):
            if keys := getattr(self, f"{part}_inputs"):
                key = getattr(self, f"{part}_targets")
                given[part] = (
                    self._inputs(arrays, keys, file),
                    as_targets(_key(arrays, key, file), task, key)[0],
                )
        names = tuple(map(str, _key(arrays, self.classes, file))) if self.classes else ()
        fraction = {p: 0.0 if p in given else float(getattr(self, p)) for p in ("validation", "test")}
        return assemble(given, task, names, fraction, self.split_seed, self.standardise)

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> TensorSplit:
        """Samples of another ``.npz`` file with the same keys; targets may be absent, and are 0 then."""
        arrays = load_npz(path)
        inputs = self._inputs(arrays, self.inputs, path)
        for x, (shape, _) in zip(inputs, facts.inputs, strict=True):
            if tuple(x.shape[1:]) != shape:
                raise DataError(f"{path}: samples of shape {tuple(x.shape[1:])}, the model was trained on {shape}")
        if self.targets in arrays:
            targets = as_targets(arrays[self.targets], facts.task, self.targets)[0]  # type: ignore[arg-type]
        else:
            dtype = torch.int64 if facts.task in WHOLE else torch.float32
            targets = torch.zeros(len(inputs[0]), *facts.target_shape, dtype=dtype)
        return TensorSplit(*_scaled((inputs, targets), fitted), labelled=self.targets in arrays)

    def _inputs(self, arrays: Mapping[str, np.ndarray], keys: tuple[str, ...], file: Path) -> tuple[Tensor, ...]:
        return tuple(
            self._channels_first(x) for x in as_tensors(tuple(_key(arrays, key, file) for key in keys), "inputs")
        )

    def _channels_first(self, x: Tensor) -> Tensor:
        if self.channels == "first":
            return x
        if not 3 <= x.ndim - (self.channels == "last") <= 4:
            shape = tuple(x.shape[1:])
            raise DataError(f"{self.path}: samples of shape {shape} are no images or clips; set data.channels=first")
        return x.unsqueeze(-3) if self.channels == "none" else x.movedim(-1, -3).contiguous()


def assemble(
    given: Mapping[str, Samples],
    task: TaskName,
    classes: tuple[str, ...],
    fraction: Mapping[str, float],
    split_seed: int,
    standardise: bool,
) -> Dataset:
    """A data set from tensors: parts that are not given are held out of the training samples.

    Args:
        given: inputs and targets of ``train``, and of the other parts that exist already.
        task: what the targets are for.
        classes: names, or empty.
        fraction: what to hold out for ``validation`` and ``test``.
        split_seed: seed of the division.
        standardise: scale by the training part.
    """
    inputs, targets = given["train"]
    if task == "classification":
        classes = classes or class_numbers(part for _, part in given.values())
    facts = facts_of(task, inputs, targets, classes)
    for part, (others, values) in given.items():
        of_part = facts_of(task, others, values, facts.classes)
        if of_part.inputs != facts.inputs or of_part.target_shape != facts.target_shape:
            raise DataError(f"{part}: samples differ in shape or dtype from those of the training part")
        for one, other in zip(_codes(facts), _codes(of_part), strict=True):
            if other > one:
                raise DataError(
                    f"{part}: token or code {other - 1}, but those of the training samples end at {one - 1}"
                )
    groups = targets.numpy() if task == "classification" else None
    indices = divide(len(targets), fraction["validation"], fraction["test"], split_seed, groups)
    samples = {part: (tuple(x[index] for x in inputs), targets[index]) for part, index in indices.items()}
    samples.update({part: pair for part, pair in given.items() if part != "train"})
    fitted = _fit(samples["train"], task) if standardise else {}
    if fitted and facts.form in ("features", "table"):
        facts = dataclasses.replace(facts, scales=tuple(zip(*fitted["inputs"][0].values(), strict=True)))
    return Dataset(
        facts=facts,
        splits={part: TensorSplit(*_scaled(pair, fitted)) for part, pair in samples.items()},
        fingerprint=fingerprint(x.numpy() for xs, y in given.values() for x in (*xs, y)),
        fitted=fitted,
        indices=indices if len(indices) > 1 else {},
    )


def load_npz(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file, none of them pickled.

    Raises:
        DataError: not such a file, damaged, or with objects in it.
    """
    try:
        with np.load(file, allow_pickle=False) as opened:
            return {key: opened[key] for key in opened.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: not an .npz file of plain arrays ({error}); write it with numpy.savez") from error


def _key(arrays: Mapping[str, np.ndarray], key: str, file: Path) -> np.ndarray:
    if key not in arrays:
        raise DataError(f"{file}: no array '{key}'; it holds: {', '.join(sorted(arrays))}")
    return arrays[key]


def _fit(train: Samples, task: str) -> dict[str, Any]:
    """Scales of the floating point inputs (null for tokens) and, in regression, of the targets."""
    inputs = [scaling.fit(x) if x.is_floating_point() else None for x in train[0]]
    return {"inputs": inputs} | ({"target": scaling.fit(train[1])} if task in ("regression", "forecasting") else {})


def _codes(facts: DataFacts) -> tuple[int, ...]:
    """How many tokens or codes there are, of each kind."""
    return (facts.vocabulary, facts.target_vocabulary, *facts.cardinalities)


def _scaled(samples: Samples, fitted: Mapping[str, Any]) -> Samples:
    inputs, targets = samples
    if "inputs" in fitted:
        inputs = tuple(scaling.apply(x, s) if s else x for x, s in zip(inputs, fitted["inputs"], strict=True))
    return inputs, scaling.apply(targets, fitted["target"]) if "target" in fitted else targets
