"""From a recipe to an assembly: the plain slots, and the recipe's techniques mounted on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import nn

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, BatchTransform, Layout, Setting, Started, Step
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe
from kingpost.source import Dataset, Order
from kingpost.task import Task
from kingpost.technique import mount_all
from kingpost.train.gradients.backward import Backward


def assemble(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    count_only: bool = False,
    told: Callable[[Started], object] | None = lambda started: None,
) -> Assembly:
    """All slots filled; the model has its final form and its starting weights, on ``device``.

    Args:
        recipe: what to assemble.
        dataset: the recipe's data, opened.
        device: where the model lives.
        count_only: a fake tensor mode is active: build the model there, and leave its weights alone.
        told: what the initialiser did is told to it; None leaves the weights alone, for others will be loaded.

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
        first_batch=lambda: first_batch(recipe, dataset, device, count_only),
        model=recipe.model,
        train_batches=lambda: train_batches(recipe, dataset),
    )
    with device if count_only else seeds.DrawsByShape(recipe.seed, "model"):
        mounts = recipe.mounts()
        net = next(index for index, (path, _) in enumerate(mounts) if path == "model") + 1
        assembly = mount_all(plain_assembly(setting), mounts[:net])
        adapted = setting.task.adapt(assembly.model, setting)
        assembly = mount_all(assembly.with_(model=adapted), mounts[net:])
    if not count_only:
        assembly.model.to(device)
        if told is not None:
            told(assembly.initialise(assembly.model, seeds.derive(recipe.seed, "initialise")))
    return assembly.with_(batch=_posed(assembly.batch, setting.task)) if setting.task.pretext else assembly


def _posed(inner: BatchTransform, task: Task) -> BatchTransform:
    """A batch as the task makes it, after all techniques."""

    def pose(batch: Batch, step: Step) -> Batch:
        batch = inner(batch, step)
        return task.pose(batch, step.generator("task", batch.targets.device))

    return pose


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


def first_batch(recipe: Recipe, dataset: Dataset, device: torch.device, count_only: bool = False) -> Batch:
    """The first training samples, in the run's own order; with ``count_only``, tensors of the same shapes."""
    if count_only:
        samples = min(recipe.batch_size, len(dataset.splits["train"]))
        return empty_batch(dataset, task_of(recipe, dataset), samples, device)
    return next(train_batches(recipe, dataset)).to(device)


def train_batches(recipe: Recipe, dataset: Dataset) -> Iterator[Batch]:
    """The whole training batches of the first epoch, as the data has them, on every process the same."""
    order = Order(batch_size=recipe.batch_size, shuffle=True, seed=recipe.seed)
    return iter(dataset.splits["train"].batches(order))


def empty_batch(dataset: Dataset, task: Task, samples: int, device: torch.device) -> Batch:
    """Zeros in the shapes and dtypes of a batch."""
    facts = dataset.facts
    inputs = tuple(torch.zeros(samples, *shape, dtype=dtype, device=device) for shape, dtype in facts.inputs)
    dtype = task.target_dtype if task.target_dtype is not None else torch.get_default_dtype()
    return Batch(inputs, torch.zeros(samples, *facts.target_shape, dtype=dtype, device=device), 0, samples)


def task_of(recipe: Recipe, dataset: Dataset) -> Task:
    """The recipe's task, or the one that the data is for."""
    from kingpost.option import choose

    task = recipe.task or choose("task", dataset.facts.task)
    assert isinstance(task, Task)
    return task.for_data(dataset.facts)


def total_steps(recipe: Recipe, dataset: Dataset) -> int:
    """Optimizer steps of the whole run; for a budget in seconds, those of one epoch (the loop knows better later)."""
    if recipe.budget.steps is not None:
        return recipe.budget.steps
    return dataset.splits["train"].steps(recipe.batch_size) * (recipe.budget.epochs or 1)


def _as_constructed(model: nn.Module, seed: int) -> Started:
    return Started({})


def _as_it_is(batch: Batch, step: Step) -> Batch:
    return batch


def _no_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    raise AssertionError("a recipe always has an optimizer")


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
    optimizer.step()
