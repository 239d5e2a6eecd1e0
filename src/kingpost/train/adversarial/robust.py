"""How well a trained model stands up to an attack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kingpost.assembly import Batch, Step
from kingpost.errors import DataError, RecipeError, nearest
from kingpost.option import choose
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import DataFacts, Order, Split
from kingpost.task import Task
from kingpost.train.adversarial.attack import Attack
from kingpost.train.augment.augmentation import check_form
from kingpost.train.ensemble.members import opened
from kingpost.train.evaluate import evaluate


class Held(Split):
    """Samples in memory, in the order in which they came.

    Args:
        inputs: one tensor for each argument of the model, ``(N, ...)``.
        targets: ``(N, ...)``.
    """

    sharded = False

    def __init__(self, inputs: tuple[Tensor, ...], targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Order) -> Iterator[Batch]:
        """Batches in the order of the samples, or shuffled."""
        for rows in torch.split(order.indices(len(self)), order.batch_size)[order.start :]:
            yield Batch(tuple(x[rows] for x in self.inputs), self.targets[rows], 0, len(rows))


def attacked(
    model: nn.Module,
    split: Split,
    task: Task,
    attack: Attack,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    samples: int | None = None,
) -> tuple[Held, Held]:
    """The first samples of a split as they are, and as the attack makes them; both on the processor.

    Args:
        model: what is attacked, by the gradient of the task's plain loss.
        split: samples with known targets.
        task: gives the loss.
        attack: how, and how far.
        batch_size: samples at once.
        device: where the model is.
        seed: of the attack's random start.
        samples: how many; None takes all.
    """
    clean: list[Batch] = []
    changed: list[Batch] = []
    wanted = len(split) if samples is None else min(samples, len(split))
    for index, whole in enumerate(split.batches(Order(batch_size=batch_size))):
        done = sum(map(len, clean))
        if done >= wanted:
            break
        batch = whole.rows(0, min(len(whole), wanted - done)).to(device)
        step = Step(index=index, seed=seed, items=task.items(batch.targets))
        clean.append(batch.to(torch.device("cpu")))
        changed.append(attack.perturb(model, task.objective, batch, step).to(torch.device("cpu")))
    return _held(clean), _held(changed)


def _held(batches: list[Batch]) -> Held:
    inputs = zip(*(batch.inputs for batch in batches), strict=True)
    return Held(tuple(torch.cat(xs) for xs in inputs), torch.cat([batch.targets for batch in batches]))


@dataclass(frozen=True)
class Robustness:
    """Accuracy with and without an attack, on the same samples.

    Args:
        accuracy: on the samples as they are.
        robust_accuracy: on the samples as the attack makes them: an upper bound of what a stronger attack leaves.
        samples: how many.
        attack: the attack, as a recipe would write it.
    """

    accuracy: float
    robust_accuracy: float
    samples: int
    attack: Mapping[str, Any]

    def to_value(self) -> dict[str, Any]:
        """Every field, as plain values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        clean, robust, n = 100 * self.accuracy, 100 * self.robust_accuracy, self.samples
        spread = math.sqrt(robust * (100 - robust) / n)
        name = self.attack["name"]
        given = {key: value for key, value in self.attack.items() if key != "name" and value is not None}
        fields = ", ".join(f"{key}={value}" for key, value in given.items())
        lines = (
            f"{clean:.2f} % right of {n} samples as they are",
            f"{robust:.2f} % (standard error {spread:.2f}) under {name} ({fields});",
            "a stronger attack may leave less. Lengths are in the input's own unit.",
        )
        return "\n".join(lines)


def as_attack(attack: Attack | str | Mapping[str, Any], facts: DataFacts) -> Attack:
    """The attack that a name or a mapping stands for.

    Raises:
        RecipeError: it is none, or cannot change this data.
    """
    chosen = choose("technique", attack)
    if not isinstance(chosen, Attack):
        raise RecipeError(f"'{chosen.name}' is no attack", path="attack", mend="use pgd or fgsm")
    check_form(facts, chosen.reads)
    return chosen


def robust_accuracy(
    run: Run | Path | str,
    attack: Attack | str | Mapping[str, Any] = "pgd",
    part: str = "test",
    samples: int | None = None,
    seed: int = 0,
    which: Literal["best", "last"] = "best",
    batch_size: int | None = None,
    device: str = "auto",
    recipe: Recipe | None = None,
) -> Robustness:
    """The accuracy of a trained classifier, with and without an attack that knows all its weights.

    Args:
        run: the run, its folder or its name.
        attack: ``kp.PGD(epsilon=0.3, steps=20)``, or as a recipe names it; lengths in the input's own unit, which is
            standard deviations for standardised data.
        part: ``test``, ``validation`` or ``train``.
        samples: how many, from the first; None takes all.
        seed: of the attack's random start.
        which: weights of the best or the last epoch.
        batch_size: samples at once; None takes four times that of training.
        device: where to compute.
        recipe: the one that was trained, for a run with objects that its file cannot hold.

    Raises:
        RecipeError: no attack, or one that cannot change this data; or the task has no accuracy.
        DataError: no such part.
    """
    from kingpost.train.predict import restored

    run = opened(run).final
    recipe = recipe or run.recipe
    model, dataset, task, where = restored(run, recipe, which, device)
    chosen = as_attack(attack, dataset.facts)
    if part not in dataset.splits:
        raise DataError(f"the data has no part '{part}'; {nearest(part, dataset.splits)}")
    if task.name != "classification":
        raise RecipeError(f"the task '{task.name}' has no accuracy", mend="use kingpost.predict(run, attack=...)")
    size = batch_size or 4 * recipe.batch_size
    pair = attacked(model, dataset.splits[part], task, chosen, size, where, seed, samples)
    clean, robust = (
        evaluate(model, split, task, dataset.facts, dataset.fitted, size, where)["accuracy"] for split in pair
    )
    return Robustness(clean, robust, len(pair[0]), {"name": chosen.name, **chosen.to_value()})
