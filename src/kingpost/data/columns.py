"""Columns of a table as tensors: what is learned from the training rows, and its use on any rows.

What is learned of a column is a mapping of plain values, one of

- ``{"name", "kind": "number", "median", "missing": bool, "mean", "std"}``
- ``{"name", "kind": "category", "categories": [...]}``
- ``{"name", "kind": "left-out", "why"}``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from kingpost.data import scaling
from kingpost.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MISSING = "<missing>"
OTHER = "<other>"
NEARLY_ALL = 0.9  # so many numbers in a column of texts, and the rest is most likely a marker for missing values

Encoding = Literal["one-hot", "codes"]
Column = Mapping[str, Any]


def fit_column(name: str, values: pd.Series, as_category: bool, max_categories: int) -> dict[str, Any]:
    """What the training rows tell of a column.

    Args:
        name: of the column.
        values: of the training rows; missing ones are NaN or None.
        as_category: take numbers as categories.
        max_categories: more distinct texts are refused.

    Raises:
        DataError: dates, infinite numbers, or too many categories; says how to mend it.
    """
    present = values.dropna()
    if present.empty:
        return {"name": name, "kind": "left-out", "why": "empty in the training part"}
    if present.nunique() == 1 and len(present) == len(values):
        return {"name": name, "kind": "left-out", "why": "constant in the training part"}
    if values.dtype.kind in "mM":
        raise DataError(f"column '{name}' holds dates; turn them into numbers, or data.drop+={name}")
    numbers = to_numbers(present)
    if as_category or np.isnan(numbers).any():
        return _fit_category(name, present, len(present) < len(values), numbers, max_categories)
    if np.isinf(numbers).any():
        raise DataError(f"column '{name}' holds infinite numbers; mark them as missing or data.drop+={name}")
    median = float(np.median(numbers))
    filled = np.where(values.isna(), median, to_numbers(values))
    scale = scaling.fit(torch.from_numpy(filled))
    missing = len(present) < len(values)
    return {"name": name, "kind": "number", "median": median, "missing": missing} | {k: v[0] for k, v in scale.items()}


def _fit_category(
    name: str, present: pd.Series, missing: bool, numbers: np.ndarray, max_categories: int
) -> dict[str, Any]:
    categories = sorted(set(present.astype(str)))
    if len(categories) > max_categories:
        odd = present[np.isnan(numbers)]
        hint = f"data.drop+={name}, or raise data.max_categories"
        if 0 < len(odd) < (1 - NEARLY_ALL) * len(present):
            marker = odd.iloc[0]
            hint = f"if '{marker}' marks a missing value, data.na_values+='{marker}', else {hint}"
        raise DataError(f"column '{name}' holds {len(categories)} different texts, more than {max_categories}; {hint}")
    return {"name": name, "kind": "category", "categories": [*categories, MISSING] if missing else categories}


def encode_columns(
    frame: pd.DataFrame, columns: Sequence[Column], encoding: Encoding, where: str
) -> tuple[Tensor, ...]:
    """Rows as the model's inputs: ``(N, F)`` float32, and with ``codes`` the categories, ``(N, K)`` int64.

    A category that the training rows lack is the last column of 0 and 1, or the code 0: ``<other>``.

    Raises:
        DataError: a column is absent, or a text stands among its numbers.
    """
    numbers: list[Tensor] = []
    codes: list[Tensor] = []
    for column in columns:
        if column["kind"] == "left-out":
            continue
        if column["name"] not in frame:
            raise DataError(f"{where}: no column '{column['name']}'; it has: {', '.join(map(str, frame.columns))}")
        values = cast("pd.Series", frame[column["name"]])
        if column["kind"] == "number":
            numbers += _encode_numbers(values, column, where)
        elif encoding == "codes":
            codes.append((_codes(values, column) + 1) % (len(column["categories"]) + 1))
        else:
            numbers.append(torch.nn.functional.one_hot(_codes(values, column), len(column["categories"]) + 1).float())
    groups = ([torch.cat([x.view(len(frame), -1) for x in numbers], 1)] if numbers else []) + (
        [torch.stack(codes, 1)] if codes else []
    )
    if not groups:
        raise DataError(f"{where}: no column is left to learn from; all are dropped, empty or constant")
    return tuple(groups)


def feature_names(columns: Sequence[Column], encoding: Encoding) -> tuple[str, ...]:
    """Names of the encoded columns, in the order of :func:`encode_columns`.

    >>> feature_names([{"name": "sex", "kind": "category", "categories": ["f", "m"]}], "one-hot")
    ('sex=f', 'sex=m', 'sex=<other>')
    """
    names: list[str] = []
    coded: list[str] = []
    for column in columns:
        name = column["name"]
        if column["kind"] == "number":
            names += [name, f"{name} is missing"] if column["missing"] else [name]
        elif column["kind"] == "category" and encoding == "codes":
            coded.append(name)
        elif column["kind"] == "category":
            names += [f"{name}={category}" for category in (*column["categories"], OTHER)]
    return (*names, *coded)


def feature_scales(columns: Sequence[Column], encoding: Encoding) -> tuple[tuple[float, float], ...]:
    """Mean and standard deviation of each encoded column, aligned with :func:`feature_names`; 0 and 1 if unscaled.

    >>> feature_scales([{"name": "age", "kind": "number", "missing": False, "mean": 40.0, "std": 12.0}], "one-hot")
    ((40.0, 12.0),)
    """
    own = {str(column["name"]): (column["mean"], column["std"]) for column in columns if column["kind"] == "number"}
    return tuple(own.get(name, (0.0, 1.0)) for name in feature_names(columns, encoding))


def cardinalities(columns: Sequence[Column], encoding: Encoding) -> tuple[int, ...]:
    """Number of codes of each category, 0 for all others included; empty unless the encoding is ``codes``.

    >>> cardinalities([{"name": "sex", "kind": "category", "categories": ["f", "m"]}], "codes")
    (3,)
    """
    if encoding != "codes":
        return ()
    return tuple(len(column["categories"]) + 1 for column in columns if column["kind"] == "category")


def to_numbers(values: pd.Series) -> np.ndarray:
    """Values as float64; texts that are not numbers, and missing values, become NaN."""
    import pandas as pd

    return np.array(pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan))


def _encode_numbers(values: pd.Series, column: Column, where: str) -> list[Tensor]:
    numbers, missing = to_numbers(values), values.isna().to_numpy()
    if (strange := np.flatnonzero(~np.isfinite(numbers) & ~missing)).size:
        row = int(strange[0])
        raise DataError(
            f"{where}: column '{column['name']}' holds {values.iloc[row]!r} in row {values.index[row]}, "
            "but numbers in the training part"
        )
    filled = torch.from_numpy(np.where(missing, column["median"], numbers))
    scaled = scaling.apply(filled, {"mean": [column["mean"]], "std": [column["std"]]})
    return [scaled, torch.tensor(missing, dtype=torch.float32)] if column["missing"] else [scaled]


def _codes(values: pd.Series, column: Column) -> Tensor:
    import pandas as pd

    texts = values.astype(object).where(values.notna(), MISSING).astype(str)
    codes = torch.tensor(pd.Index(column["categories"], dtype=object).get_indexer(pd.Index(texts, dtype=object)))
    return torch.where(codes < 0, len(column["categories"]), codes).long()
