"""Two questions on Fashion-MNIST: is pretraining without labels worth it, and how should a net be adapted?

One thread of a CPU; needs KINGPOST_DATA/fashion_mnist. ``python benchmarks/transfer.py pretraining|adaptation``
prints a line a run and, at the end, n, mean and spread of the test accuracy.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from typing import Any

import torch

import kingpost as kp
from kingpost.data.images import Idx

SEEDS = (0, 1, 2)
QUIET: dict[str, Any] = {"report": False, "evaluate_every_epochs": 1000}
LAYOUT = {"name": "data-parallel", "threads": 1, "device": "cpu"}


def pretraining(root: str) -> dict[str, list[float]]:
    """600 labels, with and without 200 steps on all pictures without labels before."""
    base = kp.Recipe.load("recipes/pretrain-fashion.yaml").patched("save.report=false")
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        for name, task in (("simclr", "simclr"), ("vicreg", "vicreg")):
            first, second = base.stages
            staged = base.with_(stages=({**first, "task": task}, second), seed=seed, name=f"{name}-{seed}")
            note(found, name, kp.train(staged, root=root, quiet=True))
        alone = (
            base.with_(stages=()).patched(*({k: v} for k, v in base.stages[1].items())).with_(seed=seed, name="none")
        )
        note(found, "no pretraining", kp.train(alone, root=root, quiet=True))
    return found


def halves(samples: int | None, classes: tuple[int, ...], seed: int) -> kp.Recipe:
    """A perceptron on some of the classes, and some of the samples."""
    data = Idx(folder="fashion_mnist").open()
    parts = {}
    for part in ("train", "validation", "test"):
        split = data.splits[part]
        x, y = split.inputs[0], split.targets  # type: ignore[attr-defined]
        kept = torch.isin(y, torch.tensor(classes)).nonzero()[:, 0]
        if part == "train" and samples is not None:
            kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:samples]]
        parts[part] = (x[kept], y[kept] - min(classes))
    names = [str(c) for c in classes]
    train, validation, test = (parts[p] for p in ("train", "validation", "test"))
    source = kp.Arrays(inputs=train[0], targets=train[1], validation=validation, test=test, classes=names)
    return kp.Recipe(
        name="half", data=source, model=kp.MLP(widths=(256, 256)), optimizer=kp.AdamW(lr=1e-3), layout=LAYOUT,
        schedule="cosine", batch_size=128, budget={"epochs": 3}, save=QUIET, seed=seed,
    )  # fmt: skip


def adaptation(root: str) -> dict[str, list[float]]:
    """Five classes are learned from 27,500 pictures; the other five from 100."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        parent = kp.train(halves(None, (0, 1, 2, 3, 4), seed), root=root, quiet=True)
        small = halves(100, (5, 6, 7, 8, 9), seed).with_(budget=kp.Budget(steps=200), batch_size=32)
        start = {"name": "weights-file", "run": str(parent.folder)}
        ways: dict[str, Any] = {
            "from nothing": small,
            "full fine-tuning": small.patched({"initialise": start}),
            "linear-probe": small.patched({"initialise": start, "techniques+": "linear-probe"}),
            "lora": small.patched({"initialise": start, "techniques+": {"name": "lora", "rank": 8}}),
            "gradual-unfreezing": small.patched({"initialise": start, "techniques+": "gradual-unfreezing"}),
        }
        for name, recipe in ways.items():
            note(found, name, kp.train(recipe, root=root, quiet=True))
    return found


def note(found: dict[str, list[float]], name: str, run: kp.Run) -> None:
    """Remember a run's test accuracy, and print it."""
    found.setdefault(name, []).append(run.summary["test"]["accuracy"])
    print(f"{name:<20} {found[name][-1]:.4f}  {run.summary['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = {"pretraining": pretraining, "adaptation": adaptation}[sys.argv[1]](folder)
    for name, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name:<20} n = {len(values)}, mean {statistics.mean(values):.4f}, standard deviation {spread:.4f}")
    print(f"{time.monotonic() - started:.0f} s on one thread, torch {torch.__version__}")
