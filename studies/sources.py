"""Data as studies need it: less of it, spoiled on purpose, or posed as another question.

A recipe names them as ``studies.sources:Sampled``, from the repository's root; each changes another source.
Legend of shapes: ``H W`` rows and columns of an image, ``T`` steps of a sequence.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor

from kingpost import seeds
from kingpost.data.clips import ClipSplit
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError
from kingpost.option import Kind, checked
from kingpost.source import Dataset, Source, Split, fingerprint

Samples = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Lt(1)]


@checked
class Sampled(Source):
    """Fewer samples of another source, smaller images, and samples spoiled on purpose; the test part is left out."""

    source: Annotated[Source, Kind("data")]
    """The whole."""
    train: Samples | None = None
    """Training samples that are kept, drawn at random; null keeps all."""
    validation: Samples | None = None
    """Validation samples that are kept, drawn at random; null keeps all."""
    keep_classes: tuple[int, ...] = ()
    """Only these classes, numbered anew in this order; empty keeps all."""
    shrink: Samples = 1
    """Images are averaged down by this factor."""
    label_noise: Share = 0.0
    """Part of the training labels that is replaced by another class, each as likely as the others."""
    spoil: Literal["occlude", "rotate"] | None = None
    """What happens to the validation images: a square covers half of each side at a random place, or a random turn."""
    turn: Annotated[float, Ge(0)] = 30.0
    """Greatest turn either way, in degrees."""
    draw_seed: Annotated[int, Ge(0)] = 0
    """Seed of all of this; not that of the run."""

    def open(self) -> Dataset:
        """Open the whole, and change it."""
        whole = self.source.open()
        parts = {name: held(whole.splits[name]) for name in ("train", "validation") if name in whole.splits}
        parts = {name: self._fewer(part, name) for name, part in parts.items()}
        parts["train"] = TensorSplit(parts["train"].inputs, self._noisy(parts["train"].targets, whole))
        if self.spoil:
            parts["validation"] = TensorSplit(self._spoiled(parts["validation"].inputs), parts["validation"].targets)
        facts = dataclasses.replace(
            whole.facts,
            inputs=tuple((tuple(x.shape[1:]), x.dtype) for x in parts["train"].inputs),
            classes=tuple(whole.facts.classes[c] for c in self.keep_classes) or whole.facts.classes,
            class_counts=(),
        )
        changed = (value for part in parts.values() for x in (*part.inputs, part.targets) for value in [x.numpy()])
        return Dataset(facts=facts, splits=parts, fingerprint=fingerprint(changed), fitted=whole.fitted)

    def _fewer(self, part: TensorSplit, name: str) -> TensorSplit:
        if self.keep_classes:
            number = torch.full((int(part.targets.max()) + 1,), -1)
            number[list(self.keep_classes)] = torch.arange(len(self.keep_classes))
            rows = (number[part.targets] >= 0).nonzero().flatten()
            part = TensorSplit(tuple(x[rows] for x in part.inputs), number[part.targets[rows]])
        wanted = getattr(self, name)
        if wanted is not None:
            if wanted > len(part):
                raise DataError(f"data.{name}: got {wanted}, but there are {len(part)}")
            rows = torch.randperm(len(part), generator=self._draw(name))[:wanted].sort().values
            part = part.subset(rows)
        if self.shrink > 1:
            part = TensorSplit(tuple(F.avg_pool2d(x, self.shrink) for x in part.inputs), part.targets)
        return part

    def _noisy(self, labels: Tensor, whole: Dataset) -> Tensor:
        if not self.label_noise:
            return labels
        classes, draw = len(self.keep_classes or whole.facts.classes), self._draw("noise")
        other = (labels + torch.randint(1, classes, labels.shape, generator=draw)) % classes
        return torch.where(torch.rand(labels.shape, generator=draw) < self.label_noise, other, labels)

    def _spoiled(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, draw = inputs[0].clone(), self._draw("spoil")
        count, _, rows, columns = images.shape
        if self.spoil == "rotate":
            angles = (2 * torch.rand(count, generator=draw) - 1) * self.turn * torch.pi / 180
            turns = torch.stack([angles.cos(), -angles.sin(), angles * 0, angles.sin(), angles.cos(), angles * 0], 1)
            grid = F.affine_grid(turns.view(-1, 2, 3), list(images.shape), align_corners=False)
            lowest = images.amin()  # what is turned in from outside is background
            return (F.grid_sample(images - lowest, grid, align_corners=False) + lowest,)
        y = torch.arange(rows)[None, :, None] - torch.randint(rows - rows // 2 + 1, (count, 1, 1), generator=draw)
        x = torch.arange(columns) - torch.randint(columns - columns // 2 + 1, (count, 1, 1), generator=draw)
        covered = (y >= 0) & (y < rows // 2) & (x >= 0) & (x < columns // 2)
        return (images.masked_fill(covered[:, None], float(images.amin())),)

    def _draw(self, purpose: str) -> torch.Generator:
        return seeds.generator(self.draw_seed, "studies", purpose)


@checked
class RowsThenGap(Source):
    """Images read row by row, then so many steps of noise: what was seen must be kept until the end.

    Inputs ``(H + gap, W)``; the class is that of the image. With a longer gap the same question needs a longer memory.
    """

    source: Annotated[Source, Kind("data")]
    """Images of one channel."""
    gap: Annotated[int, Ge(0)] = 0
    """Steps between the last row and the answer."""
    noise: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of what stands in the gap, in units of the standardised images."""

    def open(self) -> Dataset:
        """Open the images, and turn them into sequences."""
        whole = self.source.open()
        parts = {name: held(part) for name, part in whole.splits.items()}
        made = {name: TensorSplit((self._read(part.inputs[0], name),), part.targets) for name, part in parts.items()}
        facts = dataclasses.replace(
            whole.facts, inputs=((tuple(made["train"].inputs[0].shape[1:]), torch.float32),), class_counts=()
        )
        return Dataset(
            facts=facts, splits=made, fingerprint=f"{whole.fingerprint}-{self.gap}-{self.noise}", fitted=whole.fitted
        )

    def _read(self, images: Tensor, name: str) -> Tensor:
        draw = seeds.generator(0, "studies", "gap", name)
        between = torch.randn(len(images), self.gap, images.shape[3], generator=draw) * self.noise
        return torch.cat([images[:, 0], between], 1)


@checked
class FlatClips(Source):
    """Clips ``(T, 1, S, S)`` as sequences of whole frames, ``(T, S * S)``, for a net without convolutions."""

    source: Annotated[Source, Kind("data")]
    """The clips."""

    def open(self) -> Dataset:
        """Open the clips, and flatten their frames."""
        whole = self.source.open()
        parts = {name: held(part) for name, part in whole.splits.items()}
        made = {name: TensorSplit((part.inputs[0].flatten(2),), part.targets) for name, part in parts.items()}
        facts = dataclasses.replace(
            whole.facts, inputs=((tuple(made["train"].inputs[0].shape[1:]), torch.float32),), class_counts=()
        )
        return Dataset(facts=facts, splits=made, fingerprint=f"{whole.fingerprint}-flat", indices=whole.indices)


def held(part: Split) -> TensorSplit:
    """A part as tensors in memory.

    Raises:
        DataError: it cannot be held so.
    """
    if isinstance(part, TensorSplit):
        return part
    if isinstance(part, ClipSplit):
        return TensorSplit((part.clips(torch.arange(len(part))),), part.classes)
    raise DataError(f"a part of kind {type(part).__name__} cannot be changed here; it has no tensors")
