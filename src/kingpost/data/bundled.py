"""Data sets that come with scikit-learn, so that everything can be tried without a download."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt

from kingpost.data.tensors import TensorSplit
from kingpost.errors import MissingExtraError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Source, fingerprint, held_out


@checked
class Digits(Source):
    """1,797 handwritten digits of 8 x 8 pixels; inputs ``(1, 8, 8)`` float32 in 0..1, targets 0..9.

    Source: UCI ML hand-written digits, Alpaydin and Kaynak 1998, as bundled with scikit-learn.
    """

    validation: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Part held out for validation, the same of each class."""
    test: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Part held out for the test, the same of each class."""
    split_seed: Annotated[int, Ge(0)] = 0
    """Seed of the split; not that of the run, so that runs share their test samples."""

    def open(self) -> Dataset:
        """Read the images and divide them."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise MissingExtraError("scikit-learn", extra="data", purpose="the digits data") from error
        loaded = load_digits()
        images = (loaded.images / 16).astype(np.float32)[:, None]
        labels = loaded.target.astype(np.int64)
        rest, test = held_out(len(labels), self.test, self.split_seed, labels)
        kept, out = held_out(len(rest), self.validation / (1 - self.test), self.split_seed + 1, labels[rest])
        indices = {"train": rest[kept], "validation": rest[out], "test": test}
        whole = TensorSplit((torch.from_numpy(images),), torch.from_numpy(labels))
        return Dataset(
            facts=DataFacts(
                task="classification",
                inputs=(((1, 8, 8), torch.float32),),
                classes=tuple(str(digit) for digit in range(10)),
            ),
            splits={part: whole.subset(index) for part, index in indices.items()},
            fingerprint=fingerprint([images, labels]),
            indices=indices,
        )
