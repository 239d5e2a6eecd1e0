"""How many attention heads a width has, where nobody says."""

from __future__ import annotations

from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net

HEADS_REASON = "width / 64, under a width of 192 width / 32; the nearest number that divides the width"


def heads_for(width: int) -> int:
    """Heads of 64, of 32 in narrow nets; the nearest number that divides the width.

    Published transformers (BERT, ViT, T5, GPT-2) all have heads of 64.

    >>> heads_for(768), heads_for(128), heads_for(100), heads_for(8)
    (12, 4, 4, 1)
    """
    wanted = width / (64 if width >= 192 else 32)
    return min(_divisors(width), key=lambda h: abs(h - wanted))


def check_heads(width: int, heads: int) -> None:
    """Refuse heads that do not divide the width.

    Raises:
        RecipeError: they do not; names the nearest number that does.
    """
    if width % heads:
        fits = min(_divisors(width), key=lambda h: abs(h - heads))
        raise RecipeError(f"got {heads}, which does not divide the width {width}", path="heads", mend=f"use {fits}")


def heads_figure(width: int) -> Figure:
    """The derived number of heads, with its reason."""
    return Figure("model.heads", heads_for(width), "heads", HEADS_REASON)


def default_figures(net: Net, **defaults: int | str) -> tuple[Figure, ...]:
    """One figure for each field that neither the recipe nor its size gives."""
    missing = {name: value for name, value in defaults.items() if net.of(name) is None}
    return tuple(Figure(f"model.{name}", value, "", "not given: the default") for name, value in missing.items())


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
