"""Derive a plan: mount the recipe on tensors that have shapes but no memory, and count."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, Step
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.flops import flop_counter
from kingpost.foreign import Foreign
from kingpost.net import Net
from kingpost.plan import Plan
from kingpost.recipe import Recipe
from kingpost.source import Dataset, Graph, Order
from kingpost.summary import Summary, summary
from kingpost.technique import Technique
from kingpost.train.assemble import assemble, empty_batch, task_of
from kingpost.train.gradients.accumulate import Accumulate
from kingpost.train.gradients.backward import clear_gradients, gradients
from kingpost.train.gradients.checkpoint_activations import Recomputed
from kingpost.train.optimise.groups import base_rates, optimizer_figures
from kingpost.train.optimise.lbfgs import state_bytes
from kingpost.train.parallel import process_group
from kingpost.train.precision import BF16, FP16

MEASURED_STEPS, WARM_STEPS = 12, 3


def plan(recipe: Recipe, measure: bool = False) -> Plan:
    """Every number that follows from a recipe, with its unit and reason; the data is read, nothing is trained.

    Args:
        recipe: what is planned.
        measure: also time a few steps, on weights that are thrown away.

    Raises:
        RecipeError: the recipe contradicts itself, its data, or this machine.

    >>> recipe = Recipe(name="digits", data="digits", model={"name": "mlp", "widths": [32]})
    >>> plan(recipe)["parameters"]
    2410
    """
    stages = recipe.staged()
    whole, recipe = recipe, stages[0] if stages else recipe
    with process_group(recipe.layout) as device:
        dataset = recipe.data.open()
        counted: list[Summary] = []
        said = Figure("stages", len(stages), "", "one after another; this is the plan of the first")
        figures = [*_data_figures(recipe, dataset), *_step_figures(recipe, dataset, device, counted)]
        figures = [said, *figures] if stages else figures
        if measure:
            figures += _measured(recipe, dataset, device)
    return Plan(whole, tuple(figures), counted[0])


def _data_figures(recipe: Recipe, dataset: Dataset) -> Iterator[Figure]:
    sizes = {part: len(split) for part, split in dataset.splits.items()}
    train = dataset.splits["train"]
    task = task_of(recipe, dataset)
    yield Figure("task", task.name, "", "the recipe's" if recipe.task else "what the data is for")
    yield Figure(
        "training samples",
        sizes.pop("train"),
        "samples",
        " · ".join(f"{n:,} for {p}" for p, n in sizes.items()),
    )
    shapes = " and ".join(f"{'x'.join(map(str, shape)) or 'scalar'} {dtype}" for shape, dtype in dataset.facts.inputs)
    yield Figure("input of a sample", shapes.replace("torch.", ""), "", f"source '{recipe.data.name}'")
    chance = task.chance_loss(dataset.facts)
    if chance is not None:
        yield Figure("loss at chance", chance, task.unit, "a model that knows nothing starts near this")
    yield from task.figures(dataset)
    steps = train.steps(recipe.batch_size)
    yield Figure(
        "steps per epoch",
        steps,
        "steps",
        f"{len(train):,} samples / {recipe.batch_size} per step, rounded up",
    )


def _step_figures(recipe: Recipe, dataset: Dataset, device: torch.device, counted: list[Summary]) -> Iterator[Figure]:
    mode = FakeTensorMode()
    dataset = _without_graph_memory(dataset, mode)
    with mode, torch.compiler.set_stance("force_eager"):
        assembly = assemble(_countable(recipe, dataset, mode), dataset, device, count_only=True)
    yield from _budget_figures(recipe, assembly)
    yield from _batch_figures(recipe, assembly, dataset, device)
    yield from _model_figures(recipe, assembly, mode)
    with mode, torch.compiler.set_stance("force_eager"):
        samples = min(recipe.batch_size, len(dataset.splits["train"]))
        batch = empty_batch(dataset, assembly.setting.task, -(-samples // assembly.layout.ranks), device)
        step = Step(index=0, seed=recipe.seed, items=assembly.setting.task.items(batch.targets))
        with _one_error(assembly, batch):
            if assembly.setting.task.pretext:
                batch = assembly.setting.task.pose(batch, step.generator("task", device))
            counted.append(summary(assembly.model, *batch.inputs))
        counter = flop_counter()
        with counter, _activation_bytes(assembly) as activations, _one_error(assembly, batch):
            assembly.gradient(assembly.model, assembly.objective, batch, step)
        optimizer = assembly.optimizer(assembly.model)
        rates = base_rates(optimizer)
        yield from _memory_figures(assembly, optimizer, activations[0])
    yield Figure(
        "compute per step",
        counter.get_total_flops() * assembly.layout.ranks,
        "FLOPs",
        "matrix products of forward and backward, all devices, counted",
    )
    yield from _rate_figures(assembly, max(rates))


@contextmanager
def _one_error(assembly: Assembly, batch: Batch) -> Iterator[None]:
    """The user's own model may not fit the data; say so in one line."""
    torch_log = logging.getLogger("torch._subclasses.fake_tensor")
    torch_log.disabled, before = True, torch_log.disabled  # it would print a page before the error
    try:
        yield
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
        raise RecipeError(
            f"{type(assembly.model).__name__} cannot be run on inputs of shape {shapes}: {str(error).splitlines()[0]}",
            path="model",
        ) from error
    finally:
        torch_log.disabled = before


