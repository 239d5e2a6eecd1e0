"""Which weights a regulariser is about: matrices and kernels, by a pattern of their names, and their output units.

Legend of shapes: ``O`` outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parallel import DistributedDataParallel

from kingpost.assembly import Batch, Loss, Objective
from kingpost.errors import RecipeError

LAYERS = "*"  # the pattern that takes them all


def plain(model: nn.Module) -> nn.Module:
    """The model itself, where processes share it through a wrapper."""
    found: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return found


def weights(model: nn.Module, layers: str = LAYERS) -> dict[str, nn.Parameter]:
    """Trained parameters of two or more axes (matrices and kernels, no biases and no gains) by name.

    Args:
        model: also one that several processes share.
        layers: pattern of their names, as of files: ``*`` for any text.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> list(weights(model)), list(weights(model, "1.*"))
    (['0.weight', '1.weight'], ['1.weight'])
    """
    return {
        name: p
        for name, p in plain(model).named_parameters()
        if p.ndim >= 2 and p.requires_grad and (layers == LAYERS or fnmatchcase(name, layers))
    }


def check_some(model: nn.Module, layers: str) -> None:
    """Refuse a pattern that no weight fits.

    Raises:
        RecipeError: nothing fits.
    """
    if not weights(model, layers):
        known = list(weights(model))
        some = ", ".join(known[:6]) + (" ..." if len(known) > 6 else "")
        raise RecipeError(f"no weight fits '{layers}'", path="layers", mend=f"the model has: {some or 'no weights'}")


def by_output(model: nn.Module, layers: str = LAYERS) -> list[Tensor]:
    """Each weight as a view ``(O, ...)``: one row holds all that one output unit or channel is made of."""
    chosen = weights(model, layers)
    turned = {
        id(m.weight) for m in plain(model).modules() if isinstance(m, _ConvTransposeNd) and m.groups == 1
    }  # these have their inputs first
    return [p.transpose(0, 1) if id(p) in turned else p for p in chosen.values()]


def penalised(objective: Objective, penalty: Callable[[nn.Module], Tensor], strength: float) -> Objective:
    """An objective with ``strength * penalty(model)`` added to the mean loss."""

    def penalise(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        with torch.autocast(loss.data.device.type, enabled=False):  # what is about weights is in their precision
            loss.penalty = loss.penalty + strength * penalty(model)
        return loss

    return penalise
