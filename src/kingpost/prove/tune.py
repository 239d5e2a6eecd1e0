"""Tune: search a space of patches for the best, and prove the winner on fresh seeds before it is called better."""

from __future__ import annotations

import datetime
import json
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

import kingpost
from kingpost.errors import RecipeError
from kingpost.figure import readable
from kingpost.files import write_json, write_text
from kingpost.ledger import LEDGER, Ledger
from kingpost.patch import Patch
from kingpost.prove import budgets, optuna_study, trial
from kingpost.prove.declare import SLACK, START_SECONDS
from kingpost.prove.places import devices_for, workers_for
from kingpost.prove.progress import TrialDisplay
from kingpost.prove.runner import Local, Runner
from kingpost.prove.search import Plan, Search, tried
from kingpost.prove.session import TrialStopped
from kingpost.prove.space import DEFAULT, Space
from kingpost.prove.space_default import default_words
from kingpost.prove.survey import Survey, column_of, direction_of, smallest_of, survey
from kingpost.prove.tuning import WINNER, Tried, Tuning
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.train.guards import stop_signals
from kingpost.verdict import Verdicts

TUNED, DECLARATION = "tuned", "declaration.json"
TRIALS, SEARCH_SHARE = 30, 2 / 3  # of the time, the rest is for the proof
ARM = "winner"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a search would take, before anything is spent."""

    name: str
    space: tuple[str, ...]
    metric: str
    budget: str
    trials: int | None
    points: int | None
    run_seconds: float
    seconds: float | None
    workers: int

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        count = "as many as fit the time" if self.trials is None else f"{self.trials}"
        grid = f" of {self.points} points" if self.points else ""
        took = "" if self.seconds is None else f", about {readable(self.seconds, 'seconds')} without pruning"
        lines = [f"search     {self.name}: {self.metric}; {self.budget}"]
        lines += [f"space      {word}" for word in self.space]
        lines.append(f"trials     {count}{grid}, {self.workers} at a time, {self.run_seconds:.3g} s each{took}")
        return "\n".join([*lines, "then       the winner is proved against the start on fresh seeds"])


def tune(
    recipe: Recipe,
    space: Sequence[str] = (DEFAULT,),
    *,
    trials: int | None = None,
    seconds: float | None = None,
    metric: str | None = None,
    direction: Literal["max", "min"] | None = None,
    smallest_effect: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    min_pairs: int | None = None,
    max_pairs: int | None = None,
    at: Literal["last", "best"] = "last",
    budget: str | None = None,
    sampler: str = "tpe",
    pruner: str = "median",
    storage: str | None = None,
    seed: int = 0,
    threads: int = 1,
    workers: int | None = None,
    proof: bool = True,
    name: str | None = None,
    root: Path | str = TUNED,
    ledger: Path | str = LEDGER,
    keep: bool = False,
    quiet: bool = False,
) -> Tuning:
    """Search a space for the patch with the best validation metric, then prove it against the recipe as it is.

    Every trial is a run of the patched recipe with the same seed and the same budget. The same call again goes on
    where the last one ended, also after a kill; several at once, on this machine or others with the same storage,
    share the work.

    Args:
        recipe: the start.
        space: ``key=low..high``, ``key=low..high:log``, ``key=a,b,c``; ``default`` stands for what the recipe suggests.
        trials: how many, the start among them; None takes 30, or what fits ``seconds``.
        seconds: no longer than this, a third of it for the proof.
        metric: any column of ``results.csv``, with or without ``validation_``; None takes the task's own.
        direction: ``max`` or ``min``; None takes what is known of the metric.
        smallest_effect: the smallest difference that matters, for the proof; None takes the metric's default.
        alpha: the proof's error rate.
        power: the proof's power.
        min_pairs: the proof's fewest pairs.
        max_pairs: the proof's most pairs; None takes 30, or what fits the time.
        at: the metric at the ``last`` epoch, or at the ``best``.
        budget: ``steps``, ``samples``, ``seconds`` or ``flops`` for every trial the same; as in ``prove``.
        sampler: ``tpe``, ``random``, ``gp``, ``qmc`` or ``grid``.
        pruner: what ends bad runs early: ``median``, ``hyperband`` or ``none``.
        storage: a database's address or a journal file; None takes a journal in the search's folder.
        seed: of the sampler.
        threads: processor threads of each run.
        workers: runs at a time; None takes as many as there are processor cores or accelerators.
        proof: False searches only; the same call with True goes on with the proof.
        name: of the folder; None takes the recipe's name.
        root: folder of all searches.
        ledger: the file that every trial is written to.
        keep: keep the weights of all runs.
        quiet: nothing on standard error.

    Raises:
        RecipeError: the space or another wish cannot be used, or a search of that name was declared otherwise.
        MissingExtraError: Optuna is not installed.
        RunError: a run could not be done for a reason that is not the patch's.
        TrialStopped: a signal stopped it; what is done is kept.
    """
    started = time.monotonic()
    optuna_study.load_optuna()
    optuna_study.sampler_of(sampler, seed)
    optuna_study.pruner_of(pruner)
    if trials is not None and trials < 1:
        raise RecipeError(f"got {trials}, expected 1 or more", path="trials")
    wishes = {
        "metric": metric,
        "direction": direction,
        "smallest_effect": smallest_effect,
        "alpha": alpha,
        "power": power,
        "min_pairs": min_pairs,
        "max_pairs": max_pairs,
        "at": at,
        "budget": budget,
        "threads": threads,
    }
    places = workers_for(recipe, workers, threads)
    made, plan = declared(recipe, space, wishes, seed, name)
    folder = Path(root) / plan.name
    _check_same(folder, plan)
    until = None if seconds is None else started + SEARCH_SHARE * seconds
    wanted = _wanted(made, trials, sampler, seconds)
    book = Ledger(ledger)
    with optuna_study.quiet():
        study = optuna_study.open_study(plan.name, storage, folder, plan.higher_is_better)
        study.pruner = optuna_study.pruner_of("none" if recipe.stages else pruner)
        _write_first(book, plan)
        if "winner" not in study.user_attrs:
            with TrialDisplay(plan.name, quiet) as display, stop_signals() as request:
                runner: Runner = Local(places, threads, folder, devices_for(recipe))
                search = Search(plan, made, study, runner, folder, book, display, request, sampler, wanted, until, keep)
                search.run()
        with FileLock(folder / ".lock"):
            best = _close(study, plan, made, book, folder)
            verdicts = None
            if proof and best is not None and best.patch:
                left = None if seconds is None else max(1.0, seconds - (time.monotonic() - started))
                places_of = {
                    "root": folder / "proof",
                    "ledger": ledger,
                    "quiet": quiet,
                    "workers": workers,
                    "keep": keep,
                }
                verdicts = _proved(recipe, best, plan, wishes, left, places_of)
            shares, note = optuna_study.importances(study)
        result = _result(study, plan, made, best, verdicts, (shares, note), folder, sampler, pruner)
        result.save_to(folder)
        write_json(folder / "importance.json", {"shares": shares, "note": note})
        if best is not None:
            _write_winner(folder, plan, made, best, result)
        if verdicts is not None:
            verdicts.save_to(folder)
        _write_last(book, plan, result)
    return result


def forecast(
    recipe: Recipe,
    space: Sequence[str] = (DEFAULT,),
    *,
    trials: int | None = None,
    seconds: float | None = None,
    sampler: str = "tpe",
    workers: int | None = None,
    seed: int = 0,
    name: str | None = None,
    **wishes: Any,
) -> Forecast:
    """What :func:`tune` would do with these arguments; nothing is written.

    Raises:
        RecipeError: as :func:`tune`.
    """
    places = workers_for(recipe, workers, wishes.get("threads", 1))
    made, plan = declared(recipe, space, wishes, seed, name)
    wanted = _wanted(made, trials, sampler, seconds)
    each = plan.run_seconds
    return Forecast(
        name=plan.name,
        space=tuple(map(str, made.axes)),
        metric=plan.metric,
        budget=plan.budget,
        trials=wanted,
        points=len(made.points()) if sampler == "grid" else None,
        run_seconds=each,
        seconds=None if wanted is None else math.ceil(wanted / places) * each,
        workers=places,
    )


def declared(
    recipe: Recipe, words: Sequence[str], wishes: Mapping[str, Any], seed: int, name: str | None
) -> tuple[Space, Plan]:
    """The space, and all that is fixed before the first run.

    Raises:
        RecipeError: something cannot be used as given.
    """
    words = [words] if isinstance(words, str) else list(words)
    given = [word for word in words if word != DEFAULT]
    space = Space.of(recipe, given, forgiving=default_words(recipe) if DEFAULT in words else ())
    known = survey(recipe)
    column = column_of(wishes.get("metric"), known)
    smallest_of(column, wishes.get("smallest_effect"), known)  # its error is better told before the search than after
    equal, said = budgets.equal(wishes.get("budget"), recipe, {"baseline": recipe}, {"baseline": known})
    shown = re.sub(r"[^A-Za-z0-9._+-]+", "-", name or recipe.name)[:80]
    asked = {
        "recipe": {key: value for key, value in recipe.to_value().items() if key != "name"},
        "space": [str(axis) for axis in space.axes],
        "seed": seed,
        **{key: value for key, value in wishes.items() if value is not None},
    }
    return space, Plan(
        name=shown,
        asked=json.loads(json.dumps(asked)),
        column=column,
        metric=column.removeprefix("validation_"),
        higher_is_better=direction_of(column, wishes.get("direction"), known),
        at=wishes.get("at", "last"),
        budget=said,
        budget_asked=wishes.get("budget"),
        seed=seed,
        threads=wishes.get("threads", 1),
        known=known,
        run_seconds=_run_seconds(equal["baseline"], known),
    )


def _run_seconds(recipe: Recipe, known: Survey) -> float:
    steps = recipe.budget.steps or known.steps_per_epoch * (recipe.budget.epochs or 1)
    return round(recipe.budget.seconds or (known.step_seconds or 0.0) * steps * SLACK + START_SECONDS, 2)


def _wanted(space: Space, trials: int | None, sampler: str, seconds: float | None) -> int | None:
    if sampler == "grid":
        return min(trials or math.inf, len(space.points()))  # type: ignore[return-value]
    return TRIALS if trials is None and seconds is None else trials


def _check_same(folder: Path, plan: Plan) -> None:
    """Write the declaration, or see that it is the one that is there.

    Raises:
        RecipeError: another search has this name; says where they differ.
    """
    path = folder / DECLARATION
    if not path.is_file():
        write_json(path, {**plan.to_value(), "version": kingpost.__version__, "declared_at": _now()})
        return
    before = json.loads(path.read_text(encoding="utf-8"))["asked"]
    if odd := [key for key in {**before, **plan.asked} if before.get(key) != plan.asked.get(key)]:
        was, now = (json.dumps(some.get(odd[0]))[:80] for some in (before, plan.asked))
        raise RecipeError(
            f"search '{folder}' was declared with {odd[0]} {was}, now it is {now}; what is declared stays",
            mend="start another one with --name NAME",
        )


def _write_first(ledger: Ledger, plan: Plan) -> None:
    says = f"search of {', '.join(plan.asked['space'])}: {plan.metric}, {plan.budget}"
    _once(ledger, plan.name, "declared", {"says": says, **plan.to_value()})


def _once(ledger: Ledger, name: str, key: str, body: Mapping[str, Any]) -> None:
    """A row of the ledger, unless this search has it already."""
    if not any(row.body.get("key") == key for row in ledger.entries(trial=name, kind="tuning")):
        ledger.append("tuning", name, {"key": key, **json.loads(json.dumps(body))})


def _close(study: Any, plan: Plan, space: Space, ledger: Ledger, folder: Path) -> Tried | None:
    """The winner, which stays the winner from here on; None if no trial came to an end."""
    every = tried(study)
    chosen = study.user_attrs.get("winner")
    if chosen is None:
        sign = 1 if plan.higher_is_better else -1
        whole = [one for one in every if one.status == "finished" and one.score is not None]
        if not whole:
            return None
        chosen = max(whole, key=lambda one: (sign * (one.score or 0.0), -one.number)).number
        study.set_user_attr("winner", chosen)
    best = next(one for one in every if one.number == chosen)
    says = f"winner of {len(every)} trials: trial {chosen}, {plan.metric} {best.score:.6g}, {best.patch or 'the start'}"
    body = {"says": says, "number": chosen, "score": best.score, "patch": best.patch, "trials": len(every)}
    _once(ledger, plan.name, "winner", body)
    return best


def _proved(
    recipe: Recipe, best: Tried, plan: Plan, wishes: Mapping[str, Any], left: float | None, places: Mapping[str, Any]
) -> Verdicts:
    """The winner against the start, on seeds that the search has not used."""
    try:
        return trial.prove(recipe, {ARM: _patch_of(best)}, **wishes, seconds=left, name=f"{plan.name}-{ARM}", **places)
    except TrialStopped as stopped:
        raise TrialStopped("stopped; what is done stays, and the same command goes on", stopped.signal) from None


def _patch_of(best: Tried) -> Patch:
    return Patch.of(best.changes)


def _result(
    study: Any,
    plan: Plan,
    space: Space,
    best: Tried | None,
    verdicts: Verdicts | None,
    found: tuple[dict[str, float], str],
    folder: Path,
    sampler: str,
    pruner: str,
) -> Tuning:
    every = tried(study)
    start = next((one.score for one in every if one.status == "finished" and not one.patch), None)
    notes = []
    if space.start() is None:
        notes.append("the start is no point of the space, so the search did not try it")
    if edge := [] if best is None else [axis for axis in space.axes if axis.is_edge(best.point.get(axis.name))]:
        notes.append(f"the winner is at the edge of {', '.join(map(str, edge))}; a wider range may hold a better one")
    verdict = verdicts[ARM] if verdicts else None
    return Tuning(
        name=plan.name,
        folder=str(folder),
        metric=plan.metric,
        higher_is_better=plan.higher_is_better,
        space=tuple(map(str, space.axes)),
        budget=plan.budget,
        sampler=sampler,
        pruner=pruner,
        trials=tuple(every),
        importances=found[0],
        importances_note=found[1],
        start=start,
        winner=best.number if best else None,
        patch=best.patch if best else "",
        verdict=verdict,
        test=_test_part(verdicts, plan) if verdicts else None,
        seconds=math.fsum(one.seconds or 0.0 for one in every),
        notes=tuple(notes),
    )


def _test_part(verdicts: Verdicts, plan: Plan) -> dict[str, float] | None:
    """Means on the test part, which neither the search nor the proof has looked at; None where there is none."""
    key = "loss" if plan.metric.startswith("loss") else plan.metric
    found: list[tuple[float, float]] = []
    for pair in verdicts[ARM].pairs:
        runs = (Run(Path(verdicts.folder) / "runs" / arm / f"seed-{pair.seed}") for arm in ("baseline", ARM))
        base, winner = ((run.summary.get("test") or {}).get(key) for run in runs)
        if base is not None and winner is not None:
            found.append((base, winner))
    if not found:
        return None
    base, winner = (statistics.fmean(side) for side in zip(*found, strict=True))
    return {"baseline": base, ARM: winner, "pairs": len(found)}


def _write_winner(folder: Path, plan: Plan, space: Space, best: Tried, result: Tuning) -> None:
    recipe = space.recipe.patched(_patch_of(best)) if best.patch else space.recipe
    recipe = recipe.with_(name=f"{space.recipe.name}-tuned")
    equal, _ = budgets.equal(
        plan.budget_asked, space.recipe, {"baseline": space.recipe, ARM: recipe},
        {"baseline": plan.known, ARM: plan.known_of(recipe)},
    )  # fmt: skip
    said = f"# {result.headline()}.\n# {plan.metric} {best.score:.6g} in the search."
    if (fresh := result.fresh("arm")) is not None:
        said += f" On fresh seeds {fresh:.6g}, the start {result.fresh('baseline'):.6g}."
    write_text(folder / WINNER, f"{said}\n{equal[ARM].to_yaml()}")


def _write_last(ledger: Ledger, plan: Plan, result: Tuning) -> None:
    if result.verdict is None or not result.verdict.final:
        return
    says = result.headline().partition(": ")[2]
    body = {"says": says, "decision": result.decision, "optimism": result.optimism, "test": result.test}
    _once(ledger, plan.name, "verdict", body | {"verdict_sha256": result.verdict.ledger_sha256})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