def _budget_figures(recipe: Recipe, assembly: Assembly) -> Iterator[Figure]:
    if recipe.budget.seconds is not None:
        yield Figure("budget", recipe.budget.seconds, "seconds", "budget.seconds; steps depend on the machine")
        return
    reason = f"{recipe.budget.epochs} epochs" if recipe.budget.epochs else "budget.steps"
    yield Figure("steps", assembly.setting.total_steps, "steps", reason)


def _batch_figures(recipe: Recipe, assembly: Assembly, dataset: Dataset, device: torch.device) -> Iterator[Figure]:
    ranks = assembly.layout.ranks
    micro = next((t.micro_batches for t in recipe.techniques if isinstance(t, Accumulate)), 1)
    samples = min(recipe.batch_size, len(dataset.splits["train"]))
    reason = f"{samples} / {ranks} processes / {micro} micro-batches, on {device}"
    yield Figure("samples at once", -(-samples // (ranks * micro)), "samples", reason)


def _model_figures(recipe: Recipe, assembly: Assembly, mode: FakeTensorMode) -> Iterator[Figure]:
    trained = [p for p in assembly.model.parameters() if p.requires_grad]
    everything = sum(p.numel() for p in assembly.model.parameters())
    count = sum(p.numel() for p in trained)
    frozen = f", {everything - count:,} frozen" if everything != count else ""
    if isinstance(recipe.model, Net):
        yield from recipe.model.derived(assembly.setting.data)
    yield Figure("parameters", count, "", f"in {len(trained)} tensors of {type(assembly.model).__name__}{frozen}")
    yield from _start_figures(recipe, assembly, mode)


def _start_figures(recipe: Recipe, assembly: Assembly, mode: FakeTensorMode) -> Iterator[Figure]:
    """What the initialiser sets, how and why, and what it leaves as constructed."""
    if recipe.initialise is None:
        yield Figure("starting weights", "as constructed", "", "no initialiser in the recipe")
        return
    names = [name for name, _ in assembly.model.named_parameters()]
    with mode, torch.device("cpu"):
        started = assembly.initialise(assembly.model, 0)
    left = [name for name in names if name not in started.done and name not in started.left]
    note = f"not touched: {_some(left)}" if left else "all parameters" if not started.left else "see below"
    yield Figure("starting weights", recipe.initialise.name, "", f"{len(started.done)} of {len(names)} tensors; {note}")
    for word, reasons in (("set", started.done), ("left", started.left)):
        places: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            places.setdefault(reason, []).append(name)
        if word == "set" and len(places) <= 2:  # one way for weights and one for biases: the name says it all
            continue
        for reason, where in places.items():
            yield Figure(f"  {word}", f"{len(where)} tensors", "", f"{reason}: {_some(where)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")


def _memory_figures(assembly: Assembly, optimizer: torch.optim.Optimizer, activations: int) -> Iterator[Figure]:
    weights = _bytes([*assembly.model.parameters(), *assembly.model.buffers()])
    grads = _bytes(gradients(assembly.model))
    yield from optimizer_figures(optimizer)
    for group in optimizer.param_groups:  # fused kernels need real memory; the state is the same without them
        group.update({key: False for key in ("fused", "foreach", "capturable") if key in group})
    state, when = _state_bytes(optimizer)
    clear_gradients(assembly.model)
    yield Figure("weights", weights, "bytes", "parameters and buffers")
    yield Figure("gradients", grads, "bytes", "one number a trained weight")
    yield Figure("optimizer state", state, "bytes", f"{type(optimizer).__name__}, {when}")
    yield Figure("activations", activations, "bytes", "kept for backward at once on one device, counted")
    yield Figure("memory", weights + grads + state + activations, "bytes", "sum of these; working space comes on top")


def _state_bytes(optimizer: torch.optim.Optimizer) -> tuple[int, str]:
    """What an optimizer keeps, and when."""
    if isinstance(optimizer, torch.optim.LBFGS):  # its step needs a loss
        return state_bytes(optimizer), "when its history is full"
    try:
        optimizer.step()
    except DataDependentOutputException:  # its step looks at values; the state is made before that, group by group
        groups = optimizer.param_groups
        for group in groups:
            optimizer.param_groups = [group]
            with suppress(DataDependentOutputException):
                optimizer.step()
        optimizer.param_groups = groups
    held = (value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, Tensor))
    return _bytes(held), "after its first step"


def _rate_figures(assembly: Assembly, rate: float) -> Iterator[Figure]:
    total = assembly.setting.total_steps
    factors = [assembly.schedule(step, total) for step in sorted({*range(0, total, max(1, total // 200)), total - 1})]
    reason = f"starts at {rate * factors[0]:.3g}, ends at {rate * factors[-1]:.3g}"
    yield Figure("peak learning rate", rate * max(factors), "", reason)


def _measured(recipe: Recipe, dataset: Dataset, device: torch.device) -> Iterator[Figure]:
    """Time a few real steps; the weights are thrown away."""
    assembly = assemble(with_copies(recipe), dataset, device)
    optimizer = assembly.optimizer(assembly.model)
    seconds: list[float] = []
    assembly.model.train()
    while len(seconds) < MEASURED_STEPS:
        epoch = Order(batch_size=recipe.batch_size, shuffle=True, seed=recipe.seed)
        for batch in dataset.splits["train"].batches(epoch):
            started = time.perf_counter()
            step = Step(index=len(seconds), seed=recipe.seed)
            seeds.seed_default_generators(step.index, device)
            batch = assembly.batch(batch.to(device), step)
            step.items = assembly.setting.task.items(batch.targets)
            float(assembly.gradient(assembly.model, assembly.objective, batch, step).data)
            assembly.update(assembly.model, optimizer, step)
            clear_gradients(assembly.model)
            seconds.append(time.perf_counter() - started)
            if len(seconds) == MEASURED_STEPS:
                break
    kept = sorted(seconds[WARM_STEPS:])
    median = kept[len(kept) // 2]
    spread = f"median of {len(kept)} steps, {kept[0]:.3g} to {kept[-1]:.3g}, one process"
    yield Figure("time per step", median, "seconds", spread)
    if recipe.budget.seconds is None:
        total = median * assembly.setting.total_steps
        yield Figure("training time", total, "seconds", "time per step x steps; evaluation comes on top")


def _countable(recipe: Recipe, dataset: Dataset, mode: FakeTensorMode) -> Recipe:
    """The recipe with what would look at values replaced by what costs the same and does not."""
    recipe = with_copies(recipe)
    task = copy.copy(task_of(recipe, dataset))
    object.__setattr__(task, "items", lambda targets: targets.numel())
    techniques: tuple[Technique, ...] = tuple(BF16() if isinstance(t, FP16) else t for t in recipe.techniques)
    model, optimizer = recipe.model, recipe.optimizer
    if isinstance(model, Foreign) and isinstance(model.target, nn.Module):
        held = optimizer.target if isinstance(optimizer, Foreign) else None
        _forget_memory(model.target, held if isinstance(held, torch.optim.Optimizer) else None, mode)
    return recipe.with_(task=task, techniques=techniques)


def _without_graph_memory(dataset: Dataset, mode: FakeTensorMode) -> Dataset:
    """The data with a graph that has shapes only, if it has one: a net keeps it."""
    if (graph := dataset.facts.graph) is None:
        return dataset
    fake = Graph(x=mode.from_tensor(graph.x), edges=mode.from_tensor(graph.edges))
    return dataclasses.replace(dataset, facts=dataclasses.replace(dataset.facts, graph=fake))


def with_copies(recipe: Recipe) -> Recipe:
    """The recipe with copies of the objects that were passed in, so that nothing happens to those."""
    parts = {key: getattr(recipe, key) for key in ("model", "optimizer")}
    given = {key: part for key, part in parts.items() if isinstance(part, Foreign) and not part.reference}
    with unset_fake_temporarily():  # at once: what was shared still is
        copies = copy.deepcopy({key: part.target for key, part in given.items()})
    return recipe.with_(**{key: part.with_(target=copies[key]) for key, part in given.items()})


def _forget_memory(module: nn.Module, optimizer: torch.optim.Optimizer | None, mode: FakeTensorMode) -> None:
    """Replace all tensors of a module by such that have shapes only; tensors that were shared still are."""
    with unset_fake_temporarily():
        fakes: dict[int, nn.Parameter] = {}
        groups = optimizer.param_groups if optimizer else []
        for p in [*module.parameters(), *(p for group in groups for p in group["params"])]:
            if id(p) not in fakes:
                fakes[id(p)] = nn.Parameter(mode.from_tensor(p.detach()), requires_grad=p.requires_grad)
        for group in groups:
            group["params"] = [fakes[id(p)] for p in group["params"]]
        if optimizer:
            optimizer.state.clear()
        for part in module.modules():
            for name, p in part._parameters.items():
                part._parameters[name] = None if p is None else fakes[id(p)]
            for name, b in part._buffers.items():
                part._buffers[name] = None if b is None else mode.from_tensor(b)


@contextmanager
def _activation_bytes(assembly: Assembly) -> Iterator[list[int]]:
    """Counts the most bytes that are kept for backward at one time, weights left out."""
    weights = {p.untyped_storage()._cdata for p in assembly.model.parameters()}
    alive: dict[int, int] = {}
    sizes: dict[int, int] = {}
    most = [0]

    class Kept:
        """A tensor that backward will need; counted as long as it lives."""

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            self.storage = tensor.untyped_storage()._cdata
            if self.storage not in weights:
                alive[self.storage] = alive.get(self.storage, 0) + 1
                sizes[self.storage] = tensor.untyped_storage().nbytes()
                most[0] = max(most[0], sum(sizes[s] for s, n in alive.items() if n > 0))

        def __del__(self) -> None:
            if self.storage in alive:
                alive[self.storage] -= 1

    @contextmanager
    def second_pass() -> Iterator[None]:
        """What a checkpointed block computes again is kept by torch itself, and comes on top of what is alive."""
        pack, unpack = torch._C._autograd._top_saved_tensors_default_hooks(False)
        again: dict[int, int] = {}

        def note(tensor: Tensor) -> object:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights and not alive.get(storage._cdata):
                again[storage._cdata] = storage.nbytes()
                most[0] = max(most[0], sum(sizes[s] for s, n in alive.items() if n > 0) + sum(again.values()))
            return pack(tensor)

        with torch.autograd.graph.saved_tensors_hooks(note, unpack):
            yield

    for module in assembly.model.modules():
        if isinstance(module, Recomputed):
            module.second_pass = second_pass
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda held: held.tensor):
        yield most


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
