"""Files as bytes and text, compressed or not, and checked against a sum where there is one."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

from kingpost.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
ALGORITHMS = ("sha256", "md5")


def read_bytes(path: Path, checksums: Mapping[str, str] | None = None) -> bytes:
    """The content of a file, decompressed if it is gzip, whatever its name ends in.

    Args:
        path: the file.
        checksums: file name -> ``"sha256:..."`` or ``"md5:..."`` of the file as it lies on the disk.

    Raises:
        DataError: not readable, not the file that the checksum belongs to, or damaged gzip.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if checksums and path.name in checksums:
        _check_sum(path, raw, checksums[path.name])
    if not raw.startswith(GZIP_MAGIC):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip ({error}); fetch the file again") from error


def read_text(path: Path) -> str:
    """The content of a file as UTF-8, line ends as they are.

    Raises:
        DataError: not readable, damaged, or not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert it: iconv -f latin1 -t utf8") from error


def _check_sum(path: Path, raw: bytes, expected: str) -> None:
    algorithm, _, wanted = expected.partition(":")
    if algorithm not in ALGORITHMS or not wanted:
        raise DataError(f"checksums.{path.name}: got '{expected}', expected 'sha256:<hex>' or 'md5:<hex>'")
    if (got := hashlib.new(algorithm, raw).hexdigest()) != wanted.lower():
        raise DataError(f"{path}: its {algorithm} is {got}, expected {wanted}; fetch the file again, or mend checksums")
