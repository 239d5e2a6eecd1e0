"""The Ledger: every trial, kept or not, in a file that only grows and whose rows hold one another's hashes.

One row is one line of JSON with the keys ``n``, ``time`` (UTC), ``kind``, ``trial``, ``body``, ``previous`` and
``sha256``. A row's ``sha256`` is that of the row without this key, as JSON with sorted keys, no spaces and every
character above ASCII escaped; ``previous`` is the ``sha256`` of the row before. So ``jq``, a few lines of Python or
``sha256sum`` can read and check it.

What a chain cannot show by itself is that its *last* rows are missing, or that all of it was written anew. For that
a verdict carries the hash of its row, and :meth:`Ledger.verify` takes such a hash.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kingpost.errors import RunError

LEDGER = "ledger.jsonl"
FIRST = "0" * 64  # what the first row says of the row before it
CHUNK = 1 << 16


class LedgerError(RunError):
    """A ledger that was changed, or that cannot be written."""


@dataclass(frozen=True)
class Entry:
    """One row.

    Args:
        n: its number, from 1.
        time: when it was written, UTC, ISO 8601.
        kind: ``declared``, ``retuned``, ``run``, ``look``, ``verdict``, or what else a writer keeps.
        trial: whose row it is.
        body: what is kept, plain JSON.
        previous: hash of the row before.
        sha256: hash of this row.
    """

    n: int
    time: str
    kind: str
    trial: str
    body: Mapping[str, Any]
    previous: str
    sha256: str

    def to_value(self) -> dict[str, Any]:
        """As plain values, in the form of the file."""
        return dict(vars(self))

    def __str__(self) -> str:
        said = str(self.body.get("says", "")) or ", ".join(f"{key} {value}" for key, value in self.body.items())
        return f"{self.n:>5}  {self.time[:19]}  {self.kind:<9} {self.trial}: {said}"


@dataclass(frozen=True)
class Fault:
    """A row that is not what its hash says, or not where it belongs."""

    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}"


class Ledger:
    """An append-only file of hash-chained rows; several processes may write at the same time.

    Args:
        path: of the file; it is made by the first :meth:`append`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ledger = Ledger(Path(folder) / "ledger.jsonl")
    ...     first = ledger.append("declared", "smoothing", {"smallest_effect": 0.005})
    ...     second = ledger.append("verdict", "smoothing", {"decision": "helps"})
    ...     second.previous == first.sha256, [entry.kind for entry in ledger.entries()], ledger.verify()
    (True, ['declared', 'verdict'], [])
    """

    def __init__(self, path: Path | str = LEDGER) -> None:
        self.path = Path(path)

    def append(self, kind: str, trial: str, body: Mapping[str, Any]) -> Entry:
        """Add one row, and return when it is on the disk.

        Half a line, which a power cut may leave, is first put aside in a file of its own; a row of kind ``mended``
        says so.

        Raises:
            LedgerError: the last row is not what its hash says.
            ValueError: the body is not plain JSON (NaN and infinity are not).
        """
        _canonical(body)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            torn = self._mend()
            last = self._last()
            if torn:
                said = f"half a line of {torn[1]} bytes was put aside in {torn[0]}"
                last = self._write(last, "mended", "", {"says": said, "file": torn[0], "bytes": torn[1]})
            return self._write(last, kind, trial, body)

    def entries(self, trial: str | None = None, kind: str | None = None) -> list[Entry]:
        """The rows in order, all or those of one trial or kind; half a last line is left out.

        Raises:
            LedgerError: a line is not a row at all.
        """
        found = [entry for _, entry in self._rows()]
        return [e for e in found if trial in (None, e.trial) and kind in (None, e.kind)]

    def verify(self, head: str | None = None) -> list[Fault]:
        """All rows that were changed, removed, added or moved; none if the ledger is whole.

        Args:
            head: hash of a row that must be there, as a verdict states it, or its beginning; without it, rows that
                are missing at the end go unnoticed.
        """
        faults: list[Fault] = []
        previous, n, seen = FIRST, 0, False
        for line, text in enumerate(self._lines(), 1):
            n += 1
            try:
                entry = _parsed(text)
            except ValueError as error:
                faults.append(Fault(line, f"not a row of a ledger: {error}"))
                previous = ""
                continue
            seen = seen or (head is not None and entry.sha256.startswith(head))
            if problem := _problem(entry, text, previous, n):
                faults.append(Fault(line, problem))
            previous, n = entry.sha256, entry.n
        if head is not None and not seen:
            faults.append(Fault(n + 1, f"no row has the hash {head[:12]}...: rows at the end were removed"))
        return faults

    def _rows(self) -> Iterator[tuple[int, Entry]]:
        for line, text in enumerate(self._lines(), 1):
            try:
                yield line, _parsed(text)
            except ValueError as error:
                if not text.endswith(b"\n"):
                    return
                raise LedgerError(f"{self.path}, line {line}: not a row of a ledger: {error}") from error

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []

    def _write(self, last: Entry | None, kind: str, trial: str, body: Mapping[str, Any]) -> Entry:
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        row = {"n": last.n + 1 if last else 1, "time": time, "kind": kind, "trial": trial, "body": body}
        row |= {"previous": last.sha256 if last else FIRST}
        row |= {"sha256": _digest(row)}
        new = not self.path.exists()
        with self.path.open("ab") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync(self.path.parent)
        return _parsed(_line(row))

    def _last(self) -> Entry | None:
        """The last row, read from the end of the file."""
        text = self._tail()
        if not text:
            return None
        try:
            entry = _parsed(text)
            sound = entry.sha256 == _digest_of(entry)
        except ValueError:
            sound = False
        if not sound:
            raise LedgerError(f"{self.path}: the last row was changed after it was written; see kingpost ledger verify")
        return entry

    def _tail(self) -> bytes:
        """The bytes after the last line feed but one."""
        if not self.path.exists():
            return b""
        with self.path.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            found = b""
            while position > 0 and b"\n" not in found[:-1]:
                position = max(0, position - CHUNK)
                file.seek(position)
                found = file.read(end - position)
        return found[:-1].rpartition(b"\n")[2] + found[-1:]

    def _mend(self) -> tuple[str, int] | None:
        """Put half a last line aside; its file's name and size. A whole row that only lacks its line feed gets it."""
        tail = self._tail()
        if not tail or tail.endswith(b"\n"):
            return None
        try:
            whole = not _problem_of_hash(_parsed(tail), tail + b"\n")
        except ValueError:
            whole = False
        if whole:
            with self.path.open("ab") as file:
                file.write(b"\n")
            return None
        kept = self.path.with_name(f"{self.path.name}.torn-{hashlib.sha256(tail).hexdigest()[:8]}")
        kept.write_bytes(tail)
        with self.path.open("rb+") as file:
            file.truncate(self.path.stat().st_size - len(tail))
            os.fsync(file.fileno())
        return kept.name, len(tail)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _line(row: Mapping[str, Any]) -> bytes:
    return _canonical(row) + b"\n"


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({key: value for key, value in row.items() if key != "sha256"})).hexdigest()


