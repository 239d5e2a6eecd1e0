"""Layer-sequential unit variance: a start that looks at the data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.conv import _ConvNd

from kingpost.assembly import Assembly, Batch, Slot, Started
from kingpost.build.initialise.orthogonal import orthogonal
from kingpost.build.initialise.running import run
from kingpost.build.initialise.weights import Weight, find_weights, set_weights
from kingpost.option import checked
from kingpost.technique import Technique


def lsuv(model: nn.Module, batch: Batch, seed: int) -> Started:
    """Make all weights orthogonal, then scale each layer so that its output varies by 1 on a batch.

    Biases are zero, so a layer's output is linear in its weight and one division is exact; layers are scaled in the
    order in which they run, in one pass. Only linear and convolution layers have such an output.

    Args:
        model: to be changed in place.
        batch: training samples.
        seed: of all random draws.

    >>> model, x = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(16, 3)
    >>> started = lsuv(model, Batch((x,), x, 0, 16), seed=0)
    >>> round(float(model(x).detach().std()), 3)
    1.0
    """
    started = set_weights(model, seed, _orthogonal)
    by_name = find_weights(model).names
    spread: dict[str, Tensor] = {}

    def scale(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if name in spread:  # a layer that is used again was scaled at its first use
                return output
            std = output.std()
            spread[name] = std
            factor = torch.where(std > 0, 1 / std, 1.0)
            by_name[name].matrices.mul_(factor)
            return output * factor

        return hook

    layers = {f"{path}.weight".lstrip("."): layer for path, layer in model.named_modules()}
    hooks = [
        layer.register_forward_hook(scale(name))
        for name, layer in layers.items()
        if name in by_name and isinstance(layer, nn.Linear | _ConvNd)
    ]
    try:
        run(model, batch, seed, batch_statistics=True)
    finally:
        for hook in hooks:
            hook.remove()
    return _said(started, by_name, spread)


def _orthogonal(weight: Weight, draw: torch.Generator) -> tuple[Tensor, str]:
    w = weight.matrices
    return orthogonal(weight.flat, draw, w.dtype, w.device).view(w.shape), "orthogonal"


def _said(started: Started, weights: dict[str, Weight], spread: dict[str, Tensor]) -> Started:
    done, left = dict(started.done), dict(started.left)
    for name in weights:
        if name not in spread:
            done[name] = "orthogonal, not scaled: its layer is not called by itself, so its output is not seen"
        elif isinstance(spread[name], FakeTensor) or bool(spread[name] > 0):  # a plan has no values
            done[name] = "orthogonal, then scaled to an output of variance 1 on the first batch"
        else:
            done.pop(name)
            left[name] = "orthogonal, but not scaled: its output does not vary on the first batch"
    return Started(done, left)


@checked
class LSUV(Technique):
    """Orthogonal weights, each layer scaled so that its output has variance 1 on the first training batch.

    Needs no formula for the activations. Fails if the first batch is not typical of the data, or is tiny. Layers
    that torch does not call as a module (in attention, in recurrent nets) stay orthogonal.
    Source: Mishkin and Matas, arXiv 1511.06422.
    """

    touches: ClassVar[frozenset[Slot]] = frozenset({"initialise"})

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""
        return assembly.with_(initialise=lambda model, seed: lsuv(model, assembly.setting.first_batch(), seed))
