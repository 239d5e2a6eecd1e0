"""Foreign commands as arms: any program that takes a seed and prints a metric."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kingpost.errors import RecipeError

SEED, PATCH = "{seed}", "{patch}"
OUTPUT, ERRORS = "output.txt", "errors.txt"
NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"


def words_of(template: str, patch: str) -> list[str]:
    """The words of a command, with an arm's own in the place of ``{patch}``; ``{seed}`` stays for later.

    >>> words_of("python train.py --seed {seed} {patch}", "--label-smoothing 0.1")
    ['python', 'train.py', '--seed', '{seed}', '--label-smoothing', '0.1']
    """
    words: list[str] = []
    for word in shlex.split(template):
        words += shlex.split(patch) if word == PATCH else [word.replace(PATCH, patch)]
    return words


def check_template(template: str) -> None:
    """Refuse a command that could not be a trial.

    Raises:
        RecipeError: it has no place for the seed or for the arms' own words.
    """
    for place, why in ((SEED, "or all runs would be the same"), (PATCH, "which is where the arms differ")):
        if place not in template:
            raise RecipeError(
                f"has no {place}, {why}", path="command", mend='as in "python train.py --seed {seed} {patch}"'
            )


def read_metric(text: str, metric: str) -> float | None:
    r"""The metric's value from what a program printed, the last there is; None if there is none.

    A line of JSON with that key counts, or ``metric=value`` or ``metric: value`` anywhere in a line, or, if no line
    has the name, a last line that is a bare number.

    >>> read_metric('epoch 1 accuracy: 0.8\n{"accuracy": 0.91, "loss": 0.3}\ndone', "accuracy")
    0.91
    """
    named = re.compile(rf"(?<![\w-]){re.escape(metric)}[\"']?\s*[=:]\s*({NUMBER})(?![\w.])", re.IGNORECASE)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if (value := _from_json(line, metric)) is not None:
            return value
        if found := named.findall(line):
            return float(found[-1])
    if lines and re.fullmatch(NUMBER, lines[-1], re.IGNORECASE):
        return float(lines[-1])
    return None


def run_command(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one arm's command with one seed; what it printed stays in the run's folder.

    Raises:
        RecipeError: the program cannot be started, or ended well without printing the metric.
    """
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    words = [word.replace(SEED, str(job["seed"])) for word in job["work"]]
    started = time.monotonic()
    with (folder / OUTPUT).open("wb") as output, (folder / ERRORS).open("wb") as errors:
        try:
            child = subprocess.Popen(words, stdout=output, stderr=errors, stdin=subprocess.DEVNULL, cwd=job["cwd"],
                                     start_new_session=True)  # fmt: skip
        except OSError as error:
            raise RecipeError(f"cannot be started: {error}", path="command") from error
        asked = _ends_with_us(child)
        status, memory = _wait(child)
    seconds = time.monotonic() - started
    if asked:
        return {"status": "stopped", "message": f"stopped by signal {asked[0]}"}
    figures = {"seconds": seconds, "peak_memory_mebibytes": memory, "curve": [], "steps": None}
    if status:
        return {**figures, "status": "failed", "value": None, "message": _why(status, folder)}
    value = read_metric((folder / OUTPUT).read_text(encoding="utf-8", errors="replace"), job["metric"])
    if value is None:
        raise RecipeError(
            f"{shlex.join(words)} ended well, but printed no '{job['metric']}'",
            path="metric",
            mend=f"print {job['metric']}=VALUE, or a line of JSON with this key; see {folder / OUTPUT}",
        )
    if not math.isfinite(value):
        return {**figures, "status": "failed", "value": None, "message": f"{job['metric']} is {value}"}
    return {**figures, "status": "finished", "value": value, "message": ""}


def kill_group(child: int, how: signal.Signals = signal.SIGKILL) -> None:
    """End a program and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, how)


def _ends_with_us(child: subprocess.Popen[bytes]) -> list[int]:
    """Pass on the wish to stop; the list then holds its signal."""
    asked: list[int] = []

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        kill_group(child.pid, signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    FOREIGN.append(child.pid)
    return asked


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Exit code and peak memory in mebibytes."""
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    FOREIGN.remove(child.pid)
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return child.returncode, used.ru_maxrss * unit / 2**20


FOREIGN: list[int] = []  # programs under way, for whoever has to end in a hurry


def _why(status: int, folder: Path) -> str:
    said = f"exit code {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
    lines = (folder / ERRORS).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{said}: {lines[-1][:200]}" if lines else said


def _from_json(line: str, metric: str) -> float | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
        found = value.get(metric) if isinstance(value, dict) else None
    except ValueError:
        return None
    fine = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if fine and found is not None else None


def arms_of(template: str, patches: Mapping[str, Sequence[str]], baseline: str) -> dict[str, list[str]]:
    """The words of every arm's command, the baseline's with nothing in the place of the patch."""
    return {baseline: words_of(template, "")} | {
        name: words_of(template, " ".join(filter(None, parts))) for name, parts in patches.items()
    }
