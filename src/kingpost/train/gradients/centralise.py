"""Gradient centralisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import after, gradients
from kingpost.train.gradients.clip import NOISE_FIRST


def centralise(tensors: Iterable[Tensor], least_axes: int = 2) -> None:
    """Subtract from each unit's gradient (a row of the first axis) its mean, in place.

    Args:
        tensors: gradients; those with fewer axes than ``least_axes`` stay as they are.
        least_axes: 2 for matrices and kernels, 3 for kernels only.

    >>> import torch
    >>> gradient = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    >>> centralise([gradient])
    >>> gradient
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    for tensor in tensors:
        if tensor.ndim >= least_axes:
            tensor.sub_(tensor.mean(dim=tuple(range(1, tensor.ndim)), keepdim=True))


@checked
class Centralise(Technique):
    """Give each unit's gradient the mean zero: ``g_i = g_i - mean(g_i)`` over the inputs of unit i.

    Helps convolutional nets a little, at no cost: the sum of each unit's weights stays where it starts.
    Fails where that sum must change, as with inputs that are all positive and a net without biases or norms.
    Source: Yong et al., "Gradient Centralization", arXiv 2004.01461.
    """

    kernels_only: bool = False
    """Leave matrices alone, and centralise kernels of convolutions only."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    after: ClassVar[tuple[str, ...]] = NOISE_FIRST

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update centralises."""
        least_axes = 3 if self.kernels_only else 2
        return assembly.with_(
            update=after(lambda model, step: centralise(gradients(model), least_axes), assembly.update)
        )
