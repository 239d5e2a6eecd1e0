"""Recordings as spectrograms: short stretches of sound, each as the strengths of its frequencies.

Legend of shapes: ``N`` recordings, ``T`` frames, ``F`` frequency bands, ``K`` = window / 2 + 1 frequencies.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from kingpost.data import scaling
from kingpost.data.arrays import load_npz
from kingpost.data.parts import FilePath, Fraction, Names, Seed, divide
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError, RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Source, existing_file, fingerprint

FLOOR = 1e-10  # power below which sound is silence: -100 dB beside a full sine


def mel_filters(bands: int, frequencies: int, sample_rate: float) -> Tensor:
    """Triangles that overlap by half, evenly spaced on the mel scale ``2595 log10(1 + f / 700)``; ``(F, K)``.

    Source: Davis and Mermelstein, "Comparison of parametric representations for monosyllabic word recognition",
    1980; the formula as in O'Shaughnessy, "Speech Communication", 1987.

    Args:
        bands: ``F``.
        frequencies: ``K``, evenly spaced from 0 to half the sample rate.
        sample_rate: in hertz.

    >>> filters = mel_filters(4, 65, 8000)
    >>> filters.shape, float(filters.max()) <= 1
    (torch.Size([4, 65]), True)
    """
    hertz = torch.linspace(0, sample_rate / 2, frequencies, dtype=torch.float64)
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()


def spectrogram(sound: Tensor, window: int, hop: int, filters: Tensor | None) -> Tensor:
    """Logarithm of the power in each band, ``(T, F)``; frames lie whole inside the sound.

    Args:
        sound: ``(samples,)`` in -1..1; shorter than a window is filled up with silence.
        window: samples of a frame, under a Hann window.
        hop: samples from frame to frame.
        filters: from :func:`mel_filters`, or None for all ``K`` frequencies.
    """
    if len(sound) < window:
        sound = torch.nn.functional.pad(sound, (0, window - len(sound)))
    hann = torch.hann_window(window, dtype=sound.dtype)
    spectrum = torch.stft(sound, window, hop, window=hann, center=False, return_complex=True)
    power = spectrum.abs().square() / hann.sum() ** 2 * 4  # a full sine has power 1 at its frequency
    bands = power if filters is None else filters.to(power.dtype) @ power
    return bands.clamp(min=FLOOR).log().T.contiguous()


@checked
class AudioNpz(Source):
    """Recordings of one channel in ``.npz`` files, classified; inputs ``(T, F)``, a logarithmic spectrogram.

    The file holds all recordings end to end; recording ``i`` is ``audio[offsets[i]:offsets[i + 1]]``. Each band is
    standardised by the training part; frames after the end of a recording are 0.
    """

    train: FilePath
    """File to train on."""
    validation: FilePath | None = None
    """File; null holds out ``validation_fraction`` of the training recordings."""
    test: FilePath | None = None
    """File; null if there is no test part."""
    validation_fraction: Fraction = 0.1
    """Part of the training recordings held out (the same of each class) if there is no validation file."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""
    audio: str = "audio"
    """Key of the samples, ``(all,)``; int16, or floating point in -1..1."""
    offsets: str = "offsets"
    """Key of where each recording begins, and the end of the last, ``(N + 1,)``."""
    label: str = "label"
    """Key of the classes, whole numbers from 0, ``(N,)``."""
    classes: Names = ()
    """Names of the classes; by default their numbers."""
    sample_rate: Annotated[float, Gt(0)] = 8000.0
    """Samples a second; where the file has a ``sample_rate``, it must be the same."""
    window: Annotated[int, Ge(2), Le(65536)] = 256
    """Samples of a frame."""
    hop: Annotated[int, Ge(1)] = 128
    """Samples from frame to frame."""
    bands: Annotated[int, Ge(1), Le(1024)] | None = 40
    """Frequency bands, evenly spaced on the mel scale; null keeps all ``window / 2 + 1`` frequencies."""
    frames: Annotated[int, Ge(1)] | None = None
    """Frames of a sample; longer recordings are cut, and counted in ``fitted["cut"]``. Null: those of the longest
    recording of the training part."""

    def __post_init__(self) -> None:
        if self.bands is not None:
            empty = (mel_filters(self.bands, self.window // 2 + 1, self.sample_rate).sum(1) == 0).sum()
            if empty:
                raise RecipeError(
                    f"{int(empty)} of {self.bands} bands are narrower than the spacing of the frequencies",
                    path="bands",
                    mend="use fewer bands, or a longer window",
                )

    def open(self) -> Dataset:
        """Read the recordings, turn them into spectrograms, divide, and scale by the training part."""
        files = {part: path for part in ("train", "validation", "test") if (path := getattr(self, part)) is not None}
        given = {part: self._recordings(existing_file(path, where=f"data.{part}")) for part, path in files.items()}
        labels = given["train"][1]
        held = 0.0 if "validation" in given else self.validation_fraction
        indices = divide(len(labels), held, 0.0, self.split_seed, labels.numpy())
        parts = {part: ([given["train"][0][i] for i in at], labels[at]) for part, at in indices.items()}
        parts |= {part: pair for part, pair in given.items() if part != "train"}
        classes = self.classes or tuple(map(str, range(max(int(y.max()) for _, y in parts.values()) + 1)))
        for part, (_, y) in parts.items():
            if int(y.min()) < 0 or int(y.max()) >= len(classes):
                raise DataError(f"{part}: labels lie in {int(y.min())}..{int(y.max())}, expected 0..{len(classes) - 1}")
        spectra = {part: [self._spectrum(sound) for sound in sounds] for part, (sounds, _) in parts.items()}
        length = self.frames or max(len(one) for one in spectra["train"])
        scale = scaling.fit(torch.cat([one[:length] for one in spectra["train"]]))
        return Dataset(
            facts=DataFacts(
                task="classification", inputs=(((length, len(scale["mean"])), torch.float32),), classes=classes
            ),
            splits={
                part: TensorSplit((_filled_up(spectra[part], length, scale),), y) for part, (_, y) in parts.items()
            },
            fingerprint=fingerprint(x.numpy() for sounds, y in given.values() for x in (*sounds, y)),
            fitted={
                "inputs": [scale],
                "frames": length,
                "cut": {part: sum(len(one) > length for one in several) for part, several in spectra.items()},
            },
            indices=indices if len(indices) > 1 else {},
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> TensorSplit:
        """The recordings of another such file; labels may be absent."""
        arrays = load_npz(path)
        sounds, labels = self._recordings(path, labelled=self.label in arrays)
        inputs = _filled_up([self._spectrum(sound) for sound in sounds], fitted["frames"], fitted["inputs"][0])
        return TensorSplit((inputs,), labels, labelled=self.label in arrays)

    def _spectrum(self, sound: Tensor) -> Tensor:
        filters = None if self.bands is None else mel_filters(self.bands, self.window // 2 + 1, self.sample_rate)
        return spectrogram(sound, self.window, self.hop, filters)

    def _recordings(self, path: Path, labelled: bool = True) -> tuple[list[Tensor], Tensor]:
        """Each recording, float32 in -1..1, and the labels (zeros if there are none)."""
        arrays = load_npz(path)
        for key in (self.audio, self.offsets, *([self.label] if labelled else [])):
            if key not in arrays:
                raise DataError(f"{path}: no array '{key}'; it holds: {', '.join(sorted(arrays))}")
        rate = arrays.get("sample_rate")
        if rate is not None and not np.all(rate == self.sample_rate):
            raise DataError(f"{path}: {float(np.ravel(rate)[0]):g} samples a second, data.sample_rate says "
                            f"{self.sample_rate:g}; set it to that of the file")  # fmt: skip
        audio, offsets = arrays[self.audio], arrays[self.offsets].astype(np.int64)
        if audio.ndim != 1 or audio.dtype.kind not in "if" or offsets.ndim != 1 or len(offsets) < 2:
            raise DataError(f"{path}: expected '{self.audio}' (all,) of int16 or floats, '{self.offsets}' (N + 1,)")
        if offsets[0] < 0 or offsets[-1] > len(audio) or (np.diff(offsets) <= 0).any():
            raise DataError(f"{path}: '{self.offsets}' must rise from 0 to {len(audio)}, the number of samples")
        scale = float(-np.iinfo(audio.dtype).min) if audio.dtype.kind == "i" else 1.0
        sound = torch.from_numpy(audio.astype(np.float32) / np.float32(scale))
        labels = np.asarray(arrays[self.label]) if labelled else np.zeros(len(offsets) - 1, dtype=np.int64)
        if labels.dtype.kind not in "iu" or labels.shape != (len(offsets) - 1,):
            raise DataError(f"{path}: '{self.label}' has shape {labels.shape} and dtype {labels.dtype}; expected whole "
                            f"numbers ({len(offsets) - 1},)")  # fmt: skip
        recordings = [sound[a:b] for a, b in itertools.pairwise(offsets.tolist())]
        return recordings, torch.from_numpy(labels.astype(np.int64))


def _filled_up(spectra: Sequence[Tensor], length: int, scale: Mapping[str, Sequence[float]]) -> Tensor:
    """``(N, T, F)``: standardised, cut to ``length`` frames or filled up with 0, the mean."""
    rows = torch.zeros(len(spectra), length, len(scale["mean"]))
    for row, one in zip(rows, spectra, strict=True):
        row[: len(one)] = scaling.apply(one[:length], scale)
    return rows
