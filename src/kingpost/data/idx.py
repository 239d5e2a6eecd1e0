"""The IDX format of MNIST and its successors.

``0x0000 TT DD`` (type, number of axes), ``DD`` big-endian 32-bit lengths, then the values, big-endian.
Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kingpost.data.reading import read_bytes
from kingpost.errors import DataError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path, axes: int, checksums: Mapping[str, str] | None = None) -> np.ndarray:
    """The array in an IDX file, gzip or not.

    Args:
        path: the file.
        axes: how many axes it must have: 1 for labels, 3 for grey images.
        checksums: file name -> ``"sha256:..."`` or ``"md5:..."``.

    Raises:
        DataError: not IDX, another number of axes, cut short, or too long.
    """
    raw = read_bytes(path, checksums)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in DTYPES:
        raise DataError(f"{path}: starts with {raw[:4].hex() or 'nothing'}, expected an IDX header such as 00000803")
    if raw[3] != axes:
        raise DataError(f"{path}: {raw[3]} axes, expected {axes}; are images and labels exchanged?")
    dtype, start = np.dtype(DTYPES[raw[2]]), 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(raw[4:start], ">u4"))
    expected = math.prod(shape) * dtype.itemsize
    if len(shape) != axes or len(raw) - start != expected:
        raise DataError(
            f"{path}: {max(0, len(raw) - start)} bytes of values, but its header says {shape}, "
            f"which is {expected}; fetch the file again"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
