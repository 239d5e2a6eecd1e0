"""The history of steps: a CSV file that only grows, and is cut back to the checkpoint on resume."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

FLUSH_ROWS = 1000
COLUMNS = ("step", "epoch", "loss", "learning_rate", "gradient_norm")

Row = tuple[float | int, ...]


class StepLog:
    """Rows of numbers, buffered, in a file whose columns are those of the first row.

    Args:
        path: of the file.
        rows: how many rows of an existing file to keep; later ones are of steps that will be done again.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows = path, rows
        self.columns: list[str] = []
        self.buffer: list[Row] = []
        if rows and path.exists():
            with path.open(encoding="utf-8") as file:
                kept = [line for _, line in zip(range(rows + 1), file, strict=False)]
            self.columns = kept[0].rstrip("\n").split(",")
            os.truncate(path, sum(len(line.encode()) for line in kept))
        else:
            path.unlink(missing_ok=True)

    def add(self, figures: Row, extra: Mapping[str, Tensor | float]) -> None:
        """Keep a row: the figures of :data:`COLUMNS`, and what techniques have to say; the same of each step."""
        row = (*figures, *map(float, extra.values())) if extra else figures
        if not self.columns:
            self.columns = [*COLUMNS, *extra]
            self.path.write_text(",".join(self.columns) + "\n", encoding="utf-8")
        if len(row) != len(self.columns):
            raise AssertionError(f"steps.csv has the columns {self.columns}, but a step gave {[*COLUMNS, *extra]}")
        self.buffer.append(row)
        self.rows += 1
        if len(self.buffer) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Put all rows on the disk."""
        if not self.buffer:
            return
        lines = [",".join(map(repr, row)) + "\n" for row in self.buffer]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        self.buffer.clear()
