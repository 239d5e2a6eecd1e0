"""Starting weights: naive, Xavier and He.

Each parameter draws from a generator of its own, seeded by (seed, its name), so that two models agree in every
parameter whose name and shape they share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from kingpost import seeds
from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique

Fill = Callable[[Tensor, torch.Generator], object]

_TOUCHES: frozenset[Slot] = frozenset({"initialise"})


def initialise_weights(model: nn.Module, fill: Fill, seed: int) -> list[str]:
    """Fill the weights of linear and convolution layers in place, and set their biases to zero.

    Returns the names of the parameters that were set; embeddings, norms and others stay as they are.

    >>> initialise_weights(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), lambda w, g: nn.init.ones_(w), seed=0)
    ['0.weight', '0.bias']
    """
    done: list[str] = []
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | _ConvNd) or id(module.weight) in shared:
            continue
        name = f"{path}.weight".lstrip(".")
        with torch.no_grad():
            fill(module.weight, seeds.generator(seed, "initialise", name, device=module.weight.device))
            done.append(name)
            if module.bias is not None:
                module.bias.zero_()
                done.append(f"{path}.bias".lstrip("."))
    return done


@checked
class NaiveNormal(Technique):
    """Every weight from N(0, std^2), whatever the layer's size; the baseline that scaled schemes are judged by.

    Fails in depth: the signal's variance is multiplied by ``fan_in * std^2`` in each layer.
    """

    std: Annotated[float, Gt(0)] = 0.01
    """Standard deviation."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""
        return _with(assembly, lambda w, g: nn.init.normal_(w, std=self.std, generator=g))


@checked
class NaiveUniform(Technique):
    """Every weight from U(-bound, bound), whatever the layer's size. Fails in depth, as the naive normal does."""

    bound: Annotated[float, Gt(0)] = 0.05
    """Half the width of the interval."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""
        return _with(assembly, lambda w, g: nn.init.uniform_(w, -self.bound, self.bound, generator=g))


@checked
class Xavier(Technique):
    """Variance ``2 gain^2 / (fan_in + fan_out)``: keeps forward and backward signals, for zero-mean activations.

    Fails with ReLU in depth, which halves the variance each time. Source: Glorot and Bengio, AISTATS 2010.
    """

    distribution: Literal["uniform", "normal"] = "uniform"
    """Shape of the distribution."""
    gain: Annotated[float, Gt(0)] = 1.0
    """Factor on the standard deviation; 5/3 for tanh."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""
        fill = nn.init.xavier_uniform_ if self.distribution == "uniform" else nn.init.xavier_normal_
        return _with(assembly, lambda w, g: fill(w, gain=self.gain, generator=g))


@checked
class He(Technique):
    """Variance ``2 / fan``: keeps the signal through ReLU layers.

    Fails for zero-mean activations, where it doubles the variance each time. Source: He et al., arXiv 1502.01852.
    """

    distribution: Literal["uniform", "normal"] = "normal"
    """Shape of the distribution."""
    mode: Literal["fan_in", "fan_out"] = "fan_in"
    """Keep the variance of activations (fan_in) or of gradients (fan_out)."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""
        fill = nn.init.kaiming_uniform_ if self.distribution == "uniform" else nn.init.kaiming_normal_
        return _with(assembly, lambda w, g: fill(w, mode=self.mode, nonlinearity="relu", generator=g))


def _with(assembly: Assembly, fill: Fill) -> Assembly:
    return assembly.with_(initialise=lambda model, seed: initialise_weights(model, fill, seed))
