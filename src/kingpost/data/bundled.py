"""Data sets that come with scikit-learn, so that everything can be tried without a download."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt

from kingpost.data import scaling
from kingpost.data.parts import Fraction, Seed, divide
from kingpost.data.tensors import TensorSplit
from kingpost.errors import MissingExtraError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Source, fingerprint


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
        loaded = _load("load_digits")
        images = (loaded.images / 16).astype(np.float32)[:, None]
        labels = loaded.target.astype(np.int64)
        indices = divide(len(labels), self.validation, self.test, self.split_seed, labels)
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


@checked
class Bundled(Source):
    """One of scikit-learn's small tables, standardised on the training part; ``diabetes`` in its target too.

    Source: Fisher 1936 (iris); UCI wine and breast cancer Wisconsin; Efron et al., "Least angle regression",
    2004 (diabetes).
    """

    which: Literal["iris", "wine", "breast-cancer", "diabetes"]
    """150 x 4, 178 x 13 and 569 x 30 for classes; 442 x 10 for a value."""
    validation: Fraction = 0.1
    """Part held out for validation, the same of each class."""
    test: Fraction = 0.2
    """Part held out for the test, the same of each class."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""

    def open(self) -> Dataset:
        """Read the table, divide and scale it."""
        loaded = _load("load_" + self.which.replace("-", "_"))
        columns, raw = torch.from_numpy(loaded.data), loaded.target
        regression = self.which == "diabetes"
        groups = None if regression else raw.astype(np.int64)
        indices = divide(len(raw), self.validation, self.test, self.split_seed, groups)
        fitted: dict[str, Any] = {"inputs": [scaling.fit(columns[indices["train"]])]}
        targets = torch.from_numpy(raw if groups is None else groups)
        if regression:
            fitted["target"] = scaling.fit(targets[indices["train"]])
            targets = scaling.apply(targets, fitted["target"])
        whole = TensorSplit((scaling.apply(columns, fitted["inputs"][0]),), targets)
        return Dataset(
            facts=DataFacts(
                task="regression" if regression else "classification",
                inputs=(((columns.shape[1],), torch.float32),),
                classes=() if regression else tuple(map(str, loaded.target_names)),
                features=tuple(map(str, loaded.feature_names)),
                scales=tuple(zip(*fitted["inputs"][0].values(), strict=True)),
            ),
            splits={part: whole.subset(index) for part, index in indices.items()},
            fingerprint=fingerprint([loaded.data, raw]),
            fitted=fitted,
            indices=indices,
        )


def _load(loader: str) -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="data", purpose="bundled data") from error
    return getattr(datasets, loader)()
