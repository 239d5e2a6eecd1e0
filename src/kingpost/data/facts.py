"""Facts of data that arrives as tensors: which task it is for, its shapes, its classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kingpost.errors import DataError
from kingpost.source import DataFacts

TaskName = Literal[
    "classification", "regression", "multi-label", "language-modelling", "sequence-to-sequence", "forecasting"
]  # fmt: skip
WHOLE = ("classification", "language-modelling", "sequence-to-sequence")  # tasks whose targets are whole numbers


def as_tensors(given: object, where: str) -> tuple[Tensor, ...]:
    """One array or several as tensors of a dtype that models take.

    Floating point and bool become float32, uint8 becomes float32 in 0..1, other whole numbers int64.

    Raises:
        DataError: not arrays, or of a dtype that is not a number.
    """
    several = given if isinstance(given, tuple | list) else (given,)
    return tuple(_as_tensor(one, where) for one in several)


def _as_tensor(given: object, where: str) -> Tensor:
    if not isinstance(given, Tensor | np.ndarray):
        raise DataError(f"{where}: expected a numpy array or a tensor, got {type(given).__name__}; use numpy.asarray")
    if isinstance(given, np.ndarray) and given.dtype.kind not in "fiub":
        raise DataError(f"{where}: expected numbers, got dtype {given.dtype}; turn the values into numbers first")
    tensor = (
        given.detach().cpu()
        if isinstance(given, Tensor)
        else torch.from_numpy(np.require(given, requirements=["C", "W"]))
    )
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(255)
    return tensor.float() if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def as_targets(given: object, task: TaskName | None, where: str) -> tuple[Tensor, TaskName]:
    """Targets in the dtype of their task, and the task, guessed from them if it is None.

    Whole numbers of one axis are classes, of two axes labels if all are 0 or 1; anything else is a value.
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray) and given.dtype == np.uint8:  # small class numbers, not pixels
        given = given.astype(np.int64)
    tensor = _as_tensor(given, where)
    if task is None:
        whole = not tensor.is_floating_point()
        labels = tensor.ndim == 2 and bool(((tensor == 0) | (tensor == 1)).all())
        task = "classification" if whole and tensor.ndim == 1 else "multi-label" if labels else "regression"
    if task not in WHOLE:
        return tensor.float(), task
    if tensor.is_floating_point():
        raise DataError(f"{where}: {task} needs whole numbers, got {tensor.dtype}; use .long(), or task=regression")
    return tensor, task


def facts_of(task: TaskName, inputs: Sequence[Tensor], targets: Tensor, classes: Sequence[str] = ()) -> DataFacts:
    """The facts of samples held as tensors.

    Args:
        task: what they are for.
        inputs: one tensor for each argument of the model, ``(N, ...)``.
        targets: ``(N, ...)``.
        classes: names of the classes or labels; by default their numbers.

    Raises:
        DataError: inputs and targets differ in length, or a target is outside the classes.

    >>> facts_of("classification", [torch.zeros(3, 2)], torch.tensor([0, 2, 1])).classes
    ('0', '1', '2')
    """
    for x in inputs:
        if len(x) != len(targets):
            raise DataError(f"inputs have {len(x)} samples, targets {len(targets)}; they must be aligned")
    if not len(targets):
        raise DataError("there are no samples")
    shapes = tuple((tuple(x.shape[1:]), x.dtype) for x in inputs)
    if task == "classification":
        classes = tuple(classes) or class_numbers([targets])
        if int(targets.min()) < 0 or int(targets.max()) >= len(classes):
            raise DataError(
                f"targets lie in {int(targets.min())}..{int(targets.max())}, expected 0..{len(classes) - 1}; "
                "number the classes from 0"
            )
    elif task == "multi-label":
        classes = tuple(classes) or tuple(map(str, range(targets.shape[1])))
    facts = DataFacts(task=task, inputs=shapes, target_shape=tuple(targets.shape[1:]), classes=tuple(classes))
    if task == "language-modelling":
        return replace(facts, vocabulary=max(int(x.max()) for x in (*inputs, targets) if not x.is_floating_point()) + 1)
    if facts.form == "tokens":
        return replace(facts, vocabulary=int(inputs[0].max()) + 1)
    if facts.form == "token-pair":
        target_vocabulary = max(int(x.max()) for x in (inputs[1], targets)) + 1
        return replace(facts, vocabulary=int(inputs[0].max()) + 1, target_vocabulary=target_vocabulary)
    if facts.form == "table":
        return replace(facts, cardinalities=tuple(int(column.max()) + 1 for column in inputs[1].unbind(1)))
    return facts


def class_numbers(targets: Iterable[Tensor]) -> tuple[str, ...]:
    """Names for classes that have none: their numbers, from 0 to the greatest that occurs anywhere."""
    return tuple(map(str, range(max(int(part.max()) for part in targets) + 1)))