def _digest_of(entry: Entry) -> str:
    return _digest(entry.to_value())


def _parsed(text: bytes) -> Entry:
    value = json.loads(text)
    if not isinstance(value, dict) or set(value) != set(Entry.__dataclass_fields__):
        raise ValueError(f"expected the keys {', '.join(Entry.__dataclass_fields__)}")
    return Entry(**value)


def _problem(entry: Entry, text: bytes, previous: str, n: int) -> str:
    """What is wrong with a row, given the hash of the row before and the number that it should have."""
    if problem := _problem_of_hash(entry, text):
        return problem
    if entry.previous == previous or not previous:  # the row before cannot be read, and is reported itself
        return "" if entry.n == n else f"has the number {entry.n}, expected {n}: rows were removed, added or moved"
    where = f"row {entry.n} stands where row {n} belongs" if entry.n != n else "the row before it was changed"
    return f"its hash of the row before does not fit ({where}): rows were removed, added, moved or changed"


def _problem_of_hash(entry: Entry, text: bytes) -> str:
    if not text.endswith(b"\n"):
        return "ends without a line feed, as after a power cut; the next append puts it aside"
    if entry.sha256 != _digest_of(entry):
        return f"row {entry.n} was changed after it was written: its hash does not fit"
    return "" if text == _line(entry.to_value()) else f"row {entry.n} was written anew: not the bytes that were hashed"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
