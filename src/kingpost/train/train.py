"""Train a recipe, and go on with a run that was interrupted."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from kingpost.assembly import Started
from kingpost.errors import KingpostError, RecipeError, RunError, TrainingError
from kingpost.files import remove_leftovers, write_atomically, write_json
from kingpost.finding import Finding
from kingpost.patch import Patch
from kingpost.recipe import Recipe
from kingpost.run import RUNS, Run
from kingpost.source import Dataset
from kingpost.train import checkpoint, environment, parallel
from kingpost.train.answers import save_answers
from kingpost.train.assemble import assemble
from kingpost.train.guards import StopRequest, stop_signals
from kingpost.train.history import StepLog
from kingpost.train.judged import save_judged
from kingpost.train.loop import Job, fit
from kingpost.train.optimise.groups import base_rates
from kingpost.train.progress import Display

RESUMABLE_KEYS = ("budget", "save")


def train(recipe: Recipe, root: Path | str = RUNS, quiet: bool = False) -> Run:
    """Train a recipe in a new folder ``root/NAME``.

    Args:
        recipe: what to do; a module that was passed in as an object is trained in place.
        root: folder of all runs.
        quiet: no progress on standard error.

    Returns:
        The run; its ``status`` is ``stopped`` if a signal ended it early, and it can then be resumed.

    Raises:
        KingpostError: the recipe, the data or the training failed; the run's folder holds what there is.

    >>> import tempfile
    >>> recipe = Recipe(name="tiny", data="digits", model="mlp", budget={"steps": 2}, save={"report": False})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = train(recipe, root=folder, quiet=True)
    ...     run.status, len(run.steps)
    ('finished', 2)
    """
    if recipe.stages:
        from kingpost.train.stages import train_stages

        return train_stages(recipe, root, quiet)
    recipe = _with_launched_ranks(recipe)
    ranks = parallel.launched_ranks()
    if ranks == 1 and _wanted_ranks(recipe) > 1:
        _check_sendable(recipe)
        return _launch(Run.create(recipe, root), recipe, quiet)
    with parallel.process_group(recipe.layout) as device:
        folder = parallel.from_first(str(Run.create(recipe, root).folder) if parallel.is_first() else "")
        run = Run(Path(folder))
        with _alone(run):
            return _execute(run, recipe, device, quiet)


def resume(folder: Path | str, *changes: str | Patch, quiet: bool = False, recipe: Recipe | None = None) -> Run:
    """Go on with a run from its newest checkpoint, to the same bits as if it had never stopped.

    Args:
        folder: the run's folder, or its name under ``runs/``.
        changes: overrides of ``budget.*`` and ``save.*``; anything else would be another run.
        quiet: no progress on standard error.
        recipe: the one that was trained, for a run with objects that its file cannot hold.

    Raises:
        RunError: no such run, its data has changed, or another process is at work on it.
        RecipeError: the recipe cannot be made again from its file, or the change is not possible.
    """
    run = Run.open(folder)
    recipe = recipe or run.recipe
    if recipe.stages:
        from kingpost.train.stages import resume_stages

        return resume_stages(run, recipe, changes, quiet)
    for change in changes:
        patch = Patch.of(change)
        for part in patch.changes:
            if part.key.split(".")[0] not in RESUMABLE_KEYS:
                raise RecipeError(
                    "cannot be changed on resume",
                    path=part.key,
                    mend="train a new run; only budget.* and save.* can",
                )
        recipe = patch.apply(recipe)
        _check_budget(recipe, run)
    if run.holds(recipe) and _is_at_its_end(run):
        said = f"run {run.folder} is finished; nothing to do (a larger budget would go on, for example budget.epochs=N)"
        Display(run.name, quiet=quiet or not parallel.is_rank_zero()).say(said)
        return run
    recipe = _with_launched_ranks(recipe)
    if parallel.launched_ranks() == 1 and _wanted_ranks(recipe) > 1:
        with _alone(run):
            recipe.save_to(run.folder / "recipe.yaml")
        return _launch(run, recipe, quiet)
    with parallel.process_group(recipe.layout) as device, _alone(run):
        if parallel.is_first():
            recipe.save_to(run.folder / "recipe.yaml")
        return _execute(run, recipe, device, quiet)


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Inside, no other process can train this run; the lock goes with the process, however it ends."""
    lock = FileLock(run.folder / ".lock")
    problem = ""
    if parallel.is_first():
        try:
            lock.acquire(timeout=0)
        except Timeout:
            problem = f"another process is at work on run '{run.name}'; wait until it ends, or stop it"
    if problem := parallel.from_first(problem):
        raise RunError(problem)
    try:
        yield
    finally:
        lock.release()


