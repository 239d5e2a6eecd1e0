"""Toy tasks for the contract suite: tiny, generated, the same everywhere."""

from __future__ import annotations

from typing import Literal

import torch

from kingpost.data.tensors import TensorSplit
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Source

SAMPLES, CLASSES, CONTEXT, VOCABULARY = 36, 3, 6, 11


@checked
class Toy(Source):
    """Images of 8 x 8 pixels in three classes, or sequences of tokens; float64 so that tolerances can be tight."""

    task: Literal["classification", "regression", "multi-label", "language-modelling"] = "classification"
    dtype: Literal["float64", "float32"] = "float64"

    def open(self) -> Dataset:
        draw = torch.Generator().manual_seed(5)
        dtype = getattr(torch, self.dtype)
        if self.task == "language-modelling":
            tokens = torch.randint(0, VOCABULARY, (SAMPLES, CONTEXT + 1), generator=draw)
            whole = TensorSplit((tokens[:, :-1].contiguous(),), tokens[:, 1:].contiguous())
            facts = DataFacts(
                task=self.task,
                inputs=(((CONTEXT,), torch.int64),),
                target_shape=(CONTEXT,),
                vocabulary=VOCABULARY,
            )
        else:
            images = torch.randn(SAMPLES, 1, 8, 8, generator=draw, dtype=torch.float64).to(dtype)
            projected = images.flatten(1) @ torch.randn(64, CLASSES, generator=draw, dtype=torch.float64).to(dtype)
            targets = {
                "classification": projected.argmax(1),
                "regression": projected / 8,
                "multi-label": (projected > 0).to(dtype),
            }[self.task]
            whole = TensorSplit((images,), targets)
            facts = DataFacts(
                task=self.task,
                inputs=(((1, 8, 8), dtype),),
                target_shape=tuple(targets.shape[1:]),
                classes=() if self.task == "regression" else tuple("abc"),
            )
        parts = {"train": torch.arange(24), "validation": torch.arange(24, SAMPLES)}
        return Dataset(
            facts=facts,
            splits={part: whole.subset(index) for part, index in parts.items()},
            fingerprint="toy",
            indices=parts,
        )
