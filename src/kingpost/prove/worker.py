"""A worker: does one run after another, each in a process of its own that starts with everything imported.

``python -m kingpost.prove.worker NUMBER THREADS [CORE ...]`` reads ``run FILE`` (a job), ``end`` (let the run save and
end, and wait for the next job) or ``stop`` on standard input and answers ``done FILE`` on standard output; what came of
the job stands in ``FILE.done``. When its standard input closes, because whoever started it is gone, it ends itself and
its run at once.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kingpost.errors import DataError, RecipeError, RunError
from kingpost.files import write_json
from kingpost.prove import command

OUTCOME = "outcome.json"
NOT_THE_ARMS_FAULT = (OSError, DataError, RunError, RecipeError, ImportError, MemoryError)
LARGE = ("weights", "checkpoints", "judged.safetensors", "splits.safetensors", "answers.json")
POLL_SECONDS = 0.05
END = "end\n"


def execute(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one run, or what is left of it; its outcome also stands in ``outcome.json`` in its folder.

    An arm that raises, diverges or is not finite has *failed*, which is an outcome. What is not the arm's doing (no
    data, a full disk, another process at work on the run) is none: the status is then ``unusable``.
    """
    folder = Path(job["folder"])
    if (folder / OUTCOME).is_file():
        found: dict[str, Any] = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        return found
    try:
        outcome = command.run_command(job) if job["kind"] == "command" else _run_recipe(job)
    except NOT_THE_ARMS_FAULT as error:
        return {"status": "unusable", "message": f"{type(error).__name__}: {error}"}
    except Exception as error:
        traceback.print_exc()
        text = str(error).partition("\n")[0][:300]
        outcome = {"status": "failed", "value": None, "message": f"{type(error).__name__}: {text}"} | _figures(job)
    if outcome["status"] != "stopped":
        write_json(folder / OUTCOME, outcome)
        if not job["keep"]:
            _prune(folder)
    return outcome


def _run_recipe(job: Mapping[str, Any]) -> dict[str, Any]:
    from kingpost.recipe import Recipe
    from kingpost.run import Run
    from kingpost.train import train

    folder = Path(job["folder"])
    recipe = Recipe.from_value(job["work"]).with_(seed=job["seed"], name=folder.name)
    run = Run(folder)
    if (folder / "recipe.yaml").is_file() and run.holds(recipe):
        train.resume(folder, quiet=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        train.train(recipe, folder.parent, quiet=True)
    if run.status == "stopped":
        return {"status": "stopped", "message": run.summary.get("message", "")}
    figures = _figures(job)
    values = [value for _, value in figures["curve"]]
    value = values[-1] if values and job["at"] == "last" else _best(values, job["higher_is_better"])
    if value is None:
        return {**figures, "status": "failed", "value": None, "message": f"{job['column']} is not finite"}
    return {**figures, "status": "finished", "value": value, "message": ""}


def _best(values: list[float | None], higher_is_better: bool) -> float | None:
    finite = [value for value in values if value is not None]
    return (max if higher_is_better else min)(finite) if finite else None


def _figures(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds, memory, steps, and the metric against time, as far as the run came."""
    from kingpost.run import Run

    run = Run(Path(job["folder"]))
    if job["kind"] != "recipe" or not run.folder.is_dir():
        return {"seconds": None, "peak_memory_mebibytes": None, "steps": None, "curve": []}
    rows, before = [], 0.0
    for stage in run.stages or [run]:
        rows += [{**row, "seconds": before + row["seconds"]} for row in stage.results]
        before += stage.summary.get("seconds", 0.0)
    memory = [row["peak_memory_mebibytes"] for row in rows]
    return {
        "seconds": run.summary.get("seconds"),
        "peak_memory_mebibytes": max(memory, default=None),
        "steps": run.summary.get("step"),
        "curve": [[row["seconds"], _finite(row[job["column"]])] for row in rows if job["column"] in row],
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _prune(folder: Path) -> None:
    for place in [folder, *folder.glob("stage-*")]:
        for name in LARGE:
            path = place / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _do(path: Path) -> None:
    """Do the job in a file, and write what came of it beside it."""
    with contextlib.suppress(RuntimeError):
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    job = json.loads(path.read_text(encoding="utf-8"))
    if job["cwd"] not in sys.path:  # as the command line does, so that `model: my_module:Net` is found
        sys.path.insert(0, job["cwd"])
    before = set(sys.modules)
    outcome = execute(job)
    write_json(path.with_suffix(".modules"), sorted(set(sys.modules) - before))
    write_json(path.with_suffix(".done"), outcome)


def _import_for_the_next(path: Path) -> None:
    """Import here what a run has imported by itself, so that the next one need not; this takes seconds each time."""
    found = path.with_suffix(".modules")
    if not found.is_file():
        return
    for name in json.loads(found.read_text(encoding="utf-8")):
        if not name.startswith("_") and name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    found.unlink()


def _die_with(read: int) -> None:
    """End at once when the other end of a pipe is closed."""

    def watch() -> None:
        os.read(read, 1)
        for child in command.FOREIGN:
            command.kill_group(child)
        os._exit(9)

    threading.Thread(target=watch, daemon=True).start()


def _begin(path: Path) -> tuple[int, int]:
    """Start a run in a process of its own; its number, and the pipe that keeps it alive."""
    read, write = os.pipe()
    if sys.platform != "linux":  # elsewhere a fork of a process with such libraries is not safe
        os.set_inheritable(read, True)
        words = [sys.executable, "-m", "kingpost.prove.worker", "--once", str(path), str(read)]
        child = subprocess.Popen(words, pass_fds=[read], stdin=subprocess.DEVNULL)
        os.close(read)
        return child.pid, write
    sys.stdout.flush()
    if pid := os.fork():
        os.close(read)
        return pid, write
    code = 1
    try:
        os.close(write)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _die_with(read)
        _do(path)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _alone(pid: int, path: Path) -> bool:
    """Wait for a run, or end it if it is not wanted; False if our starter is gone or wants us to stop."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if not path.with_suffix(".done").is_file():
                said = f"the run's process ended by signal {-code}" if code < 0 else f"exit code {code}"
                write_json(path.with_suffix(".done"), {"status": "died", "message": said})
            return True
        if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            wish = sys.stdin.readline()
            os.kill(pid, signal.SIGTERM if wish else signal.SIGKILL)
            os.waitpid(pid, 0)
            if wish == END and not path.with_suffix(".done").is_file():  # before the run could listen
                write_json(path.with_suffix(".done"), {"status": "stopped", "message": "ended at once"})
            return wish == END


def main(words: list[str]) -> None:
    """The loop: a job, its run, the answer."""
    if words[0] == "--once":
        _die_with(int(words[2]))
        return _do(Path(words[1]))
    cores = [int(core) for core in words[2:]]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a run prints goes to the log
    import kingpost.train.train  # noqa: F401 - imported once here, so that no run has to

    with contextlib.suppress(ImportError):
        pass
    while (line := sys.stdin.readline()) and line != "stop\n":
        if line == END:  # that run has ended by itself meanwhile
            continue
        path = Path(line.removeprefix("run ").rstrip("\n"))
        path.with_suffix(".done").unlink(missing_ok=True)
        pid, alive = _begin(path)
        if not _alone(pid, path):
            return None
        os.close(alive)
        _import_for_the_next(path)
        answers.write(f"done {path}\n")
        answers.flush()
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