def _check_budget(recipe: Recipe, run: Run) -> None:
    """A run cannot be made shorter than it is."""
    for key, done in (("epochs", "epoch"), ("steps", "step"), ("seconds", "seconds")):
        wanted, so_far = getattr(recipe.budget, key), run.summary.get(done, 0)
        if wanted is not None and wanted < so_far:
            raise RecipeError(
                f"got {wanted}, but {so_far:.6g} {key} are done", path=f"budget.{key}", mend="train a new run instead"
            )


def _is_at_its_end(run: Run) -> bool:
    """Whether a run has finished, and no checkpoint says that it was taken back since."""
    end = run.summary
    newest = checkpoint.all_in(run.folder / "checkpoints")[-1:]
    return run.status == "finished" and all(p.name == checkpoint.name_of(end["step"], end["epoch"]) for p in newest)


def prepare(run: Run, recipe: Recipe, device: torch.device, display: Display) -> Job:
    """Open the data, assemble the step, and load the newest checkpoint if there is one."""
    first = parallel.is_first()
    dataset = recipe.data.open()
    damaged: list[Finding] = []
    state = checkpoint.load_newest(
        run.folder / "checkpoints", device, lambda path, why: damaged.append(_damaged(path, why))
    )
    if first and state is None and recipe.initialise is not None and (parent := recipe.initialise.lineage):
        run.set_status(run.status, parent=dict(parent))
    started: list[Started] = []
    assembly = assemble(recipe, dataset, device, told=started.append if state is None else None)
    if not any(p.requires_grad for p in assembly.model.parameters()):
        raise RecipeError("every parameter is frozen", path="model", mend="leave requires_grad on for some")
    optimizer = assembly.optimizer(assembly.model)
    rates = base_rates(optimizer)
    job = Job(run, recipe, dataset, assembly, optimizer, assembly.model, rates, display, first)
    if first:
        _record(run, recipe, dataset, environment.describe(device, assembly.layout.ranks))
    rows = job.load(state) if state else 0
    job.findings += [*damaged, *(_left(recipe, one) for one in started if one.left)]
    for finding in damaged:
        display.say(str(finding))
    if first:
        for place in (run.folder, run.folder / "weights"):
            remove_leftovers(place)
        job.log = StepLog(run.folder / "steps.csv", rows)
        if damaged:  # they would come back as the newest once enough steps are done
            for finding in damaged:
                shutil.rmtree(finding.place, ignore_errors=True)
    job.replica = assembly.layout.replicate(assembly.model)
    return job


def _execute(run: Run, recipe: Recipe, device: torch.device, quiet: bool) -> Run:
    first = parallel.is_first()
    with (
        Display(run.name, quiet=quiet or not first) as display,
        _failures(run, first),
        stop_signals() as request,
    ):
        job = prepare(run, recipe, device, display)
        if first:
            run.set_status("running", message="")
        try:
            fit(job, request)
        except KingpostError:
            job.save()  # the weights are those before the failed step
            raise
        if job.is_done():
            _finish(job)
        else:
            _stopped(job, request)
    return run


def _finish(job: Job) -> None:
    """Judge the best weights on the test part, and note the figures."""
    a, at, run = job.assembly, job.at, job.run
    parallel.barrier()
    checkpoint.load_weights(run.weights("best"), a.model)
    test = job.judge("test") if "test" in job.dataset.splits else {}
    if job.first:
        save_judged(job)
        test |= save_answers(job)
        message = "early stopping ended the run" if at.stalled else ""
        run.set_status(
            "finished",
            epoch=at.epoch,
            step=at.step,
            seconds=at.seconds,
            best=at.best,
            test=test,
            message=message,
        )
        if job.recipe.save.tensorboard:
            from kingpost.train.tensorboard import write_events

            write_events(run)
    parallel.barrier()


def _stopped(job: Job, request: StopRequest) -> None:
    if job.first:
        message = f"stopped by {signal.Signals(request.signal).name}; go on with: kingpost resume {job.run.folder}"
        job.run.set_status("stopped", message=message, signal=request.signal)
        job.display.say(message)


