"""A batch that grows during the run, by adding up the gradients of consecutive batches."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot, Step, Update
from kingpost.option import checked
from kingpost.technique import Technique


def batches_at(step: int, batches: int, over_steps: int) -> int:
    """How many batches make one update at a step from 0: from 1 up to ``batches`` in equal parts of ``over_steps``.

    >>> [batches_at(step, 3, over_steps=6) for step in range(8)]
    [1, 1, 2, 2, 3, 3, 3, 3]
    """
    return min(batches, 1 + step * batches // over_steps)


class Collected:
    """The gradients of the batches since the last update: their sum, weighted by items, by parameter name."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.items, self.batches = 0.0, 0

    def add(self, model: nn.Module, items: float) -> None:
        """Count the gradients now in the model, those of the mean over so many items."""
        self.items, self.batches = self.items + items, self.batches + 1
        for name, p in model.named_parameters():
            if p.grad is None:
                continue
            if name in self.sums:
                self.sums[name].add_(p.grad, alpha=items)
            else:
                self.sums[name] = p.grad * items

    def put_back(self, model: nn.Module) -> None:
        """Leave the gradient of the mean over all items in the model, and begin anew."""
        for name, p in model.named_parameters():
            p.grad = self.sums[name].div_(self.items) if name in self.sums else None
        self.sums, self.items, self.batches = {}, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"sums": self.sums, "items": self.items, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with these."""
        self.sums = {name: value.clone() for name, value in state["sums"].items()}
        self.items, self.batches = state["items"], state["batches"]


def ramped(update: Update, collected: Collected, batches: int, over_steps: int) -> Update:
    """An update that is only made when the batches since the last one are as many as the ramp wants."""

    def ramp(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        wanted = batches_at(step.index, batches, over_steps)
        if wanted == 1 and collected.batches == 0:
            return update(model, optimizer, step)
        collected.add(model, step.items)
        if collected.batches >= wanted:
            collected.put_back(model)
            update(model, optimizer, step)
        return None

    return ramp


@checked
class BatchRamp(Technique):
    """Grow the batch from ``b`` to ``batches * b``: one update from the mean gradient of ``k(t)`` batches in a row.

    ``k(t) = min(batches, 1 + floor(t * batches / over_steps))``. Memory stays that of one batch. A step is still one
    batch of the loader: the learning rate's schedule, the budget and steps.csv count those, so updates become rarer.
    Helps in place of a falling learning rate: small batches early, when gradients agree, and little noise at the end.
    Fails where the number of updates is what is lacking. Batches that do not fill an update at the end are not used.
    Source: Smith et al., "Don't Decay the Learning Rate, Increase the Batch Size", arXiv 1711.00489.
    """

    batches: Annotated[int, Ge(1)] = 4
    """Batches an update at the end of the ramp."""
    over_steps: Annotated[int, Ge(1)] = 1000
    """Length of the ramp, in steps (batches of the loader)."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update", "state"})
    after: ClassVar[tuple[str, ...]] = (  # what changes the gradient changes that of the whole update
        "clip", "clip-value", "clip-per-layer", "agc", "centralise", "gradient-noise", "gradient-normalise",
        "gradual-unfreezing", "lookahead",
    )  # fmt: skip
    conflicts: ClassVar[dict[str, str]] = dict.fromkeys(
        ("lbfgs", "kfac", "adahessian", "sophia"),
        "that optimizer looks at the curvature of one batch, and the gradient would be of several",
    )
    neutral: ClassVar[dict[str, Any]] = {"batches": 1}
    example: ClassVar[dict[str, Any]] = {"batches": 3, "over_steps": 5}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update waits for enough batches."""
        collected = Collected()
        update = ramped(assembly.update, collected, self.batches, self.over_steps)
        return assembly.with_(update=update).with_state(self.name, collected)
