"""Stochastic weight averaging."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kingpost.assembly import Assembly, Batch, Slot, Step
from kingpost.option import checked
from kingpost.technique import Technique


class Mean:
    """The plain mean of a model's parameters over the moments at which it was told to count them.

    >>> model, mean = nn.Linear(1, 1), Mean()
    >>> mean.add(model)
    >>> with mean.in_place(model):  # evaluate or save here
    ...     pass
    """

    def __init__(self) -> None:
        self.count = 0
        self.values: dict[str, Tensor] = {}
        self.placed = False

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Count the present weights: ``mean += (w - mean) / n``."""
        self.count += 1
        for name, p in model.named_parameters():
            if name not in self.values:
                self.values[name] = p.detach().clone()
            else:
                self.values[name].lerp_(p.detach(), 1 / self.count)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[bool]:
        """The mean in the model, and its own weights again afterwards; says whether it put them there."""
        swap = bool(self.values) and not self.placed
        own = {name: p.detach().clone() for name, p in model.named_parameters()} if swap else {}
        self.placed = self.placed or swap
        try:
            _copy(self.values if swap else {}, model)
            yield swap
        finally:
            _copy(own, model)
            self.placed = self.placed and not swap

    def state_dict(self) -> dict[str, Any]:
        """The mean, and of how many."""
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from this mean."""
        self.count = state["count"]
        self.values = {name: value.clone() for name, value in state["values"].items()}


@torch.no_grad()
def _copy(values: dict[str, Tensor], model: nn.Module) -> None:
    named = dict(model.named_parameters())
    for name, value in values.items():
        named[name].copy_(value)


@contextmanager
def statistics_of(model: nn.Module, batches: Callable[[], Iterable[Batch]]) -> Iterator[None]:
    """Inside, batch norms hold the mean statistics of these batches under the present weights.

    Those of another set of weights (or a mean of them) would be wrong. Nothing happens without batch norm.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    saved = [({name: b.clone() for name, b in norm.named_buffers()}, norm.momentum, norm.training) for norm in norms]
    try:
        if norms:
            _measure(model, norms, batches())
        yield
    finally:
        with torch.no_grad():
            for norm, (buffers, _, _) in zip(norms, saved, strict=True):
                for name, old in buffers.items():
                    norm.get_buffer(name).copy_(old)


@torch.no_grad()
def _measure(model: nn.Module, norms: list[_BatchNorm], batches: Iterable[Batch]) -> None:
    """Only the batch norms are in training mode: dropout and the like would disturb what they see."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.training = True
        device = next(model.parameters()).device
        for batch in batches:
            model(*batch.to(device).inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


@checked
class SWA(Technique):
    """Judge and keep the mean of the weights over the last part of the run: ``mean += (w - mean) / n``.

    Counted after every ``every``-th step from ``start`` on. Before each evaluation of the mean, the statistics of batch
    norms are measured again on training batches without augmentation.
    Helps with a learning rate that stays high to the end (``constant``): the mean of a walk around a minimum lies
    deeper and flatter than its points.
    Fails where the rate already falls to zero (there is little left to average), and where weights still travel far
    at ``start``. The best epoch by validation score may be one before the mean.
    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", arXiv 1803.05407.
    """

    start: Annotated[float, Ge(0), Lt(1)] = 0.75
    """Part of the run's steps after which counting begins."""
    every: Annotated[int, Ge(1)] = 1
    """Count after each step whose number is a multiple of this."""
    statistics_batches: Annotated[int, Ge(1)] = 100
    """Training batches on which the statistics of batch norms are measured, at most those of one epoch."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update", "evaluate", "state"})
    conflicts: ClassVar[dict[str, str]] = {"ema": "both say which weights are judged and kept"}
    example: ClassVar[dict[str, Any]] = {"start": 0.4}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose evaluation uses the mean."""
        setting, inner, mean = assembly.setting, assembly.update, Mean()
        first = int(self.start * setting.total_steps)

        def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
            inner(model, optimizer, step)
            if step.index >= first and (step.index + 1) % self.every == 0:
                mean.add(model)

        @contextmanager
        def averaged(model: nn.Module) -> Iterator[None]:
            with ExitStack() as stack:
                if stack.enter_context(mean.in_place(model)):
                    batches = setting.train_batches
                    stack.enter_context(statistics_of(model, lambda: islice(batches(), self.statistics_batches)))
                yield

        def evaluate(model: nn.Module) -> AbstractContextManager[object]:
            return averaged(model)

        return assembly.with_(update=update, evaluate=evaluate).with_state(self.name, mean)
