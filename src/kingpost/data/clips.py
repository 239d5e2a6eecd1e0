"""Short films made from pictures: a picture moves over a canvas, and the class is where it moves to.

Legend of shapes: ``B`` clips, ``T`` frames, ``S`` side of the canvas, ``P`` side of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from kingpost import seeds
from kingpost.assembly import Batch
from kingpost.data.idx import read_idx
from kingpost.data.images import plain_or_gz
from kingpost.data.parts import FilePath, Fraction, Seed, divide
from kingpost.errors import DataError, RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Order, Source, Split, existing_file, fingerprint

# Steps down and to the right; the first four are those of directions=4.
DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "right": (0, 1),
    "left": (0, -1),
    "down": (1, 0),
    "up": (-1, 0),
    "down-right": (1, 1),
    "down-left": (1, -1),
    "up-right": (-1, 1),
    "up-left": (-1, -1),
}

CHUNK = 4096  # pictures that are averaged at once


class ClipSplit(Split):
    """Clips made a batch at a time; which picture, place, speed and direction each has, follows from the seed.

    The canvas has no edge: what leaves on one side comes back on the other. So the place of a picture in any one
    frame is as likely for each direction, and a single frame says nothing about the class.

    Args:
        pictures: ``(N, P, P)`` uint8.
        seed: of the clips, with the part's name.
        frames: ``T``.
        canvas: ``S``, at least ``P``.
        directions: 4 or 8.
        fastest: most pixels from frame to frame; at least 1.

    >>> split = ClipSplit(torch.full((3, 2, 2), 255, dtype=torch.uint8), (0, "train"), 4, 8, 4, 1)
    >>> clip = next(split.batches(Order(batch_size=3))).inputs[0]
    >>> tuple(clip.shape), clip.sum((2, 3, 4)).unique().tolist()
    ((3, 4, 1, 8, 8), [4.0])
    """

    sharded = False

    def __init__(
        self, pictures: Tensor, seed: tuple[int, str], frames: int, canvas: int, directions: int, fastest: int
    ) -> None:
        draw = seeds.generator(*seed, "clips")
        samples = len(pictures)
        self.pictures, self.frames, self.canvas = pictures, frames, canvas
        self.classes = torch.randperm(samples, generator=draw) % directions  # as many of each as possible
        self.places = torch.randint(canvas, (samples, 2), generator=draw)
        self.speeds = torch.randint(1, fastest + 1, (samples,), generator=draw)
        self.steps_yx = torch.tensor(list(DIRECTIONS.values())[:directions])

    def __len__(self) -> int:
        return len(self.pictures)

    def batches(self, order: Order) -> Iterator[Batch]:
        """Global batches, inputs ``(B, T, 1, S, S)`` in 0..1, targets ``(B,)``."""
        for rows in torch.split(order.indices(len(self)), order.batch_size)[order.start :]:
            yield Batch((self.clips(rows),), self.classes[rows], 0, len(rows))

    def clips(self, rows: Tensor) -> Tensor:
        """The clips at ``rows``, ``(B, T, 1, S, S)`` float32."""
        pictures = self.pictures[rows].float() / 255
        canvas = F.pad(pictures, (0, self.canvas - pictures.shape[2], 0, self.canvas - pictures.shape[1]))
        moved = self.steps_yx[self.classes[rows]] * self.speeds[rows, None]
        place = self.places[rows][:, None] + moved[:, None] * torch.arange(self.frames)[None, :, None]  # (B, T, 2)
        yx = (torch.arange(self.canvas) - place[..., None]) % self.canvas  # (B, T, 2, S)
        which = torch.arange(len(rows))[:, None, None, None]
        return canvas[which, yx[:, :, 0, :, None], yx[:, :, 1, None, :]].unsqueeze(2)


@checked
class MovingImages(Source):
    """Clips ``(T, 1, S, S)`` in 0..1, in each of which a picture of an IDX file moves; the class is the direction.

    A single frame says nothing about the class. Clips are made when they are needed, from a seed of their own.
    """

    folder: FilePath
    """Where the IDX files of the pictures are, with or without ``.gz``."""
    train_images: str = "train-images-idx3-ubyte"
    """Name in that folder, without ``.gz``."""
    test_images: str | None = "t10k-images-idx3-ubyte"
    """Name in that folder, without ``.gz``; null if there is no test part."""
    frames: Annotated[int, Ge(2)] = 8
    """Frames of a clip."""
    canvas: Annotated[int, Ge(4)] = 32
    """Height and width of a frame in pixels."""
    shrink: Annotated[int, Ge(1)] = 2
    """Pictures are averaged down by this factor first."""
    directions: Literal[4, 8] = 8
    """Number of classes."""
    fastest: Annotated[int, Ge(1)] = 2
    """Most pixels from frame to frame; each clip has a speed from 1 to this."""
    validation: Fraction = 1 / 12
    """Part of the training pictures held out."""
    limit: Annotated[int, Ge(1)] | None = None
    """Use only so many pictures of each file, the first ones; null takes all."""
    split_seed: Seed = 0
    """Seed of the split and of the clips; not that of the run."""

    def __post_init__(self) -> None:
        if 2 * self.fastest >= self.canvas:
            raise RecipeError(
                f"got {self.fastest}; half a canvas at once looks the same in both directions",
                path="fastest",
                mend=f"use at most {(self.canvas - 1) // 2}",
            )

    def open(self) -> Dataset:
        """Read the pictures and divide them; the clips are made later."""
        folder = existing_file(self.folder, where="data.folder")
        raw = {"train": self._pictures(folder, self.train_images)}
        if self.test_images is not None:
            raw["test"] = self._pictures(folder, self.test_images)
        indices = divide(len(raw["train"]), self.validation, 0.0, self.split_seed)
        parts = {part: raw["train"][index] for part, index in indices.items()}
        parts |= {part: pictures for part, pictures in raw.items() if part == "test"}
        how = (self.frames, self.canvas, self.directions, self.fastest)
        return Dataset(
            facts=DataFacts(
                task="classification",
                inputs=(((self.frames, 1, self.canvas, self.canvas), torch.float32),),
                classes=tuple(DIRECTIONS)[: self.directions],
            ),
            splits={part: ClipSplit(x, (self.split_seed, part), *how) for part, x in parts.items()},
            fingerprint=fingerprint([*(x.numpy() for x in raw.values()), f"{how} {self.split_seed}"]),
            indices=indices if len(indices) > 1 else {},
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> Split:
        """Clips of the pictures in another IDX file; their classes are known, since the clips are made here."""
        how = (self.frames, self.canvas, self.directions, self.fastest)
        return ClipSplit(self._small(read_idx(path, axes=3), path), (self.split_seed, path.name), *how)

    def _pictures(self, folder: Path, name: str) -> Tensor:
        path = plain_or_gz(folder, name)
        return self._small(read_idx(path, axes=3)[: self.limit], path)

    def _small(self, images: Any, path: Path) -> Tensor:
        """``(N, P, P)`` uint8."""
        pictures = torch.from_numpy(images)
        if self.shrink > 1:
            pictures = torch.cat(
                [F.avg_pool2d(x.float(), self.shrink).round().byte() for x in torch.split(pictures, 4096)]
            )
        if max(pictures.shape[1:]) > self.canvas:
            raise DataError(
                f"{path}: pictures of {tuple(pictures.shape[1:])} pixels do not fit on a canvas of {self.canvas}; "
                "make data.canvas or data.shrink larger"
            )
        return pictures
