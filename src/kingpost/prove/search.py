"""A search under way: which point comes next, which runs are ended early, and what becomes of those that were killed.

All that must outlive a process is in Optuna's storage: the points, the scores, who works on what. A sitting is one
process; while it lives it holds a lock in the search's folder, and counts up a number in the storage. A trial whose
sitting is gone is marked as failed there, and its point is put back in the queue; if its run's folder is here, the run
goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from kingpost.errors import DataError, RecipeError, RunError
from kingpost.ledger import Ledger
from kingpost.patch import Patch
from kingpost.prove import budgets, optuna_study
from kingpost.prove.progress import TrialDisplay
from kingpost.prove.runner import Job, Local, Runner
from kingpost.prove.session import POLL_SECONDS, TrialStopped
from kingpost.prove.space import Space
from kingpost.prove.survey import Survey, survey
from kingpost.prove.tuning import Tried, finite
from kingpost.prove.worker import _prune
from kingpost.recipe import Recipe
from kingpost.run import read_rows
from kingpost.seeds import derive
from kingpost.train.guards import StopRequest

if TYPE_CHECKING:
    import optuna

FIRST_SEED = 2_000_000  # of every run of a search; no proof's pair and no small search uses it
BEAT_SECONDS, GONE_SECONDS = 20.0, 120.0  # how often a sitting shows that it lives, and when the others give it up
MOST_TRIES = 3  # of a trial whose whole process dies
LOCK_TRIES = 100  # to begin a run whose killed predecessor has not quite ended
THE_PATCHS_FAULT = ("RecipeError", "MemoryError")
SAVE = {"save.every_seconds": 60.0, "save.keep": 1, "save.report": False, "save.tensorboard": False}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is fixed before the first trial."""

    name: str
    asked: Mapping[str, Any]
    """In plain values: what makes two searches the same."""
    column: str
    metric: str
    higher_is_better: bool
    at: str
    budget: str
    budget_asked: str | None
    seed: int
    threads: int
    known: Survey
    run_seconds: float

    def to_value(self) -> dict[str, Any]:
        """As plain values for the declaration."""
        left_out = ("known", "budget_asked")
        return {key: value for key, value in vars(self).items() if key not in left_out}

    def known_of(self, recipe: Recipe) -> Survey:
        """What is known of a trial's recipe, as far as its budget needs it."""
        if budgets.parsed(self.budget_asked)[0] == "flops":
            return survey(recipe, measure=False)
        whole = math.ceil(self.known.samples / recipe.batch_size)
        return dataclasses.replace(self.known, steps_per_epoch=whole)


@dataclass
class UnderWay:
    """A trial that runs."""

    trial: optuna.Trial
    job: Job
    total: float
    """Steps, or seconds, of its whole budget."""
    in_seconds: bool
    shown: int = 0
    """Rows of its results that were reported."""
    ended: bool = False
    began: float = field(default_factory=time.monotonic)
    tries: int = 0


