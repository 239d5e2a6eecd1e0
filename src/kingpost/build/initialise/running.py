"""Run a model once to look at it, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from kingpost import seeds
from kingpost.assembly import Batch
from kingpost.errors import RecipeError


@contextmanager
def quietly(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """A context to run a model only to look at it: no gradients, nothing compiled, no dropout, and its state is kept.

    Args:
        model: what is run.
        batch_statistics: batch norm uses those of the batch, as it will in the first step.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = {b: b.clone() for b in model.buffers()}
    model.eval()
    try:
        with torch.no_grad(), _uncompiled(model):
            for module in modes:
                module.training = batch_statistics and isinstance(module, nn.modules.batchnorm._BatchNorm)
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)
        for module, training in modes.items():
            module.training = training


def _uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Asked for only where something is compiled: the compiler takes seconds to import."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def run(model: nn.Module, batch: Batch, seed: int, batch_statistics: bool = False) -> Any:
    """The model's outputs on a batch, inside :func:`quietly`.

    Raises:
        RecipeError: the model cannot be run on it.
    """
    seeds.seed_default_generators(seed, next((p.device for p in model.parameters()), torch.device("cpu")))
    try:
        with quietly(model, batch_statistics):
            return model(*batch.inputs)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
        raise RecipeError(
            f"this initialiser runs the model once, and {type(model).__name__} cannot be run on inputs of shape "
            f"{shapes}: {str(error).splitlines()[0]}",
            path="initialise",
            mend="check the model and the data, or use an initialiser that looks at the layers alone, such as 'he'",
        ) from error
