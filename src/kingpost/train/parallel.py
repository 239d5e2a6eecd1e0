"""Data parallel: every process holds the whole model and takes its part of each batch."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique


@checked
class DataParallel(Technique):
    """x"""

    data: Annotated[int, Ge(1)] = 1
    """Number of processes, one device each, that share every batch."""
    device: str = "auto"
    """``auto`` (an accelerator if there is one), ``cpu``, ``cuda``, ``cuda:1``, ..."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"layout"})
