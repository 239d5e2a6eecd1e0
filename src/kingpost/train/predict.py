"""Use a trained run: its model, and its predictions on old and new samples."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kingpost.assembly import Layout
from kingpost.errors import DataError, RunError, nearest
from kingpost.files import write_text
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import Dataset, Split
from kingpost.task import Task
from kingpost.train import checkpoint
from kingpost.train.assemble import assemble
from kingpost.train.evaluate import evaluate, in_own_unit, outputs
from kingpost.train.parallel import DataParallel


@dataclass(frozen=True)
class Predictions:
    """What a model says about samples.

    Args:
        values: probabilities ``(N, C)``, labels' probabilities ``(N, L)`` or values ``(N, D)`` in the target's unit;
            for a language model the mean loss of each sequence in nats per token, ``(N, 1)``.
        classes: names of the columns, empty for regression.
        task: name of the task.
        metrics: loss and metrics, if the targets are known.
    """

    values: Tensor
    classes: tuple[str, ...]
    task: str
    metrics: Mapping[str, float]

    def to_csv(self) -> str:
        """One line a sample; a class is given by name, with the probability of each."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self._header())
        for index, row in enumerate(self.values.tolist()):
            named = [self.classes[max(range(len(row)), key=row.__getitem__)]] if self.task == "classification" else []
            writer.writerow([index, *named, *(f"{value:.6g}" for value in row)])
        return out.getvalue()

    def save_to(self, path: Path) -> None:
        """Write the CSV, whole or not at all."""
        write_text(path, self.to_csv())

    def _header(self) -> list[str]:
        if self.task == "classification":
            return ["index", "predicted", *(f"probability_{name}" for name in self.classes)]
        if self.task == "multi-label":
            return ["index", *(f"probability_{name}" for name in self.classes)]
        if self.task == "language-modelling":
            return ["index", "nats_per_token"]
        return ["index", *(f"value_{column}" for column in range(self.values.shape[1]))]


def load_model(
    run: Run, which: Literal["best", "last"] = "best", device: str = "auto", recipe: Recipe | None = None
) -> nn.Module:
    """The trained network of a run, in eval mode: plain PyTorch from here on.

    Args:
        run: the run.
        which: weights of the best or the last epoch.
        device: where the network goes.
        recipe: the one that was trained, for a run with objects that its file cannot hold; its module is filled.

    Raises:
        RunError: no weights yet, or the model was an object that no file can hold.
    """
    return _restored(run, recipe or run.recipe, which, device)[0]


def predict(
    run: Run | Path | str,
    part: str = "test",
    inputs: Path | str | None = None,
    which: Literal["best", "last"] = "best",
    batch_size: int | None = None,
    device: str = "auto",
    recipe: Recipe | None = None,
) -> Predictions:
    """Predictions on a part of the run's data, or on new samples from a file, prepared as in training.

    Args:
        run: the run, its folder or its name.
        part: ``test``, ``validation`` or ``train``; not used with ``inputs``.
        inputs: a file in the form of the run's data.
        which: weights of the best or the last epoch.
        batch_size: samples at once; null takes four times that of training.
        device: where to compute.
        recipe: the one that was trained, for a run with objects that its file cannot hold.

    Raises:
        RunError: no such run or weights.
        DataError: no such part, or the file does not fit.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    recipe = recipe or run.recipe
    model, dataset, task, where = _restored(run, recipe, which, device)
    split: Split
    if inputs is not None:
        split = recipe.data.read(Path(inputs), dataset.fitted, dataset.facts)
    elif part in dataset.splits:
        split = dataset.splits[part]
    else:
        raise DataError(f"the data has no part '{part}'; {nearest(part, dataset.splits)}")
    size = batch_size or 4 * recipe.batch_size
    values = torch.cat(
        [_values(raw, batch.targets, task, dataset) for raw, batch in outputs(model, split, size, where, Layout())]
    )
    known = inputs is None
    metrics = evaluate(model, split, task, dataset.facts, dataset.fitted, size, where) if known else {}
    return Predictions(values, dataset.facts.classes, task.name, metrics)


def _values(raw: Tensor, targets: Tensor, task: Task, dataset: Dataset) -> Tensor:
    if task.name == "language-modelling":
        pairs = zip(torch.split(raw, 1), torch.split(targets, 1), strict=True)
        return torch.stack([task.criterion(o, t) / max(1, task.items(t)) for o, t in pairs])[:, None].cpu()
    values, _ = in_own_unit(task.predictions(raw), targets, dataset.fitted)
    return (values[:, None] if values.ndim == 1 else values).cpu()


def _restored(
    run: Run, recipe: Recipe, which: Literal["best", "last"], device: str
) -> tuple[nn.Module, Dataset, Task, torch.device]:
    where = DataParallel(device=device).torch_device(0)
    path = run.weights(which)
    dataset = recipe.data.open()
    if dataset.fingerprint != run.data.get("fingerprint_sha256", dataset.fingerprint):
        raise RunError(f"the data of run '{run.name}' has changed since it was trained")
    assembly = assemble(recipe, dataset, where)
    checkpoint.load_weights(path, assembly.model)
    return assembly.model.eval(), dataset, assembly.setting.task, where
