"""From a recipe to an assembly: the plain slots, and the recipe's techniques mounted on them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, Layout, Setting, Step
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe
from kingpost.source import Dataset
from kingpost.task import Task
from kingpost.technique import mount_all
from kingpost.train.gradients.backward import Backward


def assemble(recipe: Recipe, dataset: Dataset, device: torch.device, count_only: bool = False) -> Assembly:
    """All slots filled; the model has its final form and its starting weights, on ``device``.

    Args:
        recipe: what to assemble.
        dataset: the recipe's data, opened.
        device: where the model lives.
        count_only: a fake tensor mode is active: build the model there, and leave its weights alone.

    Raises:
        RecipeError: a technique cannot work with this model, task or data.
    """
    if "validation" not in dataset.splits:
        for path, technique in recipe.mounts():
            if "stop" in technique.touches:
                raise RecipeError("needs a validation part, and the data has none", path=path, mend="hold one out")
    setting = Setting(
        task=task_of(recipe, dataset),
        data=dataset.facts,
        batch_size=recipe.batch_size,
        total_steps=total_steps(recipe, dataset),
        seed=recipe.seed,
        device=device,
    )
    torch.manual_seed(seeds.derive(recipe.seed, "model"))
    with device if count_only else nullcontext():
        assembly = mount_all(plain_assembly(setting), recipe.mounts())
    if not count_only:
        assembly.initialise(assembly.model.to(device), seeds.derive(recipe.seed, "initialise"))
    return assembly


def plain_assembly(setting: Setting) -> Assembly:
    """The slots before any technique."""
    backward = Backward()
    return Assembly(
        setting=setting,
        model=nn.Identity(),
        initialise=_as_constructed,
        batch=_as_it_is,
        objective=setting.task.objective,
        gradient=backward,
        optimizer=_no_optimizer,
        schedule=lambda step, total_steps: 1.0,
        update=_step,
        evaluate=lambda model: nullcontext(),
        stop=lambda scores: False,
        layout=Layout(),
        state={"backward": backward},
    )


def task_of(recipe: Recipe, dataset: Dataset) -> Task:
    """The recipe's task, or the one that the data is for."""
    from kingpost.option import choose

    task = recipe.task or choose("task", dataset.facts.task)
    assert isinstance(task, Task)
    return task


def total_steps(recipe: Recipe, dataset: Dataset) -> int:
    """Optimizer steps of the whole run; for a budget in seconds, those of one epoch (the loop knows better later)."""
    if recipe.budget.steps is not None:
        return recipe.budget.steps
    return dataset.splits["train"].steps(recipe.batch_size) * (recipe.budget.epochs or 1)


def _as_constructed(model: nn.Module, seed: int) -> Sequence[str]:
    return ()


def _as_it_is(batch: Batch, step: Step) -> Batch:
    return batch


def _no_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    raise AssertionError("a recipe always has an optimizer")


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
    optimizer.step()
