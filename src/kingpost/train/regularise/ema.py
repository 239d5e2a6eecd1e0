"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot, Step, Update
from kingpost.option import checked
from kingpost.technique import Technique


class Average:
    """A running average of a model's parameters and of the floating-point buffers that are saved with it, by name.

    Args:
        decay: memory per step.
        warmup: remember less at first, ``(1 + n) / (10 + n)`` at step n: the start is soon forgotten.

    >>> model, average = nn.Linear(1, 1), Average(decay=0.5)
    >>> average.add(model)
    >>> with average.in_place(model):  # evaluate or save here
    ...     pass
    """

    def __init__(self, decay: float, warmup: bool = False) -> None:
        self.decay, self.warmup, self.steps = decay, warmup, 0
        self.values: dict[str, Tensor] = {}
        self.placed = False

    def add(self, model: nn.Module) -> None:
        """Count the model's present weights: ``a = decay * a + (1 - decay) * w``."""
        current = _floating(model)
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warmup else self.decay
        if not self.values:
            self.values = {name: value.clone() for name, value in current.items()}
            return
        values = [self.values[name] for name in current]
        with torch.no_grad():
            for value, new in zip(values, current.values(), strict=True):
                value.lerp_(new, 1 - decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The averaged weights in the model, and its own again afterwards; a context inside another changes nothing."""
        current = _floating(model) if self.values and not self.placed else {}
        outermost, self.placed = not self.placed, True
        _swap(self.values, current)
        try:
            yield
        finally:
            _swap(self.values, current)
            self.placed = not outermost

    def state_dict(self) -> dict[str, Any]:
        """The averages, and how many steps they have seen."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these averages."""
        self.steps = state["steps"]
        self.values = {name: value.clone() for name, value in state["values"].items()}


def _floating(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are not saved (tables, the noise of a step) follow from something else, and have no average."""
    named = {**dict(model.named_parameters()), **saved_buffers(model)}
    return {name: value.detach() for name, value in named.items() if value.is_floating_point()}


def saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are part of the model's state."""
    passing = {
        f"{path}.{name}".lstrip(".")
        for path, part in model.named_modules()
        for name in part._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in model.named_buffers() if name not in passing}


def _swap(values: dict[str, Tensor], current: dict[str, Tensor]) -> None:
    for name, tensor in current.items():
        own = tensor.clone()
        tensor.copy_(values[name])
        values[name].copy_(own)


def averaging(update: Update, average: Average) -> Update:
    """An update that afterwards counts the new weights in the average."""

    def average_after(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        update(model, optimizer, step)
        average.add(model)

    return average_after


@checked
class EMA(Technique):
    """Judge and keep an average of the weights, ``a = decay * a + (1 - decay) * w`` after each step.

    Helps nearly always, for the price of one more copy of the weights: noise of single steps averages out.
    Fails in runs that are short against ``1 / (1 - decay)`` steps: the average then lags behind, less so with the
    warm-up. Batch norm's running statistics are averaged too.
    Source: Polyak and Juditsky, 1992; Tarvainen and Valpola, arXiv 1703.01780.
    """

    decay: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Memory per step; the average spans about 1 / (1 - decay) steps."""
    warmup: bool = True
    """Remember less in the first steps: at most (1 + n) / (10 + n) at step n."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update", "evaluate", "state"})
    neutral: ClassVar[dict[str, Any]] = {"decay": 0.0}
    example: ClassVar[dict[str, Any]] = {"decay": 0.8}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose evaluation uses the average."""
        average = Average(self.decay, self.warmup)

        def evaluate(model: nn.Module) -> AbstractContextManager[object]:
            return average.in_place(model)

        mounted = assembly.with_(update=averaging(assembly.update, average), evaluate=evaluate)
        return mounted.with_state(self.name, average)
