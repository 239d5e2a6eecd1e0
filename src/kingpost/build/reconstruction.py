"""Reconstruction: a capsule must hold enough to rebuild its picture."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Loss, Objective, Slot
from kingpost.build.blocks.capsules import Decoder
from kingpost.build.nets.capsule import CapsuleNet
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique


class _Scores(nn.Module):
    """The net as an objective wants it: gives the scores alone, and keeps what was rebuilt."""

    def __init__(self, model: nn.Module, targets: Tensor, inputs: int) -> None:
        super().__init__()
        self.model, self.targets, self.inputs = model, targets, inputs
        self.rebuilt: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.model(x, self.targets)
        self.rebuilt = both[:, -self.inputs :]
        return both[:, : -self.inputs]


def with_reconstruction(objective: Objective, strength: float) -> Objective:
    """An objective with ``strength`` times the squared error of the rebuilt inputs, summed over their numbers."""

    def rebuild(model: nn.Module, batch: Batch) -> Loss:
        (x,) = batch.inputs
        scores = _Scores(model, batch.targets, math.prod(x.shape[1:]))
        loss = objective(scores, batch)
        assert scores.rebuilt is not None
        error = (scores.rebuilt - x.flatten(1).to(scores.rebuilt.dtype)).square().sum()
        loss.data = loss.data + strength * error * (loss.items / len(batch))
        return loss

    return rebuild


@checked
class Reconstruction(Technique):
    """Add ``strength * |x - decoder(capsule of the true class)|^2`` to a capsule net's loss.

    The decoder is part of the model and of its weights; predictions do not use it. Fails where most of a picture is
    background, which then fills the capsules. Source: Sabour, Frosst and Hinton, arXiv 1710.09829, section 4.1.
    """

    strength: Annotated[float, Ge(0)] = 0.0005
    """Factor on the squared error, summed over the numbers of an input."""
    widths: tuple[Annotated[int, Ge(1)], ...] = (512, 1024)
    """Units of the decoder's hidden layers."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model", "objective"})
    after: ClassVar[tuple[str, ...]] = ("margin-loss",)
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label")
    example: ClassVar[dict[str, Any]] = {"strength": 0.01, "widths": (8,)}
    example_model: ClassVar[str] = "capsule"

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose capsule net has a decoder, and whose objective uses it."""
        model = assembly.model
        if not isinstance(model, CapsuleNet):
            raise RecipeError(f"needs a capsule net, got {type(model).__name__}", mend="use model=capsule")
        data, weight = assembly.setting.data, model.classes.weight
        model.decoder = Decoder(weight.shape[1], weight.shape[3], math.prod(data.inputs[0][0]), self.widths)
        return assembly.with_(objective=with_reconstruction(assembly.objective, self.strength))
