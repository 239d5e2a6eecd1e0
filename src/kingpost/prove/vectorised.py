"""Many seeds of one small recipe at once: their weights stacked, one vectorised gradient for all.

A small network leaves most of a device idle, because each of its operations is over before the next is issued. Here
every operation does the work of ``S`` networks. Legend: ``S`` seeds, ``B`` samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from kingpost.assembly import Assembly, Batch, Step
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe
from kingpost.run import Row
from kingpost.source import Dataset, Order
from kingpost.train.assemble import assemble
from kingpost.train.evaluate import evaluate
from kingpost.train.optimise.groups import base_rates

# Each number of a parameter moves by itself, so a stack of networks moves as each of them would.
ELEMENTWISE = {
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop,
}  # fmt: skip
HARMLESS = {"model", "initialise", "layout", "optimizer", "schedule", "objective", "batch"}


@dataclass
class SeedRun:
    """What became of one seed.

    Args:
        seed: the recipe's.
        rows: one an epoch, with the keys of ``results.csv`` except times and memory.
        failed: why it ended early; empty if it did not.
    """

    seed: int
    rows: list[Row] = field(default_factory=list)
    failed: str = ""


def train_seeds(recipe: Recipe, seeds: Sequence[int], device: torch.device | str = "cpu") -> list[SeedRun]:
    """Train a recipe with several seeds at once; each result is that of a run by itself, up to rounding.

    Batches, starting weights and augmentation are those that each seed has alone. No folder is written.

    Args:
        recipe: what to train; its own seed is not used.
        seeds: ``S`` of them.
        device: where.

    Raises:
        RecipeError: the recipe cannot be trained so; :func:`why_not` says why without training.

    >>> recipe = Recipe(name="a", data="digits", model={"name": "mlp", "widths": [8]}, budget={"epochs": 1})
    >>> a, b = train_seeds(recipe, [0, 1])
    >>> a.seed, a.rows[-1]["epoch"], a.rows[-1]["validation_accuracy"] != b.rows[-1]["validation_accuracy"]
    (0, 1, True)
    """
    device = torch.device(device)
    dataset = recipe.data.open()
    members = [assemble(recipe.with_(seed=seed), dataset, device) for seed in seeds]
    if reason := _why_not(recipe, members[0]):
        raise RecipeError(f"cannot be trained with several seeds at once: {reason}", path=recipe.name)
    stack = _Stack(members)
    runs = [SeedRun(seed) for seed in seeds]
    total, step, epoch = members[0].setting.total_steps, 0, 0
    while step < total:
        sums, items = torch.zeros(len(seeds), dtype=torch.float64), 0.0
        orders = (Order(batch_size=recipe.batch_size, shuffle=True, seed=seed, epoch=epoch) for seed in seeds)
        for batches in zip(*(dataset.splits["train"].batches(order) for order in orders), strict=True):
            losses, count = stack.step([batch.to(device) for batch in batches], step, seeds)
            sums, items, step = sums + losses.double().cpu() * count, items + count, step + 1
            if step == total:
                break
        epoch += 1
        judge = epoch % recipe.save.evaluate_every_epochs == 0 or step == total
        for index, run in enumerate(runs):
            _end_epoch(run, members[index], dataset, recipe, epoch, step, float(sums[index]) / items, judge)
    return runs


def why_not(recipe: Recipe) -> str:
    """The reason why :func:`train_seeds` does not take a recipe; empty if it does, as far as is known beforehand.

    >>> why_not(Recipe(name="a", data="digits", model={"name": "cnn", "norm": "batch"}))
    'the model keeps statistics in buffers'
    """
    dataset = recipe.data.open()
    return _why_not(recipe, assemble(recipe, dataset, torch.device("cpu"), told=None))


def _why_not(recipe: Recipe, assembly: Assembly) -> str:
    if recipe.stages or recipe.budget.seconds is not None or assembly.layout.ranks > 1:
        return "stages, a budget in seconds and several processes need runs of their own"
    for path, technique in recipe.mounts():
        if path.startswith("techniques") and (touched := set(technique.touches) - HARMLESS):
            return f"'{technique.name}' touches {', '.join(sorted(touched))}"
    if type(assembly.optimizer(assembly.model)) not in ELEMENTWISE:
        return f"the optimizer '{recipe.optimizer.name}' looks at more than one number of a parameter at a time"
    if next(assembly.model.buffers(), None) is not None:
        return "the model keeps statistics in buffers"
    if any(isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0 for part in assembly.model.modules()):
        return "dropout draws other numbers when seeds are stacked"
    if assembly.setting.task.pretext:
        return "the task makes its own targets"
    return ""


class _Objective(nn.Module):
    """The objective with the model inside, so that functional calls reach the weights that a penalty looks at, too."""

    def __init__(self, assembly: Assembly) -> None:
        super().__init__()
        self.model, self.objective = assembly.model, assembly.objective

    def forward(self, batch: Batch, items: Tensor) -> Tensor:
        """The mean loss."""
        loss = self.objective(self.model, batch)
        return loss.data / items + loss.penalty


class _Stack:
    """The weights of all members in one tensor each; the members' own parameters are views of them."""

    def __init__(self, members: Sequence[Assembly]) -> None:
        self.members = members
        first = members[0]
        self.optimizer = first.optimizer(first.model)
        self.rates = base_rates(self.optimizer)
        self.objective = _Objective(first).train()
        names = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        models = [dict(member.model.named_parameters(prefix="model")) for member in members]
        self.weights = {name: torch.stack([own[name].detach() for own in models]) for name in names}
        for index, own in enumerate(models):
            for name in names:
                own[name].data = self.weights[name][index]
        name_of = {id(p): name for name, p in names.items()}
        for group in self.optimizer.param_groups:
            group["params"] = [self.weights[name_of[id(p)]] for p in group["params"]]
        self.gradient = vmap(grad_and_value(self._loss), in_dims=(0, 0, 0, 0))

    def _loss(self, weights: dict[str, Tensor], inputs: tuple[Tensor, ...], targets: Tensor, items: Tensor) -> Tensor:
        batch = Batch(inputs, targets, 0, len(targets))
        loss: Tensor = functional_call(self.objective, weights, (batch, items))
        return loss

    def step(self, batches: Sequence[Batch], index: int, seeds: Sequence[int]) -> tuple[Tensor, float]:
        """One step of every member; mean losses ``(S,)`` and the number of items in a batch."""
        first = self.members[0]
        factor = first.schedule(index, first.setting.total_steps)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * factor
        changed = [
            member.batch(batch, Step(index=index, seed=seed))
            for member, batch, seed in zip(self.members, batches, seeds, strict=True)
        ]
        inputs = tuple(torch.stack(parts) for parts in zip(*(batch.inputs for batch in changed), strict=True))
        targets = torch.stack([batch.targets for batch in changed])
        counts = [first.setting.task.items(batch.targets) for batch in changed]
        items = torch.tensor(counts, dtype=inputs[0].dtype if inputs[0].is_floating_point() else torch.float32)
        try:
            gradients, losses = self.gradient(self.weights, inputs, targets, items.to(targets.device))
        except RuntimeError as error:
            raise RecipeError(f"cannot be trained with several seeds at once: {str(error).splitlines()[0]}") from error
        for name, weight in self.weights.items():
            weight.grad = gradients[name]
        self.optimizer.step()
        return losses.detach(), float(counts[0])


def _end_epoch(
    run: SeedRun, member: Assembly, dataset: Dataset, recipe: Recipe, epoch: int, step: int, loss: float, judge: bool
) -> None:
    """Write the row of an epoch; a seed whose loss is not finite gets no more of them."""
    if run.failed or not math.isfinite(loss):
        run.failed = run.failed or f"the loss was not finite in epoch {epoch}"
        return
    task = member.setting.task
    row: Row = {"epoch": epoch, "step": step, f"train_loss_{task.unit}": loss}
    if judge and "validation" in dataset.splits:
        figures: dict[str, Any] = evaluate(
            member.model, dataset.splits["validation"], task, dataset.facts, dataset.fitted,
            4 * recipe.batch_size, member.setting.device,
        )  # fmt: skip
        row |= {f"validation_{k}" + (f"_{task.unit}" if k == "loss" else ""): v for k, v in figures.items()}
    run.rows.append(row)
