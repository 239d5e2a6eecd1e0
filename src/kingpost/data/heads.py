"""Target columns of mixed kinds, classes beside values: what is learned of them, and their tensors.

What is learned of a column is a mapping of plain values, one of

- ``{"name", "classes": [...]}``
- ``{"name", "classes": [], "mean", "std"}``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from kingpost.data import scaling
from kingpost.data.columns import to_numbers
from kingpost.errors import DataError
from kingpost.source import Head

if TYPE_CHECKING:
    import pandas as pd

Fitted = Mapping[str, Any]


def fit_head(name: str, values: pd.Series, as_category: bool, max_categories: int) -> dict[str, Any]:
    """What the training rows tell of a target column; missing labels are left out.

    Args:
        name: of the column.
        values: of the training rows.
        as_category: take numbers as classes.
        max_categories: more classes are refused.

    Raises:
        DataError: no label, one class only, or too many classes; says how to mend it.
    """
    present = values.dropna()
    if present.empty:
        raise DataError(f"the target '{name}' has no label in the training part; take it out of data.target")
    numbers = to_numbers(present)
    if not as_category and not np.isnan(numbers).any():
        if np.isinf(numbers).any():
            raise DataError(f"the target '{name}' holds infinite numbers; mark them as missing with data.na_values")
        scale = scaling.fit(torch.from_numpy(numbers))
        return {"name": name, "classes": [], "mean": scale["mean"][0], "std": scale["std"][0]}
    classes = sorted(set(present.astype(str)))
    if not 2 <= len(classes) <= max_categories:
        raise DataError(
            f"the target '{name}' holds {len(classes)} classes, expected 2 to {max_categories}; "
            "take it out of data.target, or raise data.max_categories"
        )
    return {"name": name, "classes": classes}


def encode_heads(frame: pd.DataFrame, heads: Sequence[Fitted], where: str) -> Tensor:
    """Class numbers and standardised values side by side, ``(N, K)`` float32; NaN where a label is missing.

    Raises:
        DataError: a column is absent, or holds a class that the training part lacks, or a text among its numbers.
    """
    columns = []
    for head in heads:
        if head["name"] not in frame:
            raise DataError(f"{where}: no target column '{head['name']}'; it has: {', '.join(map(str, frame.columns))}")
        values = cast("pd.Series", frame[head["name"]])
        missing = values.isna().to_numpy()
        if head["classes"]:
            number = {name: float(index) for index, name in enumerate(head["classes"])}
            column = torch.tensor([number.get(str(value), float("nan")) for value in values])
        else:
            numbers = torch.from_numpy(to_numbers(values))
            column = scaling.apply(numbers, {"mean": [head["mean"]], "std": [head["std"]]})
        if (strange := np.flatnonzero(~column.isfinite().numpy() & ~missing)).size:
            row = int(strange[0])
            wanted = f"one of {', '.join(head['classes'])}" if head["classes"] else "a number"
            raise DataError(
                f"{where}: column '{head['name']}' holds {values.iloc[row]!r} in row {values.index[row]}, "
                f"expected {wanted}"
            )
        columns.append(column)
    return torch.stack(columns, 1)


def head_facts(heads: Sequence[Fitted]) -> tuple[Head, ...]:
    """The heads as a model needs to know them.

    >>> head_facts([{"name": "income", "classes": ["low", "high"]}])[0].outputs
    2
    """
    return tuple(Head(name=head["name"], classes=tuple(head["classes"])) for head in heads)


def head_scales(heads: Sequence[Fitted]) -> dict[str, scaling.Scale]:
    """Scales of the targets, ``(K,)``, and of the predictions, ``(O,)``; 0 and 1 for classes and probabilities."""
    of_target: scaling.Scale = {"mean": [], "std": []}
    of_prediction: scaling.Scale = {"mean": [], "std": []}
    for head in heads:
        for key, neutral in (("mean", 0.0), ("std", 1.0)):
            value = neutral if head["classes"] else float(head[key])
            of_target[key].append(value)
            of_prediction[key] += [value] * (len(head["classes"]) or 1)
    return {"target": of_target, "prediction": of_prediction}
