"""Where runs are done: worker processes on this machine, a Ray cluster, or this very process."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kingpost.errors import MissingExtraError, RecipeError, RunError
from kingpost.files import write_json
from kingpost.prove.worker import OUTCOME

Job = dict[str, Any]
Done = tuple[Job, dict[str, Any]]  # a job and its outcome

TRIES = 2  # of a run whose process dies without a word
STOP_SECONDS = 60.0  # for runs under way to save and end
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Runner(ABC):
    """Does jobs, ``slots`` at a time."""

    slots: int

    @abstractmethod
    def start(self, job: Job) -> None:
        """Begin a job; only when fewer than ``slots`` are under way."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Done]:
        """The jobs that have ended, after at most so many seconds."""

    @abstractmethod
    def close(self, saving: bool) -> None:
        """End what is under way, and everything else; with ``saving``, so that it can be gone on with."""


class Local(Runner):
    """Worker processes on this machine, each on processor cores of its own.

    Args:
        workers: how many.
        threads: of each.
        folder: where the jobs and the log go.
        devices: accelerators to share out, by number; none for the processor.
    """

    def __init__(self, workers: int, threads: int, folder: Path, devices: int = 0) -> None:
        self.slots, self.folder = workers, folder
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
        self.log = (folder / "workers.log").open("ab")
        self.processes = [self._start_worker(number, threads, devices) for number in range(workers)]
        self.jobs: dict[int, Job] = {}
        self.tries: dict[str, int] = {}

    def start(self, job: Job) -> None:
        """Hand a job to a worker that has none."""
        number = next(number for number in range(self.slots) if number not in self.jobs)
        path = self.folder / "jobs" / f"{job['id']}.json"
        write_json(path, job)
        self.jobs[number] = job
        self._say(number, f"run {path.absolute()}")

    def wait(self, seconds: float) -> list[Done]:
        """Outcomes of the workers that have answered; a run whose process died is tried once more."""
        found: list[Done] = []
        with selectors.DefaultSelector() as selector:
            for number in self.jobs:
                selector.register(self._pipe(number), selectors.EVENT_READ, number)
            for key, _ in selector.select(seconds):
                number = int(key.data)
                answer = self.processes[number].stdout.readline()  # type: ignore[union-attr]
                if not answer:
                    raise RunError(f"a worker ended by itself; see {self.folder / 'workers.log'}")
                job = self.jobs.pop(number)
                path = self.folder / "jobs" / f"{job['id']}.json"
                outcome = json.loads(path.with_suffix(".done").read_text(encoding="utf-8"))
                path.unlink()
                path.with_suffix(".done").unlink()
                if outcome["status"] != "died":
                    found.append((job, outcome))
                elif (tries := self.tries.setdefault(job["id"], 1)) < TRIES:
                    self.tries[job["id"]] = tries + 1
                    self.start(job)
                else:
                    found.append((job, _as_failed(job, outcome["message"])))
        return found

    def end(self, job: Job) -> None:
        """Let a run that is under way save and end; :meth:`wait` then gives it as stopped, unless it was quicker."""
        for number, mine in self.jobs.items():
            if mine["id"] == job["id"]:
                self._say(number, "end")

    def close(self, saving: bool) -> None:
        """Ask for an end, then insist."""
        for number, process in enumerate(self.processes):
            if saving:
                self._say(number, "stop")
            if process.stdin:
                process.stdin.close()
        until = time.monotonic() + (STOP_SECONDS if saving else 5.0)
        for process in self.processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
        self.log.close()

    def _start_worker(self, number: int, threads: int, devices: int) -> subprocess.Popen[str]:
        environment = os.environ | dict.fromkeys(THREADS, str(threads))
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % devices)
        words = [sys.executable, "-m", "kingpost.prove.worker", str(number), str(threads)]
        return subprocess.Popen(
            [*words, *map(str, _cores(number, self.slots, threads))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )

    def _say(self, number: int, line: str) -> None:
        pipe = self.processes[number].stdin
        assert pipe is not None
        try:
            pipe.write(f"{line}\n")
            pipe.flush()
        except BrokenPipeError as error:
            if line != "stop":
                raise RunError(f"a worker ended by itself; see {self.folder / 'workers.log'}") from error

    def _pipe(self, number: int) -> Any:
        return self.processes[number].stdout


class Here(Runner):
    """One call after another in this very process: for a function of the caller's.

    Args:
        function: ``(seed, **changes) -> float``.
    """

    slots = 1

    def __init__(self, function: Callable[..., float]) -> None:
        self.function = function
        self.ended: list[Done] = []

    def start(self, job: Job) -> None:
        """Call it now."""
        started = time.monotonic()
        try:
            value = float(self.function(job["seed"], **job["changes"]))
            fine = abs(value) < float("inf")
            outcome: dict[str, Any] = (
                {"status": "finished", "value": value, "message": ""} if fine else _failed(f"gave {value}")
            )
        except Exception as error:
            outcome = _failed(f"{type(error).__name__}: {error}")
        figures: dict[str, Any] = {
            "seconds": time.monotonic() - started,
            "peak_memory_mebibytes": None,
            "steps": None,
            "curve": [],
        }
        outcome |= figures
        write_json(Path(job["folder"]) / OUTCOME, outcome)
        self.ended.append((job, outcome))

    def wait(self, seconds: float) -> list[Done]:
        """What was called since."""
        found, self.ended = self.ended, []
        return found

    def close(self, saving: bool) -> None:
        """Nothing is under way."""


class Ray(Runner):
    """A Ray cluster: each job is a task on some node, in a folder of its own there; only its outcome comes back.

    A run that is interrupted starts over.

    Args:
        address: of the cluster (``auto``, ``ray://host:10001``), or ``local`` for one on this machine.
        threads: processor cores of each task.
        devices: accelerators of each task.
    """

    def __init__(self, address: str, threads: int, devices: int = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", extra="ray", purpose="a Ray cluster") from error
        self.ray = ray
        settings: dict[str, Any] = {} if address == "local" else {"address": address}
        try:
            ray.init(**settings, ignore_reinit_error=True, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RecipeError(f"no Ray cluster at '{address}': {error}", path="--ray") from error
        self.slots = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        variables = dict.fromkeys(THREADS, str(threads))
        options = {"num_cpus": threads, "num_gpus": devices, "max_retries": 2, "runtime_env": {"env_vars": variables}}
        self.task = ray.remote(**options)(elsewhere)
        self.jobs: dict[Any, Job] = {}

    def start(self, job: Job) -> None:
        """Send a job to the cluster."""
        self.jobs[self.task.remote(job)] = job

    def wait(self, seconds: float) -> list[Done]:
        """Outcomes that have come back; written into the run's folder here."""
        ready, _ = self.ray.wait(list(self.jobs), num_returns=1, timeout=seconds)
        found = []
        for reference in ready:
            job = self.jobs.pop(reference)
            try:
                outcome = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:  # the node or the task's process is gone, not once but thrice
                outcome = _as_failed(job, str(error).partition("\n")[0])
            if outcome["status"] != "unusable":
                write_json(Path(job["folder"]) / OUTCOME, outcome)
            found.append((job, outcome))
        return found

    def close(self, saving: bool) -> None:
        """Cancel what is under way; the cluster stays."""
        for reference in self.jobs:
            self.ray.cancel(reference, force=True)
        self.ray.shutdown()


def elsewhere(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job on another machine, in a folder that goes when it ends."""
    import tempfile

    import torch

    from kingpost.prove.worker import execute

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        here = str(Path(folder) / Path(job["folder"]).name)
        return execute(
            {**job, "folder": here, "cwd": job["cwd"] if Path(job["cwd"]).is_dir() else folder, "keep": True}
        )


def cores() -> list[int]:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cores(number: int, workers: int, threads: int) -> list[int]:
    """The cores of one worker; none if there is nothing to keep apart, or too few to share out."""
    every = cores()
    if workers == 1 or workers * threads > len(every):
        return []
    return every[number * threads : (number + 1) * threads]


def _failed(message: str) -> dict[str, Any]:
    return {"status": "failed", "value": None, "message": message}


def _as_failed(job: Job, message: str) -> dict[str, Any]:
    """The outcome of a run whose process died again and again."""
    nothing: dict[str, Any] = {"seconds": None, "peak_memory_mebibytes": None, "steps": None, "curve": []}
    outcome = _failed(message) | nothing
    write_json(Path(job["folder"]) / OUTCOME, outcome)
    return outcome
