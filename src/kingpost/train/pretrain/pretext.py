"""What all tasks share that make their own targets, and how a net gives an answer at every position.

Legend of shapes: ``B`` samples, ``D`` features, ``T`` positions, ``h x w`` grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kingpost.errors import RecipeError
from kingpost.net import head_of
from kingpost.option import checked
from kingpost.source import DataFacts
from kingpost.task import Task


@checked
class Pretext(Task):
    """Base of the tasks that make their own targets; labels are not looked at. The loss alone is measured."""

    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = False
    pretext: ClassVar[bool] = True

    def items(self, targets: Tensor) -> int:
        """Samples."""
        return len(targets)

    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """None but the loss: what the features are worth, another task must say (``kingpost probe``)."""
        return {}

    def predictions(self, outputs: Tensor) -> Tensor:
        """As they are."""
        return outputs

    def chance_loss(self, data: DataFacts) -> float | None:
        """Not known."""
        return None


def replace(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """The model with another module at a path, in the model's dtype."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, _like(new, model))
    return model


def _like(new: nn.Module, model: nn.Module) -> nn.Module:
    dtypes = {p.dtype for p in (*model.parameters(), *new.parameters()) if p.is_floating_point()}
    return new if len(dtypes) == 1 else new.to(next(model.parameters()).dtype)


def positions_of(model: nn.Module, *inputs: Tensor) -> tuple[str, torch.Size]:
    """Path and output shape of the last module that still gives something at each position.

    That is the last one before the head to give ``(B, D, h, w)`` with more than one cell, or ``(B, T, D)``.

    Raises:
        RecipeError: no module does.
    """
    seen: list[tuple[str, torch.Size]] = []

    def note(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            if (output.ndim == 4 and output.shape[2] * output.shape[3] > 1) or (output.ndim == 3):
                seen.append((path, output.shape))

        return hook

    head = head_of(model)
    handles = [m.register_forward_hook(note(path)) for path, m in model.named_modules() if path not in ("", head)]
    mode = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(*inputs)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    if not seen:
        raise RecipeError(f"no layer of {type(model).__name__} has positions to answer at", path="model")
    return seen[-1]


def answer_at_positions(model: nn.Module, path: str, decoder: nn.Module, *inputs: Tensor) -> nn.Module:
    """The model, in place, giving ``decoder`` of what the module at ``path`` gives instead of its own outputs.

    Layers with parameters that are called after it (pooling) are left out, for nothing would train them; the decoder
    stands in the head's place, as ``decoder`` in it. All others keep their names.
    """
    order: list[str] = []
    head = head_of(model)
    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: order.append(name))
        for name, module in model.named_modules()
        if name
    ]
    mode = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(*inputs)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    last = len(order) - 1 - order[::-1].index(path)
    for name in order[last + 1 :]:
        if not path.startswith(f"{name}.") and any(True for _ in model.get_submodule(name).parameters()):
            replace(model, name, nn.Identity())
    kept = Kept()
    model.get_submodule(path).register_forward_hook(kept)
    return replace(model, head, AtPositions(decoder, kept))


class Kept:
    """Remembers what a module gives, until it is taken."""

    output: Tensor | None = None

    def __call__(self, module: nn.Module, given: Any, output: Tensor) -> None:
        """Remember it."""
        self.output = output


class AtPositions(nn.Module):
    """A head that reads what was kept instead of its own input."""

    def __init__(self, decoder: nn.Module, kept: Kept) -> None:
        super().__init__()
        self.decoder, self.kept = decoder, kept

    def forward(self, x: Tensor) -> Tensor:
        """The decoder of what was kept; ``x``, one vector a sample, is not looked at."""
        found, self.kept.output = self.kept.output, None
        decoded: Tensor = self.decoder(found)
        return decoded
