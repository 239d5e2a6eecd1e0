"""What nets for images share: checks of the image's size, the choice of a stem, and depth divided among stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from kingpost.build.blocks.norms import Norm
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.source import DataFacts

Stem = Literal["auto", "small", "imagenet"]

LARGE = 64  # pixels of the shorter side, from which on a stem that divides by four leaves enough


def stem_for(stem: Stem, data: DataFacts) -> Literal["small", "imagenet"]:
    """The stem as given; for ``auto``, that of ImageNet from 64 x 64 pixels on."""
    if stem != "auto":
        return stem
    return "imagenet" if min(data.inputs[0][0][1:]) >= LARGE else "small"


def stem_figure(data: DataFacts) -> Figure:
    """What ``auto`` chose, and why."""
    chosen = stem_for("auto", data)
    _, rows, columns = data.inputs[0][0]
    return Figure("stem", chosen, "", f"{rows} x {columns} pixels; imagenet from {LARGE} x {LARGE} on, else small")


def check_halvings(data: DataFacts, halvings: int, path: str, mend: str) -> None:
    """Refuse images of fewer than ``2 ** halvings`` rows or columns.

    Raises:
        RecipeError: with this path and mend.
    """
    _, rows, columns = data.inputs[0][0]
    if min(rows, columns) < 2**halvings:
        raise RecipeError(
            f"{rows} x {columns} pixels cannot be halved {halvings} times; at least {2**halvings} x {2**halvings} "
            "are needed",
            path=path,
            mend=mend,
        )


def divided(depth: int, profile: Sequence[int]) -> tuple[int, ...]:
    """``depth`` blocks divided among stages in proportion to a profile, at least one each.

    Raises:
        RecipeError: there are fewer blocks than stages.

    >>> divided(16, (3, 4, 6, 3)), divided(19, (3, 4, 6, 3)), divided(4, (3, 4, 6, 3))
    ((3, 4, 6, 3), (4, 5, 7, 3), (1, 1, 1, 1))
    """
    if depth < len(profile):
        raise RecipeError(
            f"got {depth} for {len(profile)} stages, expected at least one block a stage",
            path="depth",
            mend=f"use {len(profile)} or more",
        )
    blocks = [1] * len(profile)
    while sum(blocks) < depth:  # the next block goes where it is most due (Sainte-Lague): no stage loses by more depth
        due = [part / (2 * has + 1) for part, has in zip(profile, blocks, strict=True)]
        blocks[due.index(max(due))] += 1
    return tuple(blocks)


def batch_exceptions(norm: Norm) -> Mapping[str, str]:
    """Contracts that do not hold with batch norm, which sees the batch as a whole."""
    reason = "batch norm takes its statistics over the samples it is given; norm=group has no such exception"
    return {"accumulation": reason, "two processes": reason} if norm == "batch" else {}
