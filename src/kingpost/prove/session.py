"""A trial under way: which run comes next, what the looks say, when to stop, and the verdict."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kingpost.errors import RunError
from kingpost.prove import retune
from kingpost.prove.judge import plain_look, verdicts
from kingpost.prove.progress import TrialDisplay
from kingpost.prove.questions import Question, State, replay
from kingpost.prove.record import Outcome, Record
from kingpost.prove.runner import Job, Runner
from kingpost.recipe import Recipe
from kingpost.train.guards import StopRequest
from kingpost.verdict import Verdicts

POLL_SECONDS = 0.5


class TrialStopped(RunError):  # noqa: N818 - as KeyboardInterrupt: somebody's wish, no fault
    """A trial that somebody stopped; it can be gone on with.

    Args:
        message: says how.
        signal: that stopped it.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass
class Session:
    """One sitting of a trial.

    Args:
        record: what is on the disk.
        runner: where runs are done.
        display: what a person sees.
        request: whether somebody asked to stop.
        deadline: ``time.monotonic()`` after which nothing goes on; None for no limit.
        changes: keyword arguments of each arm, for a function.
    """

    record: Record
    runner: Runner
    display: TrialDisplay
    request: StopRequest
    deadline: float | None = None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    under_way: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    ended: int = 0

    def run(self) -> Verdicts:
        """Search, pair after pair, and judge; stops when all questions are answered or the time is up."""
        record = self.record
        record.declare()
        in_time = self._retune() if record.declaration.retune else True
        state = self._pairs() if in_time else self._state()
        return verdicts(self.record, state, self.outcomes, self.tuned)

    # ---- the pairs

    def _pairs(self) -> State:
        for job in self._jobs(self.record.declaration.questions, 0):
            if (outcome := self.record.outcome_of(job)) is not None:
                self.outcomes[job["arm"], job["seed"]] = outcome
        state = self._state()
        self._say_looks(state, 0)
        while not state.done:
            self._check_stop()
            before = state.pairs
            asked = [q for q in self.record.declaration.questions if q.name in state.open]
            self._start(self._jobs(asked, state.pairs))
            if not self.under_way:
                break  # the time is up
            self._show(state)
            for job, outcome in self._finished():
                self.outcomes[job["arm"], job["seed"]] = outcome
            state = self._state()
            self._say_looks(state, before)
            if self._is_late():
                break
        return state

    def _state(self) -> State:
        d = self.record.declaration
        values = {key: outcome["value"] for key, outcome in self.outcomes.items()}
        return replay(d.questions, d.test, d.seed, values, d.higher_is_better)

    def _jobs(self, asked: Sequence[Question], first: int) -> Iterator[Job]:
        """The runs that the open questions need, in the order of seeds, baseline first."""
        d = self.record.declaration
        needed = {arm for question in asked for arm in question.weights}
        for index in range(first, d.max_pairs):
            for arm in d.work:
                if arm in needed:
                    yield self._job(arm, d.seed(index))

    def _job(self, arm: str, seed: int) -> Job:
        d = self.record.declaration
        work = d.work[arm]
        if arm in self.tuned:
            work = retune.changed(Recipe.from_value(work), self.tuned[arm]).to_value()
        job = self.record.job(arm, seed, work)
        return job | {"changes": dict(self.changes.get(arm, {}))} if d.kind == "function" else job

    def _start(self, jobs: Iterator[Job]) -> None:
        """Fill the free places; a pair is begun only if the time allows for the whole of it."""
        fits: dict[int, bool] = {}
        begun = {int(name.rpartition("-")[2]) for name in self.under_way}
        begun |= {seed for _, seed in self.outcomes}
        for job in jobs:
            if len(self.under_way) >= self.runner.slots:
                return
            if job["id"] in self.under_way or (job["arm"], job["seed"]) in self.outcomes:
                continue
            if not fits.setdefault(job["seed"], job["seed"] in begun or self._fits()):
                return
            self.under_way[job["id"]] = time.monotonic()
            self.runner.start(job)

    def _fits(self) -> bool:
        """Whether one more pair would end in time, going by the runs so far."""
        if self.deadline is None:
            return True
        return time.monotonic() + self._pair_seconds() <= self.deadline

    def _pair_seconds(self) -> float:
        """Wall time of one seed of every arm: measured, or estimated before the first has ended."""
        d = self.record.declaration
        runs = [
            sum(seen) / len(seen) if (seen := self.seconds.get(arm)) else d.known.get(arm, {}).get("run_seconds", 0.0)
            for arm in d.work
        ]
        return max(max(runs, default=0.0), sum(runs) / max(1, min(self.runner.slots, len(runs))))

    def _finished(self) -> list[tuple[Job, Outcome]]:
        """What has ended since; written to the ledger."""
        found = []
        for job, outcome in self.runner.wait(POLL_SECONDS):
            started = self.under_way.pop(job["id"])
            if outcome["status"] == "unusable":
                go_on = f"once that is mended, go on with: kingpost prove --resume {self.record.folder}"
                raise RunError(f"{job['id'].replace('.', ' ')} could not be run: {outcome['message']}; {go_on}")
            if outcome["status"] == "stopped":  # not by us: somebody stopped the worker
                self.request.signal = self.request.signal or 15
                continue
            self.ended += 1
            if self.ended > self.runner.slots:  # the first ones waited for their worker to start
                self.seconds.setdefault(job["arm"], []).append(time.monotonic() - started)
            self.record.note(job, outcome)
            found.append((job, outcome))
        return found

    def _check_stop(self) -> None:
        if self.request.signal:
            said = f"stopped; what is done stays. Go on with: kingpost prove --resume {self.record.folder}"
            raise TrialStopped(said, self.request.signal)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _show(self, state: State) -> None:
        d = self.record.declaration
        left = (d.max_pairs - state.pairs) * self._pair_seconds()
        if self.deadline is not None:
            left = min(left, max(0.0, self.deadline - time.monotonic()))
        self.display.now(f"pair {state.pairs + 1} of at most {d.max_pairs}", state.pairs / d.max_pairs, left or None)

    def _say_looks(self, state: State, before: int) -> None:
        """Write and show the looks that are new."""
        for name, looks in state.looks.items():
            for look in looks:
                new = ("look", f"{name} {look.pairs}") not in self.record.written
                says = f"{name} after {look.pairs} pairs: {look.decision}; {look.reason}"
                self.record.write("look", f"{name} {look.pairs}", says, plain_look(look))
                if new or look.pairs > before:
                    self.display.look(name, look)

    # ---- the small search

    def _retune(self) -> bool:
        """The same search for every arm; False if the time is up."""
        d = self.record.declaration
        scores = {arm: self._searched(arm) for arm in d.work}
        while any(None in of_arm.values() for of_arm in scores.values()):
            self._check_stop()
            for arm, of_arm in scores.items():
                for (number, seed), score in of_arm.items():
                    job = self._candidate(arm, number, seed)
                    if score is None and job["id"] not in self.under_way and len(self.under_way) < self.runner.slots:
                        self.under_way[job["id"]] = time.monotonic()
                        self.runner.start(job)
            self.display.now("the small search", 0.0, None)
            for job, outcome in self._finished():
                scores[job["arm"]][job["candidate"], job["seed"]] = [outcome["value"]]
            if self._is_late():
                return False
        self.seconds.clear()
        self.tuned = {arm: self._chosen(arm, of_arm) for arm, of_arm in scores.items()}
        for arm, values in self.tuned.items():
            words = ", ".join(f"{key} {value}" for key, value in values.items())
            self.record.write("retuned", arm, f"{arm}: {words}", {"arm": arm, "chosen": values, "tried": d.retune})
        return True

    def _searched(self, arm: str) -> dict[tuple[int, int], list[float | None] | None]:
        """(candidate, seed) -> its value in a list, or None if it is not done."""
        found: dict[tuple[int, int], list[float | None] | None] = {}
        for number, _ in enumerate(retune.candidates(self.record.declaration.retune, arm)):
            for seed in range(retune.FIRST_SEED, retune.FIRST_SEED + retune.SEEDS):
                outcome = self.record.outcome_of(self._candidate(arm, number, seed))
                found[number, seed] = None if outcome is None else [outcome["value"]]
        return found

    def _candidate(self, arm: str, number: int, seed: int) -> Job:
        d = self.record.declaration
        values = list(retune.candidates(d.retune, arm))[number]
        work = retune.changed(Recipe.from_value(d.work[arm]), values).to_value()
        return self.record.job(arm, seed, work, f"retune-{number}") | {"candidate": number}

    def _chosen(self, arm: str, scores: Mapping[tuple[int, int], list[float | None] | None]) -> dict[str, Any]:
        d = self.record.declaration
        every = list(retune.candidates(d.retune, arm))
        values = [
            [v for (k, _), score in scores.items() if k == number for v in score or []] for number in range(len(every))
        ]
        return every[retune.best(values, d.higher_is_better)]


@contextlib.contextmanager
def closing(runner: Runner) -> Iterator[list[Verdicts]]:
    """A list for the verdicts; runs under way when it ends are saved, unless all verdicts are final."""
    found: list[Verdicts] = []
    try:
        yield found
    finally:
        runner.close(saving=not (found and all(verdict.final for verdict in found[0])))
