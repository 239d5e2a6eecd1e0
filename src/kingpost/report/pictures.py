"""Inputs that are images, as small pictures inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_PIXELS = 64  # a side; larger images are averaged down


def are_images(inputs: Tensor) -> bool:
    """Whether a batch of inputs is ``(N, 1 or 3, H, W)``."""
    return inputs.ndim == 4 and inputs.shape[1] in (1, 3) and min(inputs.shape[2:]) > 1


def data_uri(image: Tensor, scale: Mapping[str, Sequence[float]] | None) -> str:
    """An image as a PNG inside a ``data:`` address.

    Args:
        image: ``(C, H, W)`` with one or three channels.
        scale: mean and standard deviation of each channel, if the image was standardised with them; without,
            values outside 0..1 are stretched to it from the image's own range.
    """
    from matplotlib.image import imsave

    image = image.float().nan_to_num()
    if scale:
        mean, std = (torch.tensor(scale[key]).view(-1, 1, 1) for key in ("mean", "std"))
        image = image * std + mean
    elif image.min() < 0 or image.max() > 1:
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
    if max(image.shape[1:]) > MOST_PIXELS:
        factor = MOST_PIXELS / max(image.shape[1:])
        size = [max(1, round(side * factor)) for side in image.shape[1:]]
        image = F.interpolate(image[None], size=size, mode="area")[0]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    file = io.BytesIO()
    imsave(file, pixels.contiguous().numpy(), format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
