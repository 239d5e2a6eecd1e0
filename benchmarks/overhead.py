"""Seconds that training loops take for the same steps: plain PyTorch, kingpost, and its peers.

Every contender is a file in contenders/ and runs in a process of its own. In each round all of them run once
on each workload, in a new order, so that a slow minute of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
from overhead_table import Row, markdown, summarise

HERE = Path(__file__).resolve().parent
WORKLOADS = {
    "mlp": "784-256-128-10, ReLU, batch 64",
    "cnn": "two 3x3 convolutions (16, 32), ReLU, max-pooling, linear 1568-10, batch 128",
}
EXAMPLES = """examples:
  python benchmarks/overhead.py --setup-peers                 make the peers' environment (once, minutes)
  python benchmarks/overhead.py                               five rounds of everything
  python benchmarks/overhead.py --rounds 1 --mlp-steps 100 --cnn-steps 20 --results try
  python benchmarks/overhead.py --contenders bare bare-indexed kingpost --workloads mlp
  python benchmarks/overhead.py --threads 2                   with two threads, on a quiet machine
"""


@dataclass(frozen=True)
class Contender:
    """A module of contenders/, and whether it runs in the peers' environment."""

    module: str
    peer: bool


CONTENDERS = {
    "bare": Contender("bare", peer=False),
    "bare-indexed": Contender("bare_indexed", peer=False),
    "kingpost": Contender("kingpost", peer=False),
    "kingpost-equal": Contender("kingpost_equal", peer=False),
    "lightning": Contender("lightning", peer=True),
    "accelerate": Contender("accelerate", peer=True),
    "hf-trainer": Contender("hf_trainer", peer=True),
    "keras": Contender("keras", peer=True),
    "skorch": Contender("skorch", peer=True),
    "fastai": Contender("fastai", peer=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the results after the last round."""
    options = parse(arguments)
    if options.setup_peers:
        peers.setup(options.peers)
        return 0
    measurements: list[Row] = []
    try:
        for index in range(options.rounds):
            measurements += measure_round(index, options)
            so_far = results(measurements, options, index + 1)
            write(options.results / "overhead.partial.json", to_json(so_far))
    except KeyboardInterrupt:
        print("\nstopped; complete rounds, if any, are in overhead.partial.json", flush=True)
        return 130
    found = results(measurements, options, options.rounds)
    write(options.results / "overhead.json", to_json(found))
    write(options.results / "overhead.md", markdown(found))
    (options.results / "overhead.partial.json").unlink(missing_ok=True)
    print("\n" + markdown(found), flush=True)
    return 0 if all(m["status"] != "failed" for m in measurements) else 1


def measure_round(index: int, options: argparse.Namespace) -> list[Row]:
    """Every contender once on every workload, in this round's order."""
    order = random.Random(f"{options.seed} {index}")
    found = []
    for workload in options.workloads:
        names = order.sample(options.contenders, len(options.contenders))
        for name in names:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            measurement = {"round": index, "load_1min": load, **measure(name, workload, options)}
            found.append(measurement)
            said = f"{measurement['seconds']:8.3f} s" if measurement["status"] == "ok" else brief(measurement)
            print(f"round {index + 1}/{options.rounds}  {workload}  {name:<15} {said}", flush=True)
    return found


def measure(name: str, workload: str, options: argparse.Namespace) -> Row:
    """One contender in a process of its own, in an empty folder that is removed afterwards."""
    contender = CONTENDERS[name]
    python = peers.python_of(options.peers) if contender.peer else Path(sys.executable)
    about = {"contender": name, "workload": workload}
    if not python.exists():
        return {**about, "status": "not installed", "reason": "no peers' environment; run --setup-peers"}
    command = [str(python), "-m", f"contenders.{contender.module}", *job_arguments(workload, options)]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as folder:
        try:
            # a session of its own: ctrl-C reaches this process alone, which then kills the child
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment(folder, options.threads),
                capture_output=True,
                text=True,
                timeout=options.timeout_seconds,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return {**about, "status": "failed", "reason": f"no result in {options.timeout_seconds} seconds"}
    return {**about, **outcome(done), "process_seconds": time.perf_counter() - started}


def outcome(done: subprocess.CompletedProcess[str]) -> Row:
    """What the child's line says; or, if it failed, the last line of its complaint."""
    if done.returncode == 0:
        line: Row = json.loads(done.stdout.splitlines()[-1])
        return line
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    library = last.removeprefix("ModuleNotFoundError: ")
    if library != last:  # its import at the top of the contender's file
        return {"status": "not installed", "reason": library}
    return {"status": "failed", "reason": f"exit status {done.returncode}: {last[:200]}"}


def job_arguments(workload: str, options: argparse.Namespace) -> Iterator[str]:
    """The job as the contender's command line."""
    yield from ("--workload", workload, "--timed-steps", str(timed_steps(options)[workload]))
    yield from ("--warmup-steps", str(options.warmup_steps))
    yield from ("--threads", str(options.threads), "--seed", str(options.seed))


def environment(folder: str, threads: int) -> dict[str, str]:
    """The child's environment: threads fixed before torch loads, no accelerator, no files elsewhere."""
    return {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(Path(folder) / "hf"),
        "KERAS_HOME": str(Path(folder) / "keras"),
        "FASTAI_HOME": str(Path(folder) / "fastai"),
        "MPLBACKEND": "agg",
    }


def timed_steps(options: argparse.Namespace) -> dict[str, int]:
    """Optimizer steps on the clock, by workload."""
    return {"mlp": options.mlp_steps, "cnn": options.cnn_steps}


def results(measurements: Sequence[Row], options: argparse.Namespace, rounds: int) -> Row:
    """Everything that is written: conditions, summary, and each measurement."""
    versions = {m["versions"]["torch"] for m in measurements if "versions" in m}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "torch": " and ".join(sorted(versions)),
        "threads": options.threads,
        "rounds": rounds,
        "rounds_wanted": options.rounds,
        "warmup_steps": options.warmup_steps,
        "timed_steps": timed_steps(options),
        "seed": options.seed,
        "workloads": {name: WORKLOADS[name] for name in options.workloads},
        "summary": [summarise(measurements, w, c) for w in options.workloads for c in options.contenders],
        "measurements": list(measurements),
    }


def machine() -> dict[str, Any]:
    """Where this ran, without names of hosts or folders."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), processor)
    return {"processor": processor, "cores": os.cpu_count(), "system": platform.system()}


def brief(measurement: Row) -> str:
    """Why there is no number."""
    return f"{measurement['status']}: {measurement['reason']}"


def to_json(value: Row) -> str:
    """JSON that a person can read too."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=positive, default=5, help="each runs every contender once (default 5)")
    add("--threads", type=positive, default=1, help="torch's threads, the same for all (default 1)")
    add("--mlp-steps", type=positive, default=938, help="timed steps of the MLP (default 938, an epoch)")
    add("--cnn-steps", type=positive, default=150, help="timed steps of the CNN (default 150, an epoch)")
    add("--warmup-steps", type=positive, default=50, help="untimed optimizer steps before (default 50)")
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W", help="mlp, cnn")
    names = list(CONTENDERS)
    add("--contenders", nargs="+", choices=names, default=names, metavar="C", help=", ".join(names))
    add(
        "--peers",
        type=folder,
        default=peers.DEFAULT_FOLDER,
        help="their environment (default: .peers-venv here)",
    )
    add("--setup-peers", action="store_true", help="make that environment, and do nothing else")
    add("--results", type=folder, default=HERE / "results", help="folder for overhead.json and overhead.md")
    add("--timeout-seconds", type=positive, default=600, help="for one process (default 600)")
    add("--seed", type=int, default=0, help="of weights, order of samples and of contenders (default 0)")
    return parser.parse_args(arguments)


def folder(text: str) -> Path:
    """A folder, independent of where a child runs."""
    return Path(text).resolve()


def positive(text: str) -> int:
    """A whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
