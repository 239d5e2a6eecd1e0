"""Tables in CSV or Parquet files: mixed columns to tensors, learned from the training part alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from kingpost.data import scaling
from kingpost.data.columns import (
    Encoding,
    cardinalities,
    encode_columns,
    feature_names,
    feature_scales,
    fit_column,
    to_numbers,
)
from kingpost.data.heads import encode_heads, fit_head, head_facts, head_scales
from kingpost.data.parts import FilePath, Names, Part, Seed, divide, fractions
from kingpost.data.reading import read_bytes
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError, MissingExtraError, RecipeError, nearest
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Source, existing_file, fingerprint

if TYPE_CHECKING:
    import pandas as pd

REST = "*"  # in label_map: every label that is not named


@checked
class Table(Source):
    """Rows of numbers and categories from a CSV or Parquet file.

    Numbers are standardised; a missing one becomes the median, and a further column says so. A category
    becomes one column for each text of the training part and one for all others. Columns that are empty or
    constant in the training part are left out, as ``fitted["columns"]`` says; those that only a later file
    has are not used.
    """

    train: FilePath
    """File to train on: ``.csv``, ``.csv.gz`` or ``.parquet``."""
    target: Names
    """Column to predict, or several (values, labels of 0 and 1, or classes and values side by side)."""
    task: Literal["classification", "regression", "multi-label", "multi-task"] = "classification"
    """Whether the target is a class, one or more values, several labels, or (``multi-task``) classes and values: there
    a column of texts, or one named in ``categories``, is classes, and a gap is a missing label."""
    validation: Part = 0.1
    """Fraction held out of the training file (the same of each class), or a file."""
    test: Part = 0.0
    """Fraction held out of the training file (the same of each class), or a file."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""
    drop: Names = ()
    """Columns that are not used."""
    categories: Names = ()
    """Columns whose numbers are names of categories."""
    encode: Encoding = "one-hot"
    """Categories as columns of 0 and 1, or as one more int64 input ``(K,)`` of codes for embeddings (0: any other)."""
    max_categories: Annotated[int, Ge(2)] = 100
    """A column of more different texts is refused, for it is most likely a key or free text."""
    na_values: Names = ("", "NA", "NaN", "nan", "null")
    """Texts that mean a missing value."""
    strip_target: str = ""
    """Text to take away from the end of each label (``.`` for the test file of 'adult')."""
    label_map: dict[str, str] = field(default_factory=dict)
    """Label in the file -> class; ``"*"`` stands for all labels that are not named."""
    header: Names = ()
    """Names of the columns, for a CSV file whose first row does not hold them."""
    separator: str = ","
    """Between the values of a CSV file."""
    skipinitialspace: bool = False
    """Leave out spaces after a separator."""

    def __post_init__(self) -> None:
        if not self.target or (len(self.target) > 1 and self.task == "classification"):
            raise RecipeError(
                f"got {list(self.target)}",
                path="target",
                mend="one column, or task=multi-label, regression or multi-task",
            )
        if self.label_map and self.task != "classification":
            raise RecipeError(f"label_map has no effect with task={self.task}", path="task")
        if self.strip_target and self.task not in ("classification", "multi-task"):
            raise RecipeError(f"strip_target has no effect with task={self.task}", path="task")

    def open(self) -> Dataset:
        """Read the files, divide the rows, learn the columns from the training rows, and encode all rows."""
        whole = self._frame(existing_file(self.train, where="data.train"), used=True)
        files = {"validation": self.validation, "test": self.test}
        given = {p: self._frame(existing_file(f, where=f"data.{p}")) for p, f in files.items() if isinstance(f, str)}
        indices = divide(len(whole), *fractions(self.validation, self.test), self.split_seed, self._groups(whole))
        frames = {part: whole.iloc[index.numpy()] for part, index in indices.items()} | given
        fitted: dict[str, Any] = {"columns": self._fit(frames["train"])}
        classes = self._classes(frames["train"])
        if self.task == "regression":
            fitted["target"] = scaling.fit(self._values(frames["train"], self.train))
        if self.task == "multi-task":
            fitted["heads"] = self._fit_heads(frames["train"])
            fitted |= head_scales(fitted["heads"])
        samples = {part: self._samples(frame, fitted, classes, part) for part, frame in frames.items()}
        inputs, targets = samples["train"]
        return Dataset(
            facts=DataFacts(
                task=self.task,
                inputs=tuple((tuple(x.shape[1:]), x.dtype) for x in inputs),
                target_shape=tuple(targets.shape[1:]),
                classes=classes,
                features=feature_names(fitted["columns"], self.encode),
                scales=feature_scales(fitted["columns"], self.encode),
                heads=head_facts(fitted.get("heads", ())),
                cardinalities=cardinalities(fitted["columns"], self.encode),
                targets=self.target,
            ),
            splits={part: TensorSplit(*pair) for part, pair in samples.items()},
            fingerprint=fingerprint(frame.to_csv(index=False) for frame in (whole, *given.values())),
            fitted=fitted,
            indices=indices if len(indices) > 1 else {},
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> TensorSplit:
        """New rows, prepared as the training rows were; targets are 0 if the file has no target column."""
        frame = self._frame(path)
        if all(name in frame for name in self.target):
            return TensorSplit(*self._samples(frame, fitted, facts.classes, str(path)))
        dtype = torch.int64 if self.task == "classification" else torch.float32
        zeros = torch.zeros(len(frame), *facts.target_shape, dtype=dtype)
        return TensorSplit(encode_columns(frame, fitted["columns"], self.encode, str(path)), zeros, labelled=False)

    def _frame(self, path: Path, used: bool = False) -> pd.DataFrame:
        """A file's rows; of the training file (``used``), all columns that the recipe names must be there."""
        frame = read_frame(path, self.na_values, self.header, self.separator, self.skipinitialspace)
        for key in ("target", "drop", "categories") if used else ():
            for name in getattr(self, key):
                if name not in frame:
                    raise DataError(
                        f"{path}: no column '{name}' (data.{key}); {nearest(name, map(str, frame.columns))}"
                    )
        if frame.empty:
            raise DataError(f"{path}: no rows")
        return frame

    def _fit(self, train: pd.DataFrame) -> list[dict[str, Any]]:
        names = [name for name in train.columns if name not in (*self.target, *self.drop)]
        return [fit_column(str(n), train[n], n in self.categories, self.max_categories) for n in names]

    def _fit_heads(self, train: pd.DataFrame) -> list[dict[str, Any]]:
        train = self._stripped(train)
        return [fit_head(n, train[n], n in self.categories, self.max_categories) for n in self.target]

    def _stripped(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows with ``strip_target`` taken away from texts of the target columns."""
        if not self.strip_target:
            return frame
        texts = [name for name in self.target if name in frame and frame[name].dtype.kind not in "iufb"]
        return frame.assign(**{name: frame[name].str.removesuffix(self.strip_target) for name in texts})

    def _samples(
        self, frame: pd.DataFrame, fitted: Mapping[str, Any], classes: Sequence[str], where: str
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        inputs = encode_columns(frame, fitted["columns"], self.encode, where)
        if self.task == "classification":
            return inputs, self._class_numbers(frame, classes, where)
        if self.task == "multi-task":
            return inputs, encode_heads(self._stripped(frame), fitted["heads"], where)
        values = self._values(frame, where)
        return inputs, scaling.apply(values, fitted["target"]) if "target" in fitted else values.float()

    def _labels(self, frame: pd.DataFrame, where: str) -> np.ndarray:
        """The class of each row as text, ``(N,)``."""
        labels = _present(frame, self.target[0], where).astype(str).str.removesuffix(self.strip_target)
        if self.label_map:
            rest = self.label_map.get(REST)
            labels = labels.map(lambda label: self.label_map.get(label, label if rest is None else rest))
        return labels.to_numpy(dtype=np.str_)

    def _groups(self, whole: pd.DataFrame) -> np.ndarray | None:
        """The class of each row of the training file, if there are classes, and not too few or too many."""
        if self.task != "classification":
            return None
        labels, target = self._labels(whole, self.train), self.target[0]
        if (found := len(np.unique(labels))) < 2:
            raise DataError(f"{self.train}: column '{target}' holds one class, '{labels[0]}'; expected two or more")
        if found > self.max_categories:
            raise DataError(
                f"{self.train}: column '{target}' holds {found} classes; "
                "for values, data.task=regression, else raise data.max_categories"
            )
        return labels

    def _classes(self, train: pd.DataFrame) -> tuple[str, ...]:
        if self.task != "classification":
            return self.target if self.task == "multi-label" else ()
        found = sorted({str(label) for label in self._labels(train, self.train)})
        return tuple(sorted(found, key=int)) if all(label.isdecimal() for label in found) else tuple(found)

    def _class_numbers(self, frame: pd.DataFrame, classes: Sequence[str], where: str) -> Tensor:
        number = {name: index for index, name in enumerate(classes)}
        labels = self._labels(frame, where)
        if unknown := sorted({str(label) for label in labels} - set(number)):
            raise DataError(
                f"{where}: {len(unknown)} classes are not in the training part, first '{unknown[0]}' "
                f"(it has: {', '.join(classes)}); merge them with data.label_map, or mend data.strip_target"
            )
        return torch.tensor([number[str(label)] for label in labels], dtype=torch.int64)

    def _values(self, frame: pd.DataFrame, where: str) -> Tensor:
        """The target columns as numbers, ``(N,)`` for one value, else ``(N, D)``; float64."""
        columns = []
        for name in self.target:
            column = _present(frame, name, where)
            numbers = to_numbers(column)
            allowed = np.isin(numbers, (0, 1)) if self.task == "multi-label" else np.isfinite(numbers)
            if not allowed.all():
                row = int(np.flatnonzero(~allowed)[0])
                wanted = "0 or 1" if self.task == "multi-label" else "a number"
                raise DataError(
                    f"{where}: column '{name}' holds {column.iloc[row]!r} in row {column.index[row]}, expected {wanted}"
                )
            columns.append(torch.from_numpy(numbers))
        return columns[0] if self.task == "regression" and len(columns) == 1 else torch.stack(columns, 1)


def _present(frame: pd.DataFrame, name: str, where: str) -> pd.Series:
    """The target column, which must not have gaps."""
    if name not in frame:
        raise DataError(f"{where}: no target column '{name}'; it has: {', '.join(map(str, frame.columns))}")
    if gaps := int(frame[name].isna().sum()):
        raise DataError(f"{where}: the target '{name}' is missing in {gaps} rows; remove these rows from the file")
    return frame[name]


def read_frame(
    path: Path,
    na_values: Sequence[str],
    header: Sequence[str] = (),
    separator: str = ",",
    skipinitialspace: bool = False,
) -> pd.DataFrame:
    """A CSV file with every value as text, or a Parquet file with its own types; missing values are NaN.

    Raises:
        DataError: not such a file, or damaged.
        MissingExtraError: pandas or pyarrow is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError("pandas", extra="data", purpose="reading tables") from error
    raw = io.BytesIO(read_bytes(path))
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(raw)
            return frame.mask(frame.isin(list(na_values)))
        return pd.read_csv(
            raw, sep=separator, dtype=str, keep_default_na=False, na_values=list(na_values),
            skipinitialspace=skipinitialspace, names=list(header) or None, header=None if header else 0,
        )  # fmt: skip
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="data", purpose="reading Parquet files") from error
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are among these
        raise DataError(f"{path}: not a readable table ({error})") from error
