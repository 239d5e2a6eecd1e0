"""The space that a recipe itself suggests: learning rate, batch size, optimizer, and each technique's strength."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from typing import Any

from kingpost.foreign import Foreign
from kingpost.option import choose
from kingpost.prove.space import at, hint_of, types_in
from kingpost.recipe import Recipe
from kingpost.technique import Technique

OPTIMIZERS = ("adamw", "sgd")  # tried besides the recipe's own
DECADE = 10.0


def default_words(recipe: Recipe) -> list[str]:
    """The words of the default space.

    The learning rate spans a decade to each side; the batch size a factor of two; another optimizer comes with a decade
    around its own default rate. A technique's range is what it says itself (``space``), or else follows from the value,
    type and bounds of the fields that make it neutral (its strength).

    >>> recipe = Recipe(name="a", data="digits", model="mlp", techniques=["label-smoothing"])
    >>> for word in default_words(recipe):
    ...     print(word)
    optimizer=adamw,sgd
    optimizer.lr@adamw=0.0001..0.01:log
    optimizer.lr@sgd=0.01..1:log
    optimizer.weight_decay@adamw=0.001..0.1:log
    batch_size=32,64,128
    techniques.label-smoothing.strength=0..0.4
    """
    words = [*_optimizer(recipe), f"batch_size={','.join(map(str, _batch_sizes(recipe.batch_size)))}"]
    for path, technique in recipe.mounts():
        if path.startswith("techniques."):
            words += _strengths(recipe, path, technique)
    return words


def _optimizer(recipe: Recipe) -> Iterator[str]:
    own = recipe.optimizer
    if isinstance(own, Foreign) or ":" in own.name:  # nothing is known of its fields, or of what else would fit
        if isinstance(rate := at(recipe, "optimizer.lr"), float) and rate > 0:
            yield f"optimizer.lr={_decades(rate)}"
        return
    names = list(dict.fromkeys([own.name, *OPTIMIZERS]))
    yield f"optimizer={','.join(names)}"
    for name in names:
        option = own if name == own.name else choose("optimizer", name)
        if isinstance(rate := getattr(option, "lr", None), float) and rate > 0:
            yield f"optimizer.lr@{name}={_decades(rate)}"
    if isinstance(decay := at(recipe, "optimizer.weight_decay"), float) and decay > 0:
        yield f"optimizer.weight_decay@{own.name}={_decades(decay)}"


def _batch_sizes(size: int) -> list[int]:
    """The size, half and twice as many; powers of two if it is none.

    >>> _batch_sizes(64), _batch_sizes(100), _batch_sizes(1)
    ([32, 64, 128], [64, 100, 128], [1, 2])
    """
    if size & (size - 1) == 0:
        return sorted({max(1, size // 2), size, 2 * size})
    return sorted({2 ** int(math.log2(size)), size, 2 ** (int(math.log2(size)) + 1)})


def _strengths(recipe: Recipe, path: str, technique: Technique) -> Iterator[str]:
    if technique.space:
        yield from (f"{path}.{field}={values}" for field, values in technique.space.items())
        return
    for field in technique.neutral or ():
        value = at(recipe, f"{path}.{field}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            continue
        if found := _around(value, hint_of(recipe, f"{path}.{field}")):
            yield f"{path}.{field}={found}"


def _around(value: float, hint: Any) -> str:
    """A range around a value, inside the bounds of its type.

    >>> from annotated_types import Ge, Lt
    >>> _around(0.1, typing.Annotated[float, Ge(0), Lt(1)]), _around(0.98, typing.Annotated[float, Ge(0), Lt(1)])
    ('0..0.4', '0.92..0.998')
    >>> _around(1e-4, typing.Annotated[float, Ge(0)]), _around(2, typing.Annotated[int, Ge(1)])
    ('1e-05..0.001:log', '1..4')
    """
    (low, low_open), (high, high_open) = bounds(hint)
    if float not in types_in(hint):
        ends = max(low, value // 2), min(high, 2 * value)
        return f"{ends[0]:.0f}..{ends[1]:.0f}" if ends[0] < ends[1] else ""
    if math.isinf(high):
        return _decades(value)
    top = high - (high - value) / DECADE if high_open else high
    bottom = max(low, 0.0) if not low_open else value / DECADE
    if value <= high / 2:
        return f"{bottom:.3g}..{min(4 * value, top):.3g}"
    gap = high - value
    return f"{max(bottom, high - 4 * gap):.3g}..{high - gap / DECADE:.3g}" if gap else f"{high / 2:.3g}..{high:.3g}"


def bounds(hint: Any) -> tuple[tuple[float, bool], tuple[float, bool]]:
    """The smallest and the greatest value of a type, infinite where it has none; and whether they are left out.

    >>> from annotated_types import Ge, Lt
    >>> bounds(typing.Annotated[float, Ge(0), Lt(1)])
    ((0.0, False), (1.0, True))
    """
    found = {
        key: float(value)
        for one in (hint, *typing.get_args(hint))
        for mark in getattr(one, "__metadata__", ())
        for key in ("ge", "gt", "le", "lt")
        if (value := getattr(mark, key, None)) is not None
    }
    low = max(found.get("ge", -math.inf), found.get("gt", -math.inf))
    high = min(found.get("le", math.inf), found.get("lt", math.inf))
    return (low, found.get("gt") == low), (high, found.get("lt") == high)


def _decades(value: float) -> str:
    return f"{value / DECADE:.3g}..{value * DECADE:.3g}:log"
