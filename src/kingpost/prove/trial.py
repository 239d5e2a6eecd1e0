"""Prove: does a change help this network on this data, by how much, at what cost, and how sure is that?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from kingpost.errors import RunError
from kingpost.ledger import LEDGER, Ledger
from kingpost.prove.arms import Change, Subject, calls, make, named, read
from kingpost.prove.declaration import DECLARATION, Asked, Declaration
from kingpost.prove.declare import identity
from kingpost.prove.places import devices_for, workers_for
from kingpost.prove.progress import TrialDisplay
from kingpost.prove.record import Record
from kingpost.prove.runner import Here, Local, Ray, Runner
from kingpost.prove.session import Session, closing
from kingpost.recipe import Recipe
from kingpost.train.guards import stop_signals
from kingpost.verdict import VERDICT, Verdicts

TRIALS = "trials"


def prove(
    subject: Subject,
    arms: Mapping[str, Change] | Change,
    *,
    metric: str | None = None,
    direction: Literal["max", "min"] | None = None,
    smallest_effect: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    min_pairs: int | None = None,
    max_pairs: int | None = None,
    at: Literal["last", "best"] = "last",
    budget: str | None = None,
    retune: Sequence[str] = (),
    factorial: Sequence[str] = (),
    first_seed: int = 0,
    threads: int = 1,
    seconds: float | None = None,
    workers: int | None = None,
    ray: str | None = None,
    name: str | None = None,
    root: Path | str = TRIALS,
    ledger: Path | str = LEDGER,
    keep: bool = False,
    quiet: bool = False,
) -> Verdicts:
    """Try changes against a baseline, pair after pair of runs with the same seed, until the evidence says enough.

    The same call again goes on where the last one ended, or gives its verdict.

    Args:
        subject: the baseline: a recipe; a command with ``{seed}`` and ``{patch}``; or a function ``(seed, **changes)``
            that returns the metric.
        arms: name -> what it changes: a patch in any form; words of a command; or keyword arguments of the function.
        metric: any column of ``results.csv``, with or without ``validation_``; None takes the task's own.
        direction: ``max`` or ``min``; None takes what is known of the metric.
        smallest_effect: the smallest difference that matters, in the metric's unit; None takes the metric's default.
        alpha: error rate of *helps* or *hurts* when there is no difference, over all arms together.
        power: chance to find the smallest effect, for the number of pairs that are still needed.
        min_pairs: no decision before so many; None takes 5, or ``max_pairs`` where that is less.
        max_pairs: no more than so many; None takes 30, or what fits ``seconds``.
        at: the metric at the ``last`` epoch, or at the ``best`` (which flatters the arm that varies more).
        budget: ``steps``, ``samples``, ``seconds`` or ``flops`` for every arm the same, ``samples=50000`` with an
            amount; ``own`` leaves each its own; None takes what the recipe's budget means.
        retune: keys that every arm searches for itself first: ``optimizer.lr``, or ``optimizer.lr=1e-3,1e-2``.
        factorial: arms that are tried in every combination; asked for main effects and interactions.
        first_seed: of the first pair.
        threads: processor threads of each run.
        seconds: no longer than this; a pair that would not fit is not begun.
        workers: runs at a time; None takes as many as there are processor cores or accelerators.
        ray: address of a Ray cluster to run on.
        name: of the trial's folder; None makes one from the recipe's name and the arms.
        root: folder of all trials.
        ledger: the file that every trial is written to.
        keep: keep the weights of all runs.
        quiet: nothing on standard error.

    Raises:
        RecipeError: something cannot be used as given, or a trial of that name was declared otherwise.
        RunError: a run could not be done for a reason that is not the arm's.
        TrialStopped: a signal stopped it; what is done is kept.

    >>> import tempfile, os
    >>> def accuracy(seed, bonus=0.0):
    ...     return 0.9 + bonus + 0.001 * (seed % 3) * (1 + bonus)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     verdicts = prove(accuracy, {"trick": {"bonus": 0.02}}, metric="accuracy", quiet=True,
    ...                      root=folder, ledger=os.path.join(folder, "ledger.jsonl"))
    >>> verdicts["trick"].decision
    'helps'
    """
    started = time.monotonic()
    asked = Asked(
        metric=metric,
        direction=direction,
        smallest_effect=smallest_effect,
        alpha=alpha,
        power=power,
        min_pairs=min_pairs,
        max_pairs=max_pairs,
        at=at,
        budget=budget,
        retune=tuple(retune),
        factorial=tuple(factorial),
        first_seed=first_seed,
        threads=threads,
    )
    changes = read(subject, named(arms))
    places = workers_for(subject, workers, threads)
    declaration = _declared(subject, changes, asked, name, Path(root), seconds, places)
    folder = Path(root) / declaration.name
    if not (folder / DECLARATION).is_file():
        declaration.save_to(folder)
    function = subject if callable(subject) else None
    given = calls(declaration, changes)
    return _go_on(folder, declaration, Ledger(ledger), function, given, seconds, started, workers, ray, keep, quiet)


def resume(
    folder: Path | str,
    *,
    seconds: float | None = None,
    workers: int | None = None,
    ray: str | None = None,
    ledger: Path | str = LEDGER,
    keep: bool = False,
    quiet: bool = False,
) -> Verdicts:
    """Go on with a trial that was stopped or killed, to the verdict that it would have had.

    Raises:
        RunError: no such trial, or it is one of a function, which only :func:`prove` itself can call again.
    """
    folder = Path(folder)
    folder = folder if folder.is_dir() else Path(TRIALS) / folder
    declaration = Declaration.open(folder)
    if declaration.kind == "function":
        raise RunError(f"trial '{folder}' is of a Python function; call kp.prove with it again")
    return _go_on(folder, declaration, Ledger(ledger), None, {}, seconds, time.monotonic(), workers, ray, keep, quiet)


def _declared(
    subject: Subject,
    changes: Mapping[str, Any],
    asked: Asked,
    name: str | None,
    root: Path,
    seconds: float | None,
    workers: int,
) -> Declaration:
    """A new declaration, or the one that is there already, if it is the same."""
    shown, words = identity(subject, changes, asked, name)
    folder = root / shown
    if not (folder / DECLARATION).is_file():
        return make(subject, changes, asked, name, seconds, workers)
    before = Declaration.open(folder)
    before.check_same(words, folder)
    return before


def _go_on(
    folder: Path,
    declaration: Declaration,
    ledger: Ledger,
    function: Callable[..., float] | None,
    calls: Mapping[str, Mapping[str, Any]],
    seconds: float | None,
    started: float,
    workers: int | None,
    ray: str | None,
    keep: bool,
    quiet: bool,
) -> Verdicts:
    with _alone(folder):
        found = Verdicts.open(folder) if (folder / VERDICT).is_file() else None
        if found is not None and all(verdict.final for verdict in found):
            return found
        record = Record(folder, declaration, ledger, keep)
        with TrialDisplay(declaration.name, quiet) as display, stop_signals() as request:
            runner = _runner(folder, declaration, function, workers, ray)
            with closing(runner) as judged:
                deadline = None if seconds is None else started + seconds
                judged.append(Session(record, runner, display, request, deadline, calls).run())
        if all(verdict.final for verdict in judged[0]):
            record.drop_unfinished()
        judged[0].save_to(folder)
        return judged[0]


def _runner(
    folder: Path, declaration: Declaration, function: Callable[..., float] | None, workers: int | None, ray: str | None
) -> Runner:
    if function is not None:
        return Here(function)
    subject: Subject = "command"
    if declaration.kind == "recipe":
        subject = Recipe.from_value(next(iter(declaration.work.values())))
    devices = devices_for(subject) if isinstance(subject, Recipe) else 0
    if ray is not None:
        return Ray(ray, declaration.threads, min(1, devices))
    return Local(workers_for(subject, workers, declaration.threads), declaration.threads, folder, devices)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process works on this trial."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"another process is at work on trial '{folder}'; wait until it ends, or stop it") from error
    try:
        yield
    finally:
        lock.release()
