"""CutMix."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from kingpost import seeds
from kingpost.assembly import Batch, Step
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, with_first
from kingpost.train.augment.mixup import soft_targets


def cutmix(batch: Batch, box: tuple[int, int, int, int], partners: torch.Tensor, classes: int = 0) -> Batch:
    """Each image with a rectangle of its partner's; targets are mixed by area.

    Args:
        batch: images ``(B, C, H, W)``; targets are classes, probabilities or values.
        box: top, bottom, left, right of the rectangle in pixels; bottom and right are the first ones outside.
        partners: ``(B,)`` indices into the batch.
        classes: number of classes, if targets are classes.
    """
    top, bottom, left, right = box
    x = batch.inputs[0].clone()
    x[:, :, top:bottom, left:right] = batch.inputs[0][partners][:, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / (x.shape[2] * x.shape[3])
    targets = soft_targets(batch, classes)
    return with_first(batch, x).with_(targets=targets.lerp(targets[partners], share))


def draw_box(draw: np.random.Generator, weight: float, rows: int, columns: int) -> tuple[int, int, int, int]:
    """A rectangle of about ``1 - weight`` of the image, its middle anywhere, cut off at the borders."""
    side = math.sqrt(1 - weight)
    height, width = int(rows * side), int(columns * side)
    y, x = int(draw.integers(rows)), int(draw.integers(columns))
    top, left = y - height // 2, x - width // 2
    return max(0, top), min(rows, top + height), max(0, left), min(columns, left + width)


@checked
class CutMix(Augmentation):
    """Paste a rectangle of another image, and mix the targets by area; one rectangle a batch.

    Its area is ``1 - w``, ``w ~ Beta(alpha, alpha)``, less what reaches over the border. Helps large nets that train
    long. Fails where the class is in one small part, and on short runs. With streamed data on several devices,
    partners come from the same device. Source: Yun et al., arXiv 1905.04899.
    """

    alpha: Annotated[float, Gt(0)] = 1.0
    """1 draws areas uniformly; less draws very small and very large ones."""
    p: Annotated[float, Ge(0), Le(1)] = 1.0
    """Probability that a batch is mixed."""

    reads: ClassVar[tuple[Form, ...]] = ("image",)
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label")

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Mixed images and targets."""
        draw = np.random.default_rng(seeds.derive(step.seed, "cutmix", step.index))
        weight, chosen = float(draw.beta(self.alpha, self.alpha)), draw.random() < self.p
        if not chosen:
            return batch
        _, _, rows, columns = batch.inputs[0].shape
        partners = torch.randperm(len(batch), generator=step.generator("cutmix")).to(batch.targets.device)
        return cutmix(batch, draw_box(draw, weight, rows, columns), partners, len(data.classes))
