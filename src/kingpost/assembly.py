"""The Assembly: the handful of slots that a training step is made of, and what flows between them.

Legend of shapes: ``B`` samples of a batch; other axes are the model's own.

A slot is a plain callable or object. A technique replaces a slot, most often by wrapping what it finds
there. A slot that nobody wraps costs nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kingpost import seeds

if TYPE_CHECKING:
    from kingpost.source import DataFacts, Order
    from kingpost.task import Task
    from kingpost.technique import Technique

Slot = Literal[
    "model", "initialise", "order", "batch", "objective", "gradient", "optimizer", "schedule", "update", "evaluate",
    "stop", "layout", "state",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples that are used together.

    Args:
        inputs: what the model is called with, ``model(*inputs)``; the first axis of each is ``B``.
        targets: what is to be predicted; the first axis is ``B``.
        first: position of the first sample in the global batch (of all devices and micro-batches).
        total: number of samples in the global batch.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    first: int
    total: int

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, start: int, stop: int) -> Batch:
        """The samples ``start:stop`` of this batch, which know their place in the whole."""
        inputs = tuple(x[start:stop] for x in self.inputs)
        return Batch(inputs, self.targets[start:stop], self.first + start, self.total)

    def to(self, device: torch.device) -> Batch:
        """The same samples on another device."""
        inputs = tuple(x.to(device, non_blocking=True) for x in self.inputs)
        return Batch(inputs, self.targets.to(device, non_blocking=True), self.first, self.total)

    def split(self, parts: int) -> Iterator[Batch]:
        """At most ``parts`` consecutive pieces of nearly equal size."""
        rows = len(self)
        parts = max(1, min(parts, rows))
        edges = [rows * part // parts for part in range(parts + 1)]
        return (self.rows(a, b) for a, b in itertools.pairwise(edges))

    def with_(self, **changes: Any) -> Batch:
        """A copy with other inputs or targets."""
        return dataclasses.replace(self, **changes)


@dataclass(slots=True)
class Loss:
    """What an objective returns, kept as a sum so that pieces of a batch add up to the whole.

    The mean loss of a batch is ``data / items + penalty``.

    Args:
        data: sum of the loss over the items, scalar.
        items: how many there are (samples, tokens, or samples x labels).
        outputs: what the model returned, ``(B, ...)``.
        penalty: what does not depend on the data (a norm of the weights), scalar or 0.
        finite: False if the gradient must be thrown away (loss scaling in half precision overflowed).
    """

    data: Tensor
    items: int
    outputs: Tensor
    penalty: Tensor | float = 0.0
    finite: bool = True

    def mean(self) -> Tensor:
        """The mean loss, scalar."""
        return self.data / self.items + self.penalty


@dataclass(slots=True)
class Step:
    """One optimizer step, as the slots see it.

    Args:
        index: number of the step since the start of the run, from 0.
        seed: the run's seed.
        rank: this process among those that share the batch.
        items: number of items in the global batch; a gradient is that of the sum over them, divided by this.
        ranks: number of processes that share the batch (their gradients are averaged).
        log: what a technique wants in the step history, by column name.
    """

    index: int
    seed: int
    items: float = 1
    rank: int = 0
    ranks: int = 1
    log: dict[str, Tensor | float] = field(default_factory=dict)

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for this step and purpose, the same on every rank and after a restart."""
        return seeds.generator(self.seed, purpose, self.index, device=device)


@dataclass(frozen=True)
class Started:
    """What an initialiser did.

    Args:
        done: the parameters that it set, each with how and why.
        left: parameters that it would have set but could not, each with the reason.
    """

    done: Mapping[str, str]
    left: Mapping[str, str] = field(default_factory=dict)


class Initialise(Protocol):
    """Sets the starting weights of a model in place; says what it set."""

    def __call__(self, model: nn.Module, seed: int, /) -> Started: ...


class Reorder(Protocol):
    """Changes the order in which training samples come in one pass."""

    def __call__(self, order: Order, /) -> Order: ...


class BatchTransform(Protocol):
    """Changes a training batch (augmentation), on the device, all samples at once."""

    def __call__(self, batch: Batch, step: Step, /) -> Batch: ...


class Objective(Protocol):
    """Runs the model and measures the loss."""

    def __call__(self, model: nn.Module, batch: Batch, /) -> Loss: ...


class Gradient(Protocol):
    """Adds the gradient of the mean loss over ``step.items`` to ``.grad``; the loss returned has no graph."""

    def __call__(self, model: nn.Module, objective: Objective, batch: Batch, step: Step, /) -> Loss: ...


class OptimizerFactory(Protocol):
    """Makes the optimizer, once the model has its final form."""

    def __call__(self, model: nn.Module, /) -> torch.optim.Optimizer: ...


class Schedule(Protocol):
    """The factor on every learning rate at a step (from 0) of a run of so many steps."""

    def __call__(self, step: int, total_steps: int, /) -> float: ...


class Update(Protocol):
    """Moves the weights, given their gradients."""

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step, /) -> None: ...


class Evaluate(Protocol):
    """A context in which the model holds the weights that are to be judged and kept (averaged ones, say)."""

    def __call__(self, model: nn.Module, /) -> AbstractContextManager[object]: ...


class Stop(Protocol):
    """Whether to stop now, given the scores of all epochs so far (higher is better)."""

    def __call__(self, scores: Sequence[float], /) -> bool: ...


class Stateful(Protocol):
    """What must survive a restart."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> object: ...


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The facts of a run that a technique may need to know.

    Args:
        task: what is being learned.
        data: shapes and names of the data.
        batch_size: samples per optimizer step, over all devices.
        total_steps: optimizer steps in the whole run (an estimate if the budget is in seconds).
        seed: the run's seed.
        device: where the model lives.
        first_batch: gives the run's first training samples, on the device; for starts that look at data.
        model: the recipe's option that makes the model; for techniques that make it again in another size.
        train_batches: gives the training batches of one epoch, whole on every process and without augmentation.
    """

    task: Task
    data: DataFacts
    batch_size: int
    total_steps: int
    seed: int
    device: torch.device
    first_batch: Callable[[], Batch]
    model: Technique | None = None
    train_batches: Callable[[], Iterator[Batch]] = lambda: iter(())


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is spread over processes.

    Args:
        rank: this process, from 0.
        ranks: how many there are.
        replicate: makes the callable that the objective runs (DDP around the model, or the model itself).
        local: context in which backward does not communicate, for all but the last micro-batch.
        total: the sum of a number over all processes.
    """

    rank: int = 0
    ranks: int = 1
    replicate: Callable[[nn.Module], nn.Module] = lambda model: model
    local: Callable[[nn.Module], AbstractContextManager[object]] = lambda model: nullcontext()
    total: Callable[[float], float] = lambda number: number


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """The slots of one training step. Immutable: a technique returns a changed copy."""

    setting: Setting
    model: nn.Module
    initialise: Initialise
    batch: BatchTransform
    objective: Objective
    gradient: Gradient
    optimizer: OptimizerFactory
    schedule: Schedule
    update: Update
    evaluate: Evaluate
    stop: Stop
    layout: Layout
    state: Mapping[str, Stateful]
    order: Reorder = lambda order: order

    def with_(self, **slots: Any) -> Assembly:
        """A copy in which some slots are replaced."""
        return dataclasses.replace(self, **slots)

    def with_state(self, name: str, state: Stateful) -> Assembly:
        """A copy that also keeps ``state`` across restarts, under the technique's name."""
        return dataclasses.replace(self, state={**self.state, name: state})
