"""Images with the channels of a pixel next to each other in memory."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Loss, Objective, Slot
from kingpost.option import checked
from kingpost.source import Form
from kingpost.technique import Technique
from kingpost.train.augment.augmentation import check_form


def channels_last(x: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` with strides ``(H W C, 1, W C, C)``; any other tensor as it is.

    >>> channels_last(torch.zeros(2, 3, 4, 5)).stride()
    (60, 1, 15, 3)
    """
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def reordered(objective: Objective) -> Objective:
    """An objective that hands the model its images with the channels last in memory."""

    def reorder(model: nn.Module, batch: Batch) -> Loss:
        return objective(model, batch.with_(inputs=tuple(channels_last(x) for x in batch.inputs)))

    return reorder


@checked
class ChannelsLast(Technique):
    """Train on images with the channels of each pixel next to each other: strides ``(H W C, 1, W C, C)``.

    Shapes and values stay, so results differ by rounding alone. Convolutions, batch norm and pooling hand on the order
    that they are given. Weights stay in torch's order, so states and files are the same.
    Helps convolutional nets: their kernels are faster in this order on most processors and on tensor cores.
    Fails to gain where layers put the order back (``view``, group norm) or are no convolutions; there it costs copies.
    Source: oneDNN documentation, "Understanding Memory Formats"; PyTorch, "Channels Last Memory Format".
    """

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    reads: ClassVar[tuple[Form, ...]] = ("image",)
    example_model: ClassVar[str] = "vit"  # begins with a convolution, and has no batch norm

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model sees reordered images."""
        check_form(assembly.setting.data, self.reads)
        return assembly.with_(objective=reordered(assembly.objective))
