"""How a source is divided into training, validation and test part: the fields, and the division itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Lt
from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema
from torch import Tensor

from kingpost.errors import DataError, RecipeError
from kingpost.source import held_out


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _as_texts(value: object) -> object:
    return tuple(map(_as_text, value)) if isinstance(value, tuple | list) else (_as_text(value),)


def _as_part(value: object, info: ValidationInfo) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    if number or isinstance(value, str | Path):
        return _as_text(value)
    raise RecipeError(
        f"got {value!r}",
        path=info.field_name or "",
        mend="expected a number >= 0 and < 1 (a fraction of the training file), or the path of a file",
    )


FilePath = Annotated[str, BeforeValidator(_as_text)]
"""A path, relative to the current folder or to KINGPOST_DATA; kept as text, as in YAML."""
_TEXT = {"type": "string"}
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_texts),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}),
]
"""One name or several."""
Fraction = Annotated[float, Ge(0), Lt(1)]
"""Part of the samples; 0 leaves the part out."""
Part = Annotated[float | str, BeforeValidator(_as_part)]
"""A fraction held out of the training file, or a file of its own."""
Seed = Annotated[int, Ge(0)]


def divide(
    samples: int, validation: float, test: float, seed: int, groups: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Sorted indices of each part; disjoint, and together all samples. A part with fraction 0 is left out.

    Args:
        samples: how many there are.
        validation: fraction of all samples.
        test: fraction of all samples.
        seed: of the split, not of the run.
        groups: a class per sample, ``(samples,)``: then each part has the same share of each.

    Raises:
        DataError: too few samples, or nothing is left to train on.

    >>> {name: len(index) for name, index in divide(50, 0.1, 0.2, seed=0).items()}
    {'train': 35, 'validation': 5, 'test': 10}
    """
    if validation + test >= 1:
        raise DataError(f"validation {validation} and test {test} leave nothing to train on; make them smaller")
    parts = {}
    rest = torch.arange(samples)
    if test:
        rest, parts["test"] = held_out(samples, test, seed, groups)
    if validation:
        of_rest = groups[rest.numpy()] if groups is not None else None
        kept, out = held_out(len(rest), validation / (1 - test), seed + 1, of_rest)
        rest, parts["validation"] = rest[kept], rest[out]
    return {"train": rest, **{name: parts[name] for name in ("validation", "test") if name in parts}}


def fractions(validation: float | str, test: float | str) -> tuple[float, float]:
    """The fractions to hold out; 0 where a part has a file of its own."""
    return tuple(0.0 if isinstance(part, str) else part for part in (validation, test))  # type: ignore[return-value]