class Search:
    """One sitting of a search.

    Args:
        plan: what is fixed.
        space: what is searched.
        study: where points and scores are kept.
        runner: where runs are done.
        folder: of the search.
        ledger: where a row for each trial goes.
        display: what a person sees.
        request: whether somebody asked to stop.
        sampler: name of it.
        wanted: how many trials, over all sittings; None for as many as fit the time.
        deadline: ``time.monotonic()`` after which no trial is begun.
        keep: keep the weights of all runs.
    """

    def __init__(
        self,
        plan: Plan,
        space: Space,
        study: optuna.Study,
        runner: Runner,
        folder: Path,
        ledger: Ledger,
        display: TrialDisplay,
        request: StopRequest,
        sampler: str,
        wanted: int | None,
        deadline: float | None = None,
        keep: bool = False,
    ) -> None:
        self.plan, self.space, self.study, self.runner, self.folder = plan, space, study, runner, folder
        self.ledger, self.display, self.request, self.keep = ledger, display, request, keep
        self.sampler, self.wanted, self.deadline = sampler, wanted, deadline
        self.me = f"{os.uname().nodename if hasattr(os, 'uname') else 'here'}-{uuid.uuid4().hex[:12]}"
        self.under_way: dict[str, UnderWay] = {}
        self.seconds: list[float] = []
        self.beats = 0
        self.next_beat = 0.0
        self.seen: dict[str, tuple[Any, float]] = {}
        self.gone: set[str] = set()

    def run(self) -> None:
        """Trial after trial until there are enough or the time is up; waits for those of other sittings.

        Raises:
            TrialStopped: a signal stopped it; the trials under way are handed back.
            RunError: a run could not be done for a reason that is not the patch's.
        """
        self._lock_of(self.me).parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock_of(self.me))
        lock.acquire()
        try:
            with self._alone():
                self._queue_first()
            while self._step():
                pass
        finally:
            self.runner.close(saving=True)
            self._hand_back()
            self._lock_of(self.me).unlink(missing_ok=True)
            lock.release()

    def _step(self) -> bool:
        """A round: what was killed, what comes next, what is hopeless, what has ended; False when all is done."""
        if self.request.signal:
            raise TrialStopped("stopped; what is done stays, and the same command goes on", self.request.signal)
        self._beat()
        others = self._requeue()
        self._fill()
        if not self.under_way:
            if not others or self._is_late():
                return False
            self.display.now(f"waiting for {others} trials of other processes", 1.0, None)
            time.sleep(POLL_SECONDS)
            return True
        self._watch()
        self._show()
        for job, outcome in self.runner.wait(POLL_SECONDS):
            self._ended(job, outcome)
        return True

    # ---- what comes next

    def _queue_first(self) -> None:
        """A new study begins with the start, or with all points of a grid."""
        if self.study.get_trials(deepcopy=False):
            return
        if self.sampler == "grid":
            for point in self.space.points()[: self.wanted]:
                self.study.enqueue_trial(point)
        elif (start := self.space.start()) is not None:
            self.study.enqueue_trial(start)

    def _fill(self) -> None:
        while len(self.under_way) < self.runner.slots and not self._is_late():
            with self._alone():
                if not (trial := self._ask()):
                    return
            self._begin(trial)

    def _ask(self) -> optuna.Trial | None:
        """The next trial, unless there are enough; its draws follow from the seed and the number of trials before."""
        states = self._states()
        made = len(self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.RUNNING)))
        if self.wanted is not None and made >= self.wanted:
            return None
        self.study.sampler = optuna_study.sampler_of(self.sampler, derive(self.plan.seed, "tune", made))
        trial = self.study.ask()
        trial.set_user_attr("owner", self.me)
        return trial

    def _begin(self, trial: optuna.Trial) -> None:
        """Start the run of a trial, or note why there can be none."""
        number = trial.user_attrs.get("continues", trial.number)
        folder = self.folder / "runs" / f"trial-{number}"
        try:
            patch = self.space.patch(trial)
            trial.set_user_attr("patch", str(patch))
            trial.set_user_attr("changes", patch.to_value())
            recipe = self._recipe(patch)
        except (RecipeError, DataError) as error:
            self._note(trial, "failed", None, 0.0, f"{type(error).__name__}: {error}")
            return
        if "continues" not in trial.user_attrs:
            shutil.rmtree(folder, ignore_errors=True)  # of a study that is no more
        job = self._job(number, recipe, folder)
        in_seconds = recipe.budget.seconds is not None
        steps = recipe.budget.steps or self.plan.known_of(recipe).steps_per_epoch * (recipe.budget.epochs or 1)
        self.under_way[job["id"]] = UnderWay(trial, job, recipe.budget.seconds or steps, in_seconds)
        self.runner.start(job)

    def _recipe(self, patch: Patch) -> Recipe:
        plan, start = self.plan, self.space.recipe
        made = start.patched(patch)
        known = {"baseline": plan.known, "trial": plan.known_of(made)}
        equal, _ = budgets.equal(plan.budget_asked, start, {"baseline": start, "trial": made}, known)
        return equal["trial"].patched({"layout.threads": plan.threads, **SAVE})

    def _job(self, number: int, recipe: Recipe, folder: Path) -> Job:
        return {
            "id": f"trial-{number}",
            "kind": "recipe",
            "arm": f"trial-{number}",
            "seed": FIRST_SEED,
            "work": recipe.to_value(),
            "folder": str(folder.absolute()),
            "cwd": str(Path.cwd()),
            "column": self.plan.column,
            "metric": self.plan.metric,
            "at": self.plan.at,
            "higher_is_better": self.plan.higher_is_better,
            "keep": self.keep,
        }

    # ---- what goes on

    def _watch(self) -> None:
        """Report new rows of the results, and end the runs that are hopeless."""
        for one in self.under_way.values():
            if not one.ended and self._report(one) and one.trial.should_prune() and isinstance(self.runner, Local):
                one.ended = True
                self.runner.end(one.job)

    def _report(self, one: UnderWay) -> bool:
        """Whether there was something new, and the run is not at its end."""
        rows = read_rows(Path(one.job["folder"]) / "results.csv")
        percent = 0
        for row in rows[one.shown :]:
            percent = min(100, round(100 * row["seconds" if one.in_seconds else "step"] / one.total))
            if self.plan.column in row:
                one.trial.report(float(row[self.plan.column]), percent)
        new, one.shown = len(rows) > one.shown, max(one.shown, len(rows))
        return new and percent < 100

    def _ended(self, job: Job, outcome: Mapping[str, Any]) -> None:
        one = self.under_way[job["id"]]
        status, message = outcome["status"], outcome.get("message", "")
        if status == "unusable" and "another process is at work" in message and one.tries < LOCK_TRIES:
            one.tries += 1
            time.sleep(POLL_SECONDS / 5)
            self.runner.start(job)
            return
        if status == "unusable" and not message.startswith(THE_PATCHS_FAULT):
            raise RunError(f"{job['id']} could not be run: {message}; once that is mended, the same command goes on")
        if status == "stopped" and not one.ended:  # not by us: somebody stopped the worker
            self.request.signal = self.request.signal or 15
            return
        del self.under_way[job["id"]]
        self._report(one)
        seconds = time.monotonic() - one.began
        if status == "stopped":
            _prune(Path(job["folder"])) if not self.keep else None
            self._note(one.trial, "pruned", None, seconds, "")
        elif status == "finished":
            self.seconds.append(seconds)
            self._note(one.trial, "finished", outcome["value"], outcome.get("seconds") or seconds, "")
        else:
            self._note(one.trial, "failed", None, seconds, message)

    def _note(self, trial: optuna.Trial, status: str, value: float | None, seconds: float, message: str) -> None:
        """Keep an outcome: first in the ledger, then in the study.

        For the sampler a failed trial counts as pruned before its first score, which is the worst there is: told as
        failed, it would be forgotten, and the next ones would go the same way.
        """
        number = trial.user_attrs.get("continues", trial.number)
        patch = trial.user_attrs.get("patch", "")
        said = f"{self.plan.metric} {value:.6g}" if value is not None else status + (f" ({message})" if message else "")
        body = {"says": f"trial {number}: {said}; {patch or 'the start'}", "number": number, "status": status}
        body |= {"value": value, "patch": patch, "point": trial.params, "seconds": seconds, "message": message}
        again = "continues" in trial.user_attrs  # a kill may have come between this row and the study
        rows = self.ledger.entries(trial=self.plan.name, kind="tuning") if again else []
        if not any(row.body.get("number") == number and row.body.get("status") for row in rows):
            self.ledger.append("tuning", self.plan.name, {"key": f"trial {number}", **body})
        for key, item in {"status": status, "seconds": round(seconds, 3), "message": message}.items():
            trial.set_user_attr(key, item)
        states = self._states()
        with contextlib.suppress(ValueError):  # given up by others while this process slept, and done again there
            self.study.tell(trial, value, state=states.COMPLETE if status == "finished" else states.PRUNED)
        self.display.say(f"trial {number:>3}  {said:<24}  {patch or '(the start)'}")

    def _show(self) -> None:
        done = len(tried(self.study))
        said = f"trial {done + 1}" + (f" of {self.wanted}" if self.wanted else "")
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        self.display.now(said, done / self.wanted if self.wanted else 0.0, left)

    def _is_late(self) -> bool:
        """Whether one more trial would not end in time, going by those so far."""
        if self.deadline is None:
            return False
        each = sum(self.seconds) / len(self.seconds) if self.seconds else self.plan.run_seconds
        return time.monotonic() + each > self.deadline

    # ---- several processes, and kills

    @contextlib.contextmanager
    def _alone(self) -> Any:
        with FileLock(self.folder / ".ask.lock"):
            yield

    def _lock_of(self, owner: str) -> Path:
        return self.folder / ".sittings" / f"{owner}.lock"

    def _beat(self) -> None:
        if time.monotonic() >= self.next_beat:
            self.beats += 1
            self.study.set_user_attr(f"beat {self.me}", self.beats)
            self.next_beat = time.monotonic() + BEAT_SECONDS

    def _requeue(self) -> int:
        """Put back the trials whose sitting is gone; how many are under way elsewhere."""
        states, elsewhere = self._states(), 0
        for frozen in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            owner = frozen.user_attrs.get("owner", f"nobody {frozen.number}")
            if owner == self.me:
                continue
            if self._is_gone(owner):
                self._put_back(frozen)
            else:
                elsewhere += 1
        return elsewhere

    def _is_gone(self, owner: str) -> bool:
        """Whether a sitting has ended: here by its lock, elsewhere by a beat that stands still while we watch."""
        if owner in self.gone:
            return True
        path, gone = self._lock_of(owner), False
        if path.is_file():
            with contextlib.suppress(Timeout), FileLock(path, timeout=0):
                gone = True
        else:
            beat, now = self.study.user_attrs.get(f"beat {owner}"), time.monotonic()
            before, since = self.seen.setdefault(owner, (beat, now))
            if before != beat:
                self.seen[owner] = (beat, now)
            gone = before == beat and now - since > GONE_SECONDS
        if gone:
            self.gone.add(owner)
        return gone

    def _put_back(self, frozen: optuna.trial.FrozenTrial) -> None:
        """Fail a trial in the study, and queue its point again; only one of several processes can."""
        states = self._states()
        number, tries = frozen.user_attrs.get("continues", frozen.number), frozen.user_attrs.get("tries", 1)
        if tries >= MOST_TRIES:
            trial = optuna_study.load_optuna().trial.Trial(self.study, frozen._trial_id)
            self._note(trial, "failed", None, 0.0, f"its process died {tries} times")
            return
        try:
            self.study.tell(frozen.number, state=states.FAIL)
        except ValueError:
            return
        self.study.enqueue_trial(frozen.params, user_attrs={"continues": number, "tries": tries + 1})
        self.display.say(f"trial {number:>3}  its process is gone; it goes on here")

    def _hand_back(self) -> None:
        """On the way out: trials under way are put back at once, so that nobody has to miss this sitting first."""
        for frozen in self.study.get_trials(deepcopy=False, states=(self._states().RUNNING,)):
            if frozen.user_attrs.get("owner") == self.me:
                with contextlib.suppress(ValueError):
                    number, tries = frozen.user_attrs.get("continues", frozen.number), frozen.user_attrs.get("tries", 1)
                    self.study.tell(frozen.number, state=self._states().FAIL)
                    self.study.enqueue_trial(frozen.params, user_attrs={"continues": number, "tries": tries})

    @staticmethod
    def _states() -> Any:
        return optuna_study.load_optuna().trial.TrialState


def tried(study: optuna.Study) -> list[Tried]:
    """The trials that have ended, by number; those that were put back count once."""
    found = []
    for one in study.get_trials(deepcopy=False):
        if (status := one.user_attrs.get("status")) is None or not one.state.is_finished():
            continue
        curve = tuple((percent, finite(value)) for percent, value in sorted(one.intermediate_values.items()))
        found.append(
            Tried(
                number=one.user_attrs.get("continues", one.number),
                status=status,
                score=finite(one.value) if status == "finished" else None,
                patch=one.user_attrs.get("patch", ""),
                point=dict(one.params),
                changes=one.user_attrs.get("changes", {}),
                seconds=one.user_attrs.get("seconds"),
                message=one.user_attrs.get("message", ""),
                curve=curve,
            )
        )
    return sorted(found, key=lambda one: one.number)
