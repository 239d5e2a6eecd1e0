"""The user's own DataLoaders as a data source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from kingpost import catalogue, seeds
from kingpost.assembly import Batch
from kingpost.data.facts import TaskName, as_targets, facts_of
from kingpost.errors import DataError, RecipeError
from kingpost.option import GIVEN, checked, plain
from kingpost.source import DataFacts, Dataset, Order, Source, Split, fingerprint

PARTS = ("train", "validation", "test")


class LoaderSplit(Split):
    """A DataLoader that gives ``(x, y)`` or ``((x1, x2), y)``, in an order that follows from (seed, epoch).

    What the loader draws from torch's default generator, or from its own, is seeded before each pass and kept
    apart from what training draws. Every rank sees the same global batches. A pass that starts late discards
    the batches before it. Python's and numpy's generators are seeded only in the loader's workers, by torch.

    Args:
        loader: the loader; its batch size and its shuffling hold.
        part: ``train``, ``validation`` or ``test``, for error messages.
        task: what the targets are for; None guesses it.
    """

    sharded = False

    def __init__(self, loader: DataLoader[Any], part: str, task: TaskName | None = None) -> None:
        self.loader, self.part, self.task = loader, part, task
        if isinstance(loader.sampler, DistributedSampler):
            raise DataError(
                f"data.{part}: the loader has a DistributedSampler; leave it out, batches are divided later"
            )
        try:
            self.length = len(loader)
        except TypeError as error:
            raise DataError(f"data.{part}: the loader has no length ({error}); give its dataset a __len__") from error

    def __len__(self) -> int:
        if self.loader.drop_last and self.loader.batch_size:
            return self.length * self.loader.batch_size
        return len(self.loader.dataset)  # type: ignore[arg-type]

    def steps(self, batch_size: int) -> int:
        """Number of batches of a pass: the loader's own."""
        return self.length

    def batches(self, order: Order) -> Iterator[Batch]:
        """Global batches as the loader makes them."""
        size = self.loader.batch_size
        if order.shuffle and size is not None and size != order.batch_size:
            raise DataError(
                f"data.{self.part}: the loader makes batches of {size}, the recipe says {order.batch_size}; "
                f"set batch_size={size} in the recipe"
            )
        for generator in _generators(self.loader):
            generator.manual_seed(seeds.derive(order.seed, "order", order.epoch))
        state = order.generator("order").get_state()
        with _random_state(state):
            iterator = iter(self.loader)
        for number in range(self.length):
            with _random_state(state):
                given = next(iterator, None)
            if given is None:
                raise DataError(f"data.{self.part}: the loader ended after {number} of {self.length} batches")
            if number >= order.start:
                yield self._batch(given)

    def _batch(self, given: object) -> Batch:
        if not (isinstance(given, tuple | list) and len(given) == 2):
            keys = f" with keys {sorted(map(str, given))}" if isinstance(given, Mapping) else ""
            raise DataError(
                f"data.{self.part}: the loader gave a {type(given).__name__}{keys}, expected (x, y) or "
                "((x1, x2), y); give it a collate_fn that returns that"
            )
        inputs = tuple(given[0]) if isinstance(given[0], tuple | list) else (given[0],)
        if strange := [type(x).__name__ for x in (*inputs, given[1]) if not isinstance(x, Tensor)]:
            raise DataError(f"data.{self.part}: the loader gave a {strange[0]} in a batch, expected tensors")
        inputs = tuple(x.float() if x.dtype == torch.float64 else x for x in inputs)
        targets = as_targets(given[1], self.task, f"targets of data.{self.part}")[0]
        return Batch(inputs, targets, 0, len(targets))


