"""What nets there are: names, what they read, their sizes and parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from kingpost.errors import RecipeError, nearest
from kingpost.net import FORMS, Net, Size, all_nets
from kingpost.option import choose
from kingpost.task import Task


@dataclass(frozen=True)
class NetSize:
    """One size of one net.

    Args:
        net: its name in the catalogue.
        size: name of the size.
        sample: what the parameters are counted on, such as ``3x224x224, 1000 classes``.
        parameters: as counted.
        published: as published, or None.
    """

    net: str
    size: str
    sample: str
    parameters: int
    published: int | None


@dataclass(frozen=True)
class NetEntry:
    """One net of the catalogue with all its sizes."""

    name: str
    reads: tuple[str, ...]
    tasks: tuple[str, ...]
    paper: str
    summary: str
    sizes: tuple[NetSize, ...]

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.summary}",
            f"  reads   {'; '.join(FORMS[form] for form in self.reads)}",  # type: ignore[index]
            f"  tasks   {', '.join(self.tasks)}",
            f"  paper   {self.paper}",
        ]
        for size in self.sizes:
            published = f"   published: {size.published:,}" if size.published is not None else ""
            lines.append(f"  size    {size.size:<16} {size.parameters:>15,} parameters on {size.sample}{published}")
        return "\n".join(lines)


def nets(name: str | None = None) -> list[NetEntry]:
    """Every net of the catalogue, or the one of that name, with the parameters of each size counted.

    Nothing is allocated: the nets are made on the ``meta`` device.

    Raises:
        RecipeError: there is no such net.

    >>> nets("cnn")[0].reads
    ('image',)
    """
    known = all_nets()
    if name is not None and name not in known:
        raise RecipeError(f"no net '{name}'", mend=nearest(name, known))
    return [_entry(n, cls) for n, cls in known.items() if name in (None, n)]


def count(cls: type[Net], size: str) -> int:
    """Parameters of a named size, counted without allocating any."""
    chosen = cls.sizes[size]
    task = choose("task", chosen.data.task)
    assert isinstance(task, Task)
    net = cls(**{**_named(cls, size), **chosen.fields})
    with torch.device("meta"):
        model = net.make(chosen.data, task.outputs_per_sample(chosen.data))
    return sum(p.numel() for p in model.parameters())


def _named(cls: type[Net], size: str) -> dict[str, Any]:
    return {"size": size} if "size" in getattr(cls, "__pydantic_fields__", {}) and size != "default" else {}


def _entry(name: str, cls: type[Net]) -> NetEntry:
    sizes = tuple(NetSize(name, s, _sample(size), count(cls, s), size.parameters) for s, size in cls.sizes.items())
    first = (cls.__doc__ or "").strip().splitlines()[0].removeprefix("Fills ``model`` with ").rstrip(".")
    return NetEntry(name, tuple(cls.reads), cls.tasks, cls.paper, first, sizes)


def _sample(size: Size) -> str:
    data = size.data
    shapes = " and ".join("x".join(map(str, shape)) or "a node" for shape, _ in data.inputs)
    words = {"classes": len(data.classes), "tokens": data.vocabulary}
    return ", ".join([shapes, *(f"{number:,} {word}" for word, number in words.items() if number)])
