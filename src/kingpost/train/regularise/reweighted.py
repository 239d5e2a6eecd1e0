"""Layers that use a function of their weight instead of the weight itself, and keep its name.

``torch.nn.utils.parametrizations`` renames a weight to ``parametrizations.weight.original``; here the class of the
layer changes instead, so weights files, initialisers and patterns still find ``weight``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.errors import RecipeError


class Reweighted:
    """Mixin of linear and convolution layers: the weight that multiplies the input is :meth:`used`."""

    weight: Tensor

    @abstractmethod
    def used(self) -> Tensor:
        """The weight that is used, of the shape of ``weight``."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        if isinstance(self, nn.Linear):
            return F.linear(x, self.used(), self.bias)
        y: Tensor = self._conv_forward(x, self.used(), self.bias)  # type: ignore[attr-defined]
        return y


PLAIN: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def named_layers(model: nn.Module, layers: str, kinds: tuple[type[nn.Module], ...] = PLAIN) -> dict[str, nn.Module]:
    """The layers of these kinds whose name fits the pattern.

    Raises:
        RecipeError: none fits, or one that fits uses its weight in a way of its own already.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, kinds) and fnmatchcase(name, layers)}
    if not found:
        words = " or ".join(kind.__name__ for kind in kinds)
        raise RecipeError(f"no layer of kind {words} fits '{layers}'", path="layers", mend="remove the technique")
    for name, layer in found.items():
        if type(layer) not in kinds:
            raise RecipeError(
                f"'{name}' is a {type(layer).__name__}, which uses its weight in a way of its own",
                path="layers",
                mend="leave it out by a pattern, or keep one of the techniques that change how weights are used",
            )
    return found


def turn(layer: nn.Module, kinds: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Give a layer its other class in place; whoever holds the layer, and its hooks, still do."""
    layer.__class__ = kinds[type(layer)]


def shape_like(per_output: Tensor, weight: Tensor) -> Tensor:
    """One number an output, ``(O,)``, so that it multiplies the rows of a weight ``(O, I, ...)``."""
    return per_output.view(-1, *[1] * (weight.ndim - 1))
