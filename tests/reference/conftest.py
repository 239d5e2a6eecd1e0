"""Everything here runs in 64 bits, so that tolerances can be tight."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def in_64_bits() -> Iterator[None]:
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # the nets are tiny
    yield
    torch.set_default_dtype(default)
    torch.set_num_threads(threads)
