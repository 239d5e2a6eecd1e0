"""Gradients of a fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot, Step
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import after, gradients
from kingpost.train.gradients.clip import NOISE_FIRST

SMALLEST = 1e-12  # so that a gradient of zero stays zero


def normalise(tensors: Sequence[Tensor]) -> None:
    """Scale the tensors together, in place, to the L2 norm 1.

    >>> gradient = torch.tensor([3.0, 4.0])
    >>> normalise([gradient])
    >>> gradient
    tensor([0.6000, 0.8000])
    """
    norm = torch.nn.utils.get_total_norm(tensors).clamp(min=SMALLEST)
    for tensor in tensors:
        tensor.div_(norm.to(tensor.device))


@checked
class GradientNormalise(Technique):
    """Use the gradient's direction alone: ``g = g / |g|``; with plain SGD each step is then ``lr`` long.

    Helps on long plateaus, where gradients vanish, and where their size differs wildly between layers.
    Fails to settle unless the learning rate falls to zero: steps do not become shorter near the minimum by themselves.
    Adam-like optimizers do much the same already.
    Source: Yu et al., "Block-Normalized Gradient Method", arXiv 1707.04822 (``per: tensor``).
    """

    per: Literal["model", "tensor"] = "model"
    """What has the length 1: all gradients together, or that of each parameter."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    after: ClassVar[tuple[str, ...]] = NOISE_FIRST

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update uses the direction."""

        def change(model: nn.Module, step: Step) -> None:
            grads = gradients(model)
            for group in [grads] if self.per == "model" else [[g] for g in grads]:
                if group:
                    normalise(group)

        return assembly.with_(update=after(change, assembly.update))
