"""Seeds derived, never carried: each random draw has a seed that follows from what it is for.

Nothing random keeps state from one step to the next, so a resumed run needs no generator states, and two
runs that differ in one technique still draw the same numbers for everything else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def derive(*parts: int | str) -> int:
    """A 63-bit seed from (seed, purpose, epoch, rank, ...), the same on every machine.

    >>> derive(0, "order", 3) == derive(0, "order", 3) != derive(0, "order", 4)
    True
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator with the seed that follows from ``parts``."""
    return torch.Generator(device=device).manual_seed(derive(*parts))


def seed_default_generators(seed: int, device: torch.device) -> None:
    """Seed torch's default generators: the processor's and, where another device trains, that one's.

    ``torch.manual_seed`` asks every back end in turn, which costs a tenth of a small training step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class DrawsByShape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, each draw from torch's default generator has its own seed: from the shape, and the how-manieth tensor.

    The third tensor of shape (64, 64) that is filled at random gets the same numbers whatever was drawn between, and
    the same when it is filled once more. So two networks agree in the starting weights of what they share although
    one has another layer besides. The processor's generator only.

    >>> with DrawsByShape(0, "model"):
    ...     a, b = torch.nn.Linear(2, 2), torch.nn.Linear(3, 1)
    >>> with DrawsByShape(0, "model"):
    ...     extra, c, d = torch.nn.Linear(9, 5), torch.nn.Linear(2, 2), torch.nn.Linear(3, 1)
    >>> bool((a.weight == c.weight).all() and (b.weight == d.weight).all())
    True
    """

    def __init__(self, *parts: int | str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts = parts
        self.counts: Counter[tuple[int | str, ...]] = Counter()
        self.numbers: dict[tuple[int | str, ...], int] = {}
        self.storages: list[torch.UntypedStorage] = []  # held, or another tensor could come to lie in the same place
        torch.default_generator.manual_seed(derive(*parts))  # for what draws without an operation of torch's

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What draws starting weights is not compiled; without this, torch would import its compiler: seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            key = (str(func.overloadpacket), *self._what(args[0] if args else ""))
            torch.default_generator.manual_seed(derive(*self.parts, *key, self._next(key)))
        return func(*args, **kwargs)

    def _what(self, first: object) -> tuple[int | str, ...]:
        """The shape that is drawn, and which tensor of that shape it fills, if it fills one."""
        if not isinstance(first, Tensor):
            return (str(first),)
        shape, storage = str(list(first.shape)), first.untyped_storage()
        place = (int(storage._cdata), int(first.storage_offset()), shape)
        if place not in self.numbers:
            self.numbers[place] = self._next((shape,))
            self.storages.append(storage)
        return shape, self.numbers[place]

    def _next(self, key: tuple[int | str, ...]) -> int:
        self.counts[key] += 1
        return self.counts[key] - 1