@contextlib.contextmanager
def _failures(run: Run, first: bool) -> Iterator[None]:
    """An error that ends the run is noted in its folder; one that keeps it from going on changes nothing there."""
    before = run.status
    try:
        yield
    except Exception as error:
        if first and before == run.status == "new":
            shutil.rmtree(run.folder)  # nothing has begun, so the name stays free for the recipe that is mended
        elif first and run.status == "running":
            run.set_status("failed", message=f"{type(error).__name__}: {error}")
        raise


def _record(run: Run, recipe: Recipe, dataset: Dataset, described: dict[str, Any]) -> None:
    """Write what the run depends on; on resume, check that it is still the same."""
    before = run.data.get("fingerprint_sha256")
    if before and before != dataset.fingerprint:
        raise RunError(
            f"the data of run '{run.name}' has changed since it began (fingerprint {dataset.fingerprint[:12]}, was "
            f"{before[:12]}); train a new run"
        )
    facts = dataset.facts
    of_data: dict[str, Any] = {
        "task": facts.task,
        "inputs": [{"shape": list(shape), "dtype": str(dtype)} for shape, dtype in facts.inputs],
        "target_shape": list(facts.target_shape),
        "classes": list(facts.classes),
        "form": facts.form,
        "vocabulary": facts.vocabulary,
        "target_vocabulary": facts.target_vocabulary,
        "special_tokens": {"padding": facts.padding, "begin": facts.begin, "end": facts.end},
        "cardinalities": list(facts.cardinalities),
        "heads": [{"name": head.name, "classes": list(head.classes)} for head in facts.heads],
        "features": list(facts.features),
        "targets": list(facts.targets),
        "samples": {part: len(split) for part, split in dataset.splits.items()},
        "fingerprint_sha256": dataset.fingerprint,
        "fitted": dict(dataset.fitted),
    }
    write_json(run.folder / "data.json", of_data)
    indices = {part: index.contiguous() for part, index in dataset.indices.items()}
    if indices:
        write_atomically(run.folder / "splits.safetensors", lambda temporary: save_file(indices, temporary))
    write_json(run.folder / "environment.json", described | {"seed": recipe.seed})


def _damaged(path: Path, why: str) -> Finding:
    return Finding(
        symptom="a damaged checkpoint was passed over; the one before it is used",
        severity="warning",
        cause=why,
        place=str(path),
    )


def _left(recipe: Recipe, started: Started) -> Finding:
    """What the initialiser would have set but could not."""
    names = list(started.left)
    return Finding(
        symptom=f"{len(names)} tensors were not set by the initialiser: "
        + ", ".join(names[:4])
        + (" ..." if len(names) > 4 else ""),
        severity="note",
        cause="; ".join(dict.fromkeys(started.left.values())),
        place=f"initialise: {recipe.initialise.name if recipe.initialise else ''}",
        evidence={"left": len(names), "set": len(started.done)},
    )


def _wanted_ranks(recipe: Recipe) -> int:
    assert isinstance(recipe.layout, parallel.DataParallel)
    return recipe.layout.data


def _with_launched_ranks(recipe: Recipe) -> Recipe:
    """Under torchrun, ``layout.data`` is what torchrun has started; another wish is a contradiction."""
    launched, wanted = parallel.launched_ranks(), _wanted_ranks(recipe)
    if launched == 1 or launched == wanted:
        return recipe
    if wanted != 1:
        raise RecipeError(
            f"got {wanted}, but torchrun has started {launched} processes",
            path="layout.data",
            mend=f"use --nproc-per-node {wanted}, or leave layout.data out",
        )
    return recipe.patched(f"layout.data={launched}")


def _check_sendable(recipe: Recipe) -> None:
    if problems := recipe.not_reproducible:
        raise RecipeError(
            "an object cannot be sent to several processes",
            path=problems[0],
            mend="use kp.call(...) on what makes it",
        )


def _launch(run: Run, recipe: Recipe, quiet: bool) -> Run:
    code = parallel.launch(run.folder, _wanted_ranks(recipe), ["--quiet"] if quiet else [])
    if code and run.status not in ("stopped", "failed"):
        run.set_status("failed", message=f"a process ended with exit code {code}")
    if run.status == "failed":
        raise TrainingError(f"run {run.folder} failed: {run.summary.get('message', '')}")
    return run