@checked
class Loaders(Source):
    """DataLoaders, or an importable function that makes them (then the recipe's file can make them again).

    >>> samples = torch.utils.data.TensorDataset(torch.zeros(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))
    >>> Loaders(train=DataLoader(samples, batch_size=3)).open().facts.classes
    ('0', '1', '2')
    """

    train: Any = None
    """Loader of the training part."""
    validation: Any = None
    """Loader of the validation part."""
    test: Any = None
    """Loader of the test part."""
    make: Any = None
    """A function that returns a loader, a tuple (train, validation[, test]), or a mapping with these keys."""
    reference: str = ""
    """That function as ``module:name``."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Passed to the function by name."""
    classes: Annotated[int, Ge(1)] | None = None
    """Number of classes (of tokens in language modelling); null reads the training part once to find it."""
    task: TaskName | None = None
    """What the targets are for; null guesses it: whole numbers are classes, others are values."""

    def __post_init__(self) -> None:
        if self.reference and self.make is None:
            object.__setattr__(self, "make", catalogue.find("data", self.reference))
        if (self.train is None) == (self.make is None):
            raise RecipeError(
                "either a loader or a function that makes it",
                path="train",
                mend="give train=, or make= or reference=",
            )

    @property
    def reproducible(self) -> bool:
        """Whether the recipe's file alone can make the loaders again."""
        return bool(self.reference)

    @property
    def name(self) -> str:
        """``loaders``, or ``given`` for objects that no file can hold."""
        return super().name if self.reference else GIVEN

    def to_value(self) -> dict[str, Any]:
        """The reference and its arguments, or for objects a description of them."""
        if self.reference:
            keys = ("reference", "arguments", "classes", "task")
            return {key: plain(getattr(self, key)) for key in keys}
        made = self.train if self.make is None else self.make
        return {"what": f"data from an object of type {type(made).__name__}"}

    def open(self) -> Dataset:
        """Make the loaders and look at the first training batch."""
        loaders = self._loaders()
        first = next(LoaderSplit(loaders["train"], "train", self.task).batches(Order(batch_size=1)))
        task = as_targets(first.targets, self.task, "targets")[1]
        splits = {part: LoaderSplit(loader, part, task) for part, loader in loaders.items()}
        facts = facts_of(task, first.inputs, first.targets, self._classes(splits["train"], task))
        if task == "language-modelling":
            facts = replace(facts, vocabulary=self.classes or _greatest(splits["train"]) + 1)
        elif facts.vocabulary or facts.cardinalities:
            facts = _with_codes(facts, splits["train"], task)
        lengths = (f"{part} {len(split)} {split.length}" for part, split in splits.items())
        return Dataset(
            facts=facts,
            splits=splits,
            fingerprint=fingerprint([*lengths, *(x.numpy() for x in (*first.inputs, first.targets))]),
        )

    def _loaders(self) -> dict[str, DataLoader[Any]]:
        made: Any = {part: getattr(self, part) for part in PARTS}
        if self.make is not None:
            made = self.make(**self.arguments)
        if isinstance(made, DataLoader):
            made = {"train": made}
        elif isinstance(made, tuple | list):
            made = dict(zip(PARTS, made, strict=False))
        given = {part: loader for part, loader in made.items() if loader is not None}
        if "train" not in given or set(given) - set(PARTS):
            raise DataError(f"data: got loaders for {', '.join(given) or 'nothing'}, expected train, validation, test")
        for part, loader in given.items():
            if not isinstance(loader, DataLoader):
                raise DataError(f"data.{part}: expected a torch DataLoader, got {type(loader).__name__}")
        return given

    def _classes(self, train: LoaderSplit, task: TaskName) -> tuple[str, ...]:
        """Names of the classes: as many as were given, else as many as occur in the training part."""
        if task != "classification":
            return ()
        known = getattr(train.loader.dataset, "targets", None)  # torchvision's habit; saves a pass over the images
        if self.classes is None and known is not None:
            return tuple(map(str, range(int(torch.as_tensor(known).max()) + 1)))
        return tuple(map(str, range(self.classes or _greatest(train) + 1)))


def _greatest(train: LoaderSplit) -> int:
    return max(int(batch.targets.max()) for batch in train.batches(Order(batch_size=1)))


def _with_codes(facts: DataFacts, train: LoaderSplit, task: TaskName) -> DataFacts:
    """The facts with as many tokens and codes as there are in the whole training part."""
    for batch in train.batches(Order(batch_size=1)):
        of_batch = facts_of(task, batch.inputs, batch.targets, facts.classes)
        facts = replace(
            facts,
            vocabulary=max(facts.vocabulary, of_batch.vocabulary),
            target_vocabulary=max(facts.target_vocabulary, of_batch.target_vocabulary),
            cardinalities=tuple(map(max, facts.cardinalities, of_batch.cardinalities)),
        )
    return facts


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """The loader's own generators; a sampler may have one that the loader does not know of."""
    sampler = loader.sampler
    found = [loader.generator]
    if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        found.append(sampler.generator)
    return [generator for generator in found if generator is not None]


@contextmanager
def _random_state(state: Tensor) -> Iterator[None]:
    """The default generator in a state of its own, which is brought up to date on leaving."""
    outside = torch.get_rng_state()
    torch.set_rng_state(state)
    try:
        yield
    finally:
        state.copy_(torch.get_rng_state())
        torch.set_rng_state(outside)
