"""A time series in a CSV or Parquet file, cut into windows: so many steps in, so many steps ahead.

Legend of shapes: ``N`` rows, ``B`` windows, ``T`` steps of context, ``H`` steps ahead, ``F`` columns read,
``C`` columns predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from kingpost.assembly import Batch
from kingpost.data import scaling
from kingpost.data.columns import to_numbers
from kingpost.data.parts import FilePath, Fraction, Names
from kingpost.data.tables import read_frame
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError, RecipeError, nearest
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Order, Source, Split, existing_file, fingerprint

if TYPE_CHECKING:
    import pandas as pd

NA_VALUES = ("", "NA", "NaN", "nan", "null")
CALENDAR = ("hour", "weekday", "day of month", "day of year")


class WindowSplit(Split):
    """Windows of a series; only the rows are kept, and windows are made a batch at a time.

    Args:
        read: what is read, ``(N, F)``.
        wanted: what is predicted, ``(N, C)``.
        starts: first row of each window, ``(B,)``.
        context: ``T``.
        horizon: ``H``.
        flat: targets ``(B, H)`` instead of ``(B, H, C)``, for ``C`` = 1.

    >>> rows = torch.arange(6.0)[:, None]
    >>> split = WindowSplit(rows, rows, torch.arange(3), context=2, horizon=2, flat=True)
    >>> batch = next(split.batches(Order(batch_size=2)))
    >>> batch.inputs[0].tolist(), batch.targets.tolist()
    ([[[0.0], [1.0]], [[1.0], [2.0]]], [[2.0, 3.0], [3.0, 4.0]])
    """

    sharded = False

    def __init__(self, read: Tensor, wanted: Tensor, starts: Tensor, context: int, horizon: int, flat: bool) -> None:
        self.read, self.wanted, self.starts = read, wanted, starts
        self.context, self.horizon, self.flat = context, horizon, flat

    def __len__(self) -> int:
        return len(self.starts)

    def batches(self, order: Order) -> Iterator[Batch]:
        """Global batches, inputs ``(B, T, F)`` and targets ``(B, H)`` or ``(B, H, C)``."""
        before = self.read.unfold(0, self.context, 1)  # a view, as is the next
        after = self.wanted.unfold(0, self.horizon, 1)
        for start in range(order.start * order.batch_size, len(self), order.batch_size):
            if start == order.start * order.batch_size:
                chosen = self.starts[order.indices(len(self))]
            rows = chosen[start : start + order.batch_size]
            targets = after[rows + self.context].transpose(1, 2).contiguous()
            inputs = before[rows].transpose(1, 2).contiguous()
            yield Batch((inputs,), targets.squeeze(2) if self.flat else targets, 0, len(rows))


@checked
class Series(Source):
    """Windows of a time series: ``context`` rows are read, the ``horizon`` rows after them are predicted.

    Inputs ``(T, F)`` float32; targets ``(H,)`` for one target column, else ``(H, C)``. The parts follow one another
    in time. A row is predicted in one part only; what a window reads may reach back into the part before. Columns
    are standardised by the training rows.
    """

    path: FilePath
    """A file ``.csv``, ``.csv.gz`` or ``.parquet``, rows in order of time and evenly spaced."""
    target: Names
    """Columns to predict; their own past is read too."""
    context: Annotated[int, Ge(1)] = 96
    """Rows that are read."""
    horizon: Annotated[int, Ge(1)] = 24
    """Rows that are predicted."""
    features: Names = ()
    """Columns that are read, beside the targets; none given: all that hold numbers, without the time."""
    time: str | None = None
    """Column of dates, checked to rise; not read, unless ``calendar`` says so."""
    calendar: bool = False
    """Also read hour, day of the week, day of the month and day of the year, each from -0.5 to 0.5."""
    rows: tuple[Annotated[int, Ge(1)], ...] = ()
    """Number of rows of the training, validation and test part, in order of time; later rows are not used."""
    validation: Fraction = 0.1
    """Fraction of the rows after the training part, if ``rows`` is not given."""
    test: Fraction = 0.2
    """Fraction of the rows at the end, if ``rows`` is not given."""
    standardise: bool = True
    """Scale each column by mean and deviation of the training rows."""

    def __post_init__(self) -> None:
        if not self.target:
            raise RecipeError("no column to predict", path="target", mend="give one or more names")
        if self.rows and not 2 <= len(self.rows) <= 3:
            raise RecipeError(
                f"got {list(self.rows)}", path="rows", mend="[training, validation, test] or the first two"
            )
        if self.calendar and not self.time:
            raise RecipeError("needs the column of dates", path="calendar", mend="give data.time")

    def open(self) -> Dataset:
        """Read the file, divide its rows, learn the scales from the training rows."""
        path = existing_file(self.path)
        frame = read_frame(path, NA_VALUES)
        columns = self._columns(frame, path)
        edges = self._edges(len(frame))
        last = max(b for _, b in edges.values())
        read = self._numbers(frame.iloc[:last], columns, path)
        wanted = read[:, [columns.index(name) for name in self.target]]
        first, end = edges["train"]
        fitted: dict[str, Any] = {"columns": columns}
        if self.standardise:
            fitted |= {"inputs": [scaling.fit(read[first:end])], "target": scaling.fit(wanted[first:end])}
        moments = self._calendar(frame.iloc[:last], path)
        inputs, targets = self._scaled(read, moments, fitted), self._scaled_targets(wanted, fitted)
        flat = len(self.target) == 1
        return Dataset(
            facts=DataFacts(
                task="forecasting",
                inputs=(((self.context, inputs.shape[1]), torch.float32),),
                target_shape=(self.horizon,) if flat else (self.horizon, len(self.target)),
                features=(*columns, *(CALENDAR if self.calendar else ())),
                targets=self.target,
            ),
            splits={
                part: WindowSplit(inputs, targets, self._starts(part, *edge), self.context, self.horizon, flat)
                for part, edge in edges.items()
            },
            fingerprint=fingerprint([read.numpy(), *([] if moments is None else [moments.numpy()])]),
            fitted=fitted | {"rows": {part: list(edge) for part, edge in edges.items()}},
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> TensorSplit:
        """One window: the last ``context`` rows of a file, whose next ``horizon`` rows nobody knows yet."""
        frame = read_frame(path, NA_VALUES)
        if len(frame) < self.context:
            raise DataError(f"{path}: {len(frame)} rows, but the model reads {self.context}; give a longer file")
        frame = frame.iloc[-self.context :]
        for name in fitted["columns"]:
            _check_column(name, frame, path, "the training file")
        numbers = self._numbers(frame, fitted["columns"], path)
        inputs = self._scaled(numbers, self._calendar(frame, path), fitted)
        return TensorSplit((inputs[None],), torch.zeros(1, *facts.target_shape), labelled=False)

    def _columns(self, frame: pd.DataFrame, path: Path) -> list[str]:
        """What is read: the given features, or all columns but the dates, in the order of the file."""
        for key in ("target", "features"):
            for name in getattr(self, key):
                _check_column(name, frame, path, f"data.{key}")
        if self.time is not None:
            _check_column(self.time, frame, path, "data.time")
            if self.time in (*self.target, *self.features):
                raise DataError(f"column '{self.time}' holds the time; it can be read by data.calendar=true only")
        names = self.features or tuple(str(name) for name in frame.columns if name != self.time)
        return [str(name) for name in frame.columns if name in (*names, *self.target)]

    def _edges(self, rows: int) -> dict[str, tuple[int, int]]:
        """First row and row after the last of each part, and whether each holds a window."""
        if self.rows:
            sizes = list(self.rows)
            if sum(sizes) > rows:
                raise DataError(f"{self.path}: {rows} rows, but data.rows wants {sum(sizes)}; make them smaller")
        else:
            if self.validation + self.test >= 1:
                raise DataError("validation and test leave nothing to train on; make them smaller")
            ends = [int(rows * round(part, 12)) for part in (1 - self.validation - self.test, 1 - self.test)]
            sizes = [ends[0], ends[1] - ends[0], rows - ends[1]]
        edges, first = {}, 0
        for part, size in zip(("train", "validation", "test"), sizes, strict=False):
            if size:
                least = self.horizon + (self.context if part == "train" else 0)
                if size < least or first + size < self.context + self.horizon:
                    raise DataError(
                        f"the {part} part of {size} rows holds no window of {self.context} + {self.horizon} rows; "
                        "make data.context or data.horizon smaller"
                    )
                edges[part] = (first, first + size)
            first += size
        return edges

    def _starts(self, part: str, first: int, end: int) -> Tensor:
        """First rows of all windows whose predicted rows lie in ``first..end``."""
        begin = first if part == "train" else max(0, first - self.context)
        return torch.arange(begin, end - self.context - self.horizon + 1)

    def _numbers(self, frame: pd.DataFrame, columns: list[str], path: Path) -> Tensor:
        """``(N, F)`` float64; gaps and texts are refused."""
        values = np.stack([to_numbers(frame[name]) for name in columns], 1)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0].tolist()
            got = frame[columns[column]].iloc[row]
            raise DataError(
                f"{path}: column '{columns[column]}' holds {got!r} in row {frame.index[row]}, expected a number; "
                "fill gaps first, name dates in data.time, or choose data.features"
            )
        return torch.from_numpy(values)

    def _calendar(self, frame: pd.DataFrame, path: Path) -> Tensor | None:
        """Moments of the year ``(N, 4)`` in -0.5..0.5, float32, or None."""
        if self.time is None:
            return None
        import pandas as pd

        try:
            moments = pd.DatetimeIndex(pd.to_datetime(frame[self.time]))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: column '{self.time}' does not hold dates ({error})") from error
        if not (moments.is_monotonic_increasing and moments.is_unique):
            raise DataError(f"{path}: the dates in '{self.time}' do not rise from row to row; sort the file")
        if not self.calendar:
            return None
        parts = [moments.hour / 23, moments.day_of_week / 6, (moments.day - 1) / 30, (moments.day_of_year - 1) / 365]
        return torch.from_numpy(np.stack([part.to_numpy(dtype=np.float32) - 0.5 for part in parts], 1))

    def _scaled(self, read: Tensor, moments: Tensor | None, fitted: Mapping[str, Any]) -> Tensor:
        scaled = scaling.apply(read, fitted["inputs"][0]) if "inputs" in fitted else read.float()
        return scaled if moments is None else torch.cat([scaled, moments], 1)

    def _scaled_targets(self, wanted: Tensor, fitted: Mapping[str, Any]) -> Tensor:
        return scaling.apply(wanted, fitted["target"]) if "target" in fitted else wanted.float()


def _check_column(name: str, frame: pd.DataFrame, path: Path, where: str) -> None:
    if name not in frame:
        raise DataError(f"{path}: no column '{name}' ({where}); {nearest(name, map(str, frame.columns))}")
