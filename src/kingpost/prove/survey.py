"""What is known of an arm before its first run: its size, its cost, its metrics, and what it starts from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kingpost.errors import DataError, RecipeError, nearest
from kingpost.recipe import Recipe
from kingpost.source import Dataset, Order
from kingpost.task import Task
from kingpost.train.assemble import assemble, task_of
from kingpost.train.parallel import process_group
from kingpost.train.planning import plan

SHARES = ("accuracy", "f1", "average_precision", "auroc", "auc", "r2", "score", "precision", "recall")
MORE_IS_BETTER = (*SHARES, "bleu", "samples_per_second", "throughput")
LESS_IS_BETTER = ("loss", "error", "seconds", "memory", "perplexity", "nats", "bits", "rmse", "mae", "mse")
SHARE_STEP, LOSS_STEP = 0.005, 0.01  # the smallest effects that matter unless somebody says otherwise
TRAINING_COLUMNS = ("learning_rate", "seconds", "samples_per_second", "peak_memory_mebibytes")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a plan and a look at the starting weights say about one arm."""

    parameters: int
    flops_per_step: float
    memory_bytes: int
    samples: int
    steps_per_epoch: int
    total_steps: int
    step_seconds: float | None
    metric: str
    higher_is_better: bool
    columns: tuple[str, ...]
    chance_loss: float | None
    validation: str
    """Digest of which samples are judged, and their targets."""
    weights: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Number of elements and digest of each starting parameter, by name."""


def survey(recipe: Recipe, measure: bool = True) -> Survey:
    """Plan a recipe, time a few of its steps, and look at its validation part and its starting weights.

    Raises:
        RecipeError: the recipe cannot be used, or cannot be made again for each seed.
        DataError: the data has no validation part.
    """
    if problems := recipe.not_reproducible:
        raise RecipeError(
            "is an object, and every seed needs a new one", path=problems[0], mend="use kp.call(...) on what makes it"
        )
    first = (recipe.staged() or [recipe])[0]
    made = plan(first, measure=measure)
    with process_group(first.layout) as device:
        dataset = first.data.open()
        if "validation" not in dataset.splits:
            raise DataError("a trial is judged on the validation part, and the data has none; hold one out")
        task = task_of(first, dataset)
        model = assemble(first, dataset, device).model
    figures = {figure.name: figure.value for figure in made.figures}
    steps = figures.get("steps", figures["steps per epoch"])
    return Survey(
        parameters=int(figures["parameters"]),
        flops_per_step=float(figures["compute per step"]),
        memory_bytes=int(figures["memory"]),
        samples=int(figures["training samples"]),
        steps_per_epoch=int(figures["steps per epoch"]),
        total_steps=int(steps),
        step_seconds=float(figures["time per step"]) if measure else None,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        columns=_columns(task, dataset),
        chance_loss=task.chance_loss(dataset.facts),
        validation=_judged(dataset),
        weights={name: (p.numel(), _digest(p)) for name, p in model.named_parameters()},
    )


def same_weights(baseline: Survey, arm: Survey) -> float:
    """The part of the arm's starting weights that the baseline has under the same name, to the bit."""
    total = sum(count for count, _ in arm.weights.values())
    shared = sum(
        count for name, (count, digest) in arm.weights.items() if baseline.weights.get(name) == (count, digest)
    )
    return shared / total if total else 1.0


def column_of(metric: str | None, known: Survey) -> str:
    """The column of ``results.csv`` that a metric's name means; None means the task's own.

    Raises:
        RecipeError: there is no such column.
    """
    wanted = metric or known.metric
    for name in (wanted, f"validation_{wanted}"):
        if name in known.columns:
            return name
    if wanted == "loss":
        return next(name for name in known.columns if name.startswith("validation_loss"))
    shown = [name.removeprefix("validation_") for name in known.columns]
    raise RecipeError(f"unknown metric '{wanted}'", path="metric", mend=nearest(wanted, shown))


def direction_of(column: str, given: str | None, known: Survey | None = None) -> bool:
    """Whether more is better.

    Raises:
        RecipeError: nobody knows.
    """
    if given is not None:
        return given == "max"
    name = column.removeprefix("validation_").lower()
    if known is not None and name == known.metric:
        return known.higher_is_better
    for better, words in ((True, MORE_IS_BETTER), (False, LESS_IS_BETTER)):
        if any(word in name for word in words):
            return better
    raise RecipeError(f"it is not known whether more of '{name}' is better", path="direction", mend="say max or min")


def smallest_of(column: str, given: float | None, known: Survey | None = None) -> tuple[float, str]:
    """The smallest effect that matters, and why.

    Raises:
        RecipeError: it was not given, and there is no default for this metric.
    """
    name = column.removeprefix("validation_").lower()
    if given is not None:
        return given, "as given"
    if any(word in name for word in SHARES) and "loss" not in name:
        return SHARE_STEP, f"the default for {name}"
    if known is not None and name.startswith("loss") and known.chance_loss:
        return _two_digits(LOSS_STEP * known.chance_loss), f"the default: {LOSS_STEP:.0%} of the loss at chance"
    raise RecipeError(
        f"there is no default for '{name}'", path="smallest_effect", mend="say from which difference on you would act"
    )


def _two_digits(value: float) -> float:
    return round(value, 1 - math.floor(math.log10(value)))


def _columns(task: Task, dataset: Dataset) -> tuple[str, ...]:
    metrics = [*task.scaled_metrics(dataset.facts), *task.metrics(dataset.facts)]
    names = [f"validation_{name}" for name in metrics]
    return (*names, f"validation_loss_{task.unit}", f"train_loss_{task.unit}", *TRAINING_COLUMNS)


def _judged(dataset: Dataset) -> str:
    """Which samples are judged: their numbers if the data has such, else their targets."""
    split = dataset.splits["validation"]
    digest = hashlib.sha256(str(len(split)).encode())
    if "validation" in dataset.indices:
        digest.update(dataset.indices["validation"].numpy().tobytes())
    else:
        for batch in split.batches(Order(batch_size=1024)):
            digest.update(_digest(batch.targets).encode())
    return digest.hexdigest()


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:16]
