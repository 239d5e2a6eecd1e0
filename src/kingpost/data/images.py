"""Images: IDX files held in memory, and folders of image files, held or streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.data import Dataset as MapDataset

from kingpost.data import scaling
from kingpost.data.facts import class_numbers
from kingpost.data.idx import read_idx
from kingpost.data.parts import FilePath, Fraction, Names, Seed, divide
from kingpost.data.stream import StreamSplit
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError, MissingExtraError, RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Source, Split, existing_file, fingerprint

MEMORY_BYTES = 2**30  # image folders up to 1 GiB as float32 are held in memory unless the recipe says otherwise
SAMPLE = 2000  # images from which a folder's mean and deviation are taken
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@checked
class Idx(Source):
    """Grey images in IDX files, as of MNIST; inputs ``(1, H, W)``, standardised on the training part.

    Source: LeCun, Cortes and Burges (format); Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017.
    """

    folder: FilePath
    """Where the files are, with or without ``.gz``."""
    train_images: str = "train-images-idx3-ubyte"
    """Name in that folder, without ``.gz``."""
    train_labels: str = "train-labels-idx1-ubyte"
    """Name in that folder, without ``.gz``."""
    test_images: str | None = "t10k-images-idx3-ubyte"
    """Name in that folder, without ``.gz``; null if there is no test part."""
    test_labels: str | None = "t10k-labels-idx1-ubyte"
    """Name in that folder, without ``.gz``; null if there is no test part."""
    validation: Fraction = 1 / 12
    """Part of the training images held out, the same of each class; 1/12 is 5,000 of 60,000."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""
    classes: Names = ()
    """Names of the classes; by default their numbers."""
    checksums: dict[str, str] = field(default_factory=dict)
    """File name -> ``sha256:...`` or ``md5:...``, checked before a file is used."""

    def __post_init__(self) -> None:
        if (self.test_images is None) != (self.test_labels is None):
            raise RecipeError(
                "test_images and test_labels belong together", path="test_images", mend="give both or neither"
            )

    def open(self) -> Dataset:
        """Read the files and check them; divide, and scale by the training part."""
        folder = existing_file(self.folder, where="data.folder")
        raw = {"train": self._pair(folder, self.train_images, self.train_labels)}
        if self.test_images is not None and self.test_labels is not None:
            raw["test"] = self._pair(folder, self.test_images, self.test_labels)
        images, labels = raw["train"]
        indices = divide(len(labels), self.validation, 0.0, self.split_seed, labels.numpy())
        samples = {part: (images[index], labels[index]) for part, index in indices.items()}
        samples.update({part: pair for part, pair in raw.items() if part == "test"})
        fitted = {"inputs": [scaling.fit(samples["train"][0])]}
        classes = self.classes or class_numbers(part for _, part in raw.values())
        if (greatest := max(int(part.max()) for _, part in raw.values())) >= len(classes):
            raise DataError(f"{folder}: label {greatest}, but only {len(classes)} classes are named in data.classes")
        return Dataset(
            facts=DataFacts(task="classification", inputs=((tuple(images.shape[1:]), torch.float32),), classes=classes),
            splits={part: TensorSplit((scaling.apply(x, fitted["inputs"][0]),), y) for part, (x, y) in samples.items()},
            fingerprint=fingerprint(tensor.numpy() for pair in raw.values() for tensor in pair),
            fitted=fitted,
            indices=indices if len(indices) > 1 else {},
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> Split:
        """The images of another IDX file; there are no labels, so targets are 0."""
        images = torch.from_numpy(read_idx(path, axes=3))[:, None]
        if tuple(images.shape[1:]) != facts.inputs[0][0]:
            raise DataError(f"{path}: images {tuple(images.shape[1:])}, the model was trained on {facts.inputs[0][0]}")
        inputs = (scaling.apply(images, fitted["inputs"][0]),)
        return TensorSplit(inputs, torch.zeros(len(images), dtype=torch.int64), labelled=False)

    def _pair(self, folder: Path, images: str, labels: str) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(read_idx(plain_or_gz(folder, images), 3, self.checksums))[:, None]
        y = torch.from_numpy(read_idx(plain_or_gz(folder, labels), 1, self.checksums)).long()
        if len(x) != len(y):
            raise DataError(f"{folder}: {len(x)} images in '{images}', but {len(y)} labels in '{labels}'")
        return x, y


def plain_or_gz(folder: Path, name: str) -> Path:
    """The file of that name in a folder, or the one that also ends in ``.gz``.

    Raises:
        DataError: neither is there.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder}: neither '{name}' nor '{name}.gz' is there; name the files in data.train_images etc.")


@checked
class ImageFolder(Source):
    """A sub-folder for each class; inputs ``(C, size, size)`` float32, standardised on the training part.

    With sub-folders ``train`` (and ``validation``, ``test``) those are the parts, the classes below them.
    Mean and deviation are taken from at most 2,000 evenly spaced training images.
    """

    folder: FilePath
    """The folder of folders."""
    size: Annotated[int, Ge(1)] = 64
    """Height and width in pixels: the middle is cut out as a square, then resized."""
    colour: Literal["rgb", "grey"] = "rgb"
    """Three channels or one."""
    validation: Fraction = 0.1
    """Part held out of the training images (the same of each class) if there is no folder ``validation``."""
    test: Fraction = 0.0
    """Part held out of the training images if there is no folder ``test``."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""
    memory: bool | None = None
    """Hold all images in memory; null does so up to 1 GiB, and streams from the disk beyond."""
    workers: Annotated[int, Ge(0)] = 0
    """Processes that load images while streaming; batches do not depend on it."""

    def open(self) -> Dataset:
        """List the files, divide them, and load them or prepare to."""
        root = existing_file(self.folder, where="data.folder")
        folders = {part: root / part for part in ("train", "validation", "test") if (root / part).is_dir()}
        folders = folders if "train" in folders else {"train": root}
        classes = sorted(path.name for path in folders["train"].iterdir() if path.is_dir())
        if len(classes) < 2:
            raise DataError(f"{folders['train']}: {len(classes)} sub-folders, expected one for each of several classes")
        listed = {part: _listed(folder, classes) for part, folder in folders.items()}
        paths, labels = listed["train"]
        if empty := [name for label, name in enumerate(classes) if not (labels == label).any()]:
            raise DataError(f"{folders['train']}: class '{empty[0]}' has no images ({', '.join(ENDINGS)})")
        validation, test = (0.0 if part in listed else getattr(self, part) for part in ("validation", "test"))
        indices = divide(len(paths), validation, test, self.split_seed, labels.numpy())
        files = {part: ([paths[i] for i in index.tolist()], labels[index]) for part, index in indices.items()}
        files.update({part: pair for part, pair in listed.items() if part != "train"})
        every = -(-len(files["train"][0]) // SAMPLE)
        sample = torch.stack([load_image(path, self.size, self.colour) for path in files["train"][0][::every]])
        fitted = {"inputs": [scaling.fit(sample)], "scale_every": every}
        every_path = [path for part, _ in listed.values() for path in part]
        return Dataset(
            facts=DataFacts(
                task="classification",
                inputs=((tuple(sample.shape[1:]), torch.float32),),
                classes=tuple(classes),
            ),
            splits={part: self._split(*pair, fitted, len(every_path)) for part, pair in files.items()},
            fingerprint=fingerprint(
                [*(f"{path.relative_to(root)} {path.stat().st_size}" for path in every_path), sample.numpy()]
            ),
            fitted=fitted,
            indices=indices if len(indices) > 1 else {},
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> Split:
        """An image, or all images below a folder in the order of their names; targets are 0."""
        paths = [path] if path.is_file() else _images_below(path)
        if not paths:
            raise DataError(f"{path}: no images ({', '.join(ENDINGS)}) here")
        split = self._split(paths, torch.zeros(len(paths), dtype=torch.int64), fitted, len(paths))
        split.labelled = False
        return split

    def _split(self, paths: Sequence[Path], labels: Tensor, fitted: Mapping[str, Any], images: int) -> Split:
        files = _ImageFiles(paths, labels, self.size, self.colour, fitted["inputs"][0])
        values = self.size * self.size * (3 if self.colour == "rgb" else 1)
        if self.memory is False or (self.memory is None and images * values * 4 > MEMORY_BYTES):
            return StreamSplit(files, self.workers)
        return TensorSplit((torch.stack([files[i][0] for i in range(len(paths))]),), labels)


class _ImageFiles(MapDataset[tuple[Tensor, Tensor]]):
    """Image files as standardised tensors, with their labels."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        size: int,
        colour: str,
        scale: Mapping[str, Sequence[float]],
    ) -> None:
        self.paths, self.labels, self.size, self.colour, self.scale = paths, labels, size, colour, scale

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = load_image(self.paths[index], self.size, self.colour)
        return scaling.apply(image[None], self.scale)[0], self.labels[index]


def load_image(path: Path, size: int, colour: str) -> Tensor:
    """An image file as ``(C, size, size)`` uint8: its middle square, resized.

    Raises:
        DataError: not an image, or a damaged one.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", extra="data", purpose="reading images") from error
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB" if colour == "rgb" else "L")
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: not a readable image ({error}); remove or replace it") from error
    pixels = np.array(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.reshape(size, size, -1)).permute(2, 0, 1).contiguous()


def _listed(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Tensor]:
    """All image files of a part and their labels; classes must be those of the training part."""
    if unknown := sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(classes)):
        raise DataError(f"{folder}: class '{unknown[0]}' is not in the training part ({', '.join(classes)})")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images_below(folder / name) if (folder / name).is_dir() else []
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"{folder}: no images ({', '.join(ENDINGS)}) in its sub-folders")
    return paths, torch.tensor(labels)


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
