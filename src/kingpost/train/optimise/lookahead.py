"""Lookahead: slow weights that follow the optimizer's fast ones every few steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot, Step, Update
from kingpost.option import checked
from kingpost.technique import Technique


class SlowWeights:
    """The slow weights of a model's trained parameters, by name.

    Args:
        every: steps between two of theirs.
        share: how far they go towards the fast ones, which then start from there.

    >>> model, slow = nn.Linear(1, 1, bias=False), SlowWeights(every=1, share=0.5)
    >>> slow.begin(model)
    >>> start = model.weight.detach().clone()
    >>> with torch.no_grad():
    ...     _ = model.weight.add_(1.0)
    >>> slow.follow(model); bool(torch.allclose(model.weight - start, torch.tensor(0.5)))
    True
    """

    def __init__(self, every: int, share: float) -> None:
        self.every, self.share, self.steps = every, share, 0
        self.values: dict[str, Tensor] = {}
        self.placed = False

    def begin(self, model: nn.Module) -> None:
        """Start from the model's weights, unless this has been done."""
        if not self.values:
            self.values = {name: p.detach().clone() for name, p in _trained(model).items()}

    def follow(self, model: nn.Module) -> None:
        """Count a fast step; at each ``every``-th, ``slow = slow + share * (fast - slow)``, and ``fast = slow``."""
        self.steps += 1
        if self.steps % self.every:
            return
        with torch.no_grad():
            for name, p in _trained(model).items():
                if self.share < 1:
                    p.copy_(self.values[name].lerp(p, self.share))
                self.values[name].copy_(p)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The slow weights in the model, and its own again afterwards; a context inside another changes nothing."""
        trained = _trained(model) if self.values and not self.placed else {}
        saved = {name: p.detach().clone() for name, p in trained.items()}
        outermost, self.placed = not self.placed, True
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(self.values[name])
        try:
            yield
        finally:
            self.placed = not outermost
            with torch.no_grad():
                for name, p in trained.items():
                    p.copy_(saved[name])

    def state_dict(self) -> dict[str, Any]:
        """The slow weights, and how many fast steps there were."""
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these."""
        self.steps = state["steps"]
        self.values = {name: value.clone() for name, value in state["values"].items()}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def looking_ahead(update: Update, slow: SlowWeights) -> Update:
    """An update after which the slow weights follow."""

    def look(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        slow.begin(model)
        update(model, optimizer, step)
        slow.follow(model)

    return look


@checked
class Lookahead(Technique):
    """After each ``every`` steps, ``slow = slow + share * (fast - slow)``, and the fast weights start from there.

    Works around any optimizer, whose momentum goes on; the slow weights are judged and kept. Helps where steps are
    noisy, at rates that would else be too high. Fails to pay with a small, falling rate, where fast and slow weights
    are near each other; costs one number a weight.
    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", arXiv 1907.08610.
    """

    every: Annotated[int, Ge(1)] = 5
    """Fast steps for one slow one."""
    share: Annotated[float, Gt(0), Le(1)] = 0.5
    """How far a slow step goes towards the fast weights."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update", "evaluate", "state"})
    conflicts: ClassVar[dict[str, str]] = dict.fromkeys(
        ("ema", "swa", "swag"), "both choose the weights that are judged"
    )
    neutral: ClassVar[dict[str, Any]] = {"share": 1.0, "every": 1}
    example: ClassVar[dict[str, Any]] = {"every": 2}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update looks ahead, and whose evaluation sees the slow weights."""
        slow = SlowWeights(self.every, self.share)

        def evaluate(model: nn.Module) -> AbstractContextManager[object]:
            return slow.in_place(model)

        mounted = assembly.with_(update=looking_ahead(assembly.update, slow), evaluate=evaluate)
        return mounted.with_state(self.name, slow)
