"""Seconds to 90, 91, 92 and 93 % on Fashion-MNIST: kingpost's recipe, and the programs that users of others write.

Needs KINGPOST_DATA/fashion_mnist. Every program runs in a process of its own; in each round all of them run once, in
a new order, so that a slow minute of the machine hits all alike. Every measurement is kept at once: the same command
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import peers
from overhead import machine, outcome, positive, to_json, write
from speedrun_plan import ENTRIES, Entry, ladder, quick
from speedrun_table import Row, ladder_markdown, markdown

HERE = Path(__file__).resolve().parent
EXAMPLES = """examples:
  python benchmarks/speedrun.py --setup-peers            make the environment of the other libraries (once, minutes)
  python benchmarks/speedrun.py                          three rounds of everything, judged on the test part
  python benchmarks/speedrun.py --quick                  one epoch of everything, to see whether it runs
  python benchmarks/speedrun.py --only kingpost-90 lightning --rounds 5
  python benchmarks/speedrun.py --validation --only kingpost-93 --rounds 1
  python benchmarks/speedrun.py --ladder                 what each step of the recipe brings, on a validation part
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, then write the results."""
    options = parse(arguments)
    if options.setup_peers:
        peers.setup(options.peers)
        return 0
    if "KINGPOST_DATA" not in os.environ:
        print("set KINGPOST_DATA to the folder that holds fashion_mnist/", file=sys.stderr)
        return 2
    entries = chosen(options)
    stem = "speedrun" + ("-ladder" if options.ladder else "-validation" if options.validation else "")
    partial = options.results / f"{stem}.partial.json"
    found = resumed(partial, options)
    try:
        for index in range(options.rounds):
            for entry in random.Random(f"{options.seed} {index}").sample(entries, len(entries)):
                if any(m["entry"] == entry.name and m["round"] == index and m["status"] == "ok" for m in found):
                    continue
                found = [m for m in found if (m["entry"], m["round"]) != (entry.name, index)]
                found.append({"round": index, **measure(entry, index, options)})
                write(partial, to_json({"conditions": conditions(options), "measurements": found}))
                print(f"round {index + 1}/{options.rounds}  {entry.name:<18} {said(found[-1])}", flush=True)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on ({partial.name} holds what is done)", flush=True)
        return 130
    results = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        **conditions(options),
        "rounds": options.rounds,
        "entries": [e.name for e in entries],
        "measurements": [m for m in found if m["entry"] in {e.name for e in entries}],
    }
    text = ladder_markdown(results) if options.ladder else markdown(results)
    if options.quick:
        print("\n--quick: nothing is written\n\n" + text)
        partial.unlink(missing_ok=True)
    else:
        write(options.results / f"{stem}.json", to_json(results))
        write(options.results / f"{stem}.md", text)
        partial.unlink(missing_ok=True)
        print("\n" + text, flush=True)
    return 0 if all(m["status"] != "failed" for m in results["measurements"]) else 1


def chosen(options: argparse.Namespace) -> list[Entry]:
    """The programs that this command is to run."""
    entries = ladder() if options.ladder else list(ENTRIES)
    if options.only:
        known = {e.name: e for e in entries}
        if unknown := [name for name in options.only if name not in known]:
            raise SystemExit(f"--only: no such program: {', '.join(unknown)}; there are: {', '.join(known)}")
        entries = [known[name] for name in options.only]
    return quick(entries) if options.quick else entries


def measure(entry: Entry, index: int, options: argparse.Namespace) -> Row:
    """One program in a process of its own, in an empty folder that is removed afterwards."""
    about = {"entry": entry.name, "target": entry.target, "changes": list(entry.changes)}
    about["load_1min"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    python = peers.python_of(options.peers) if entry.peer else Path(sys.executable)
    if not python.exists():
        return {**about, "status": "not installed", "reason": "no peers' environment; run --setup-peers"}
    command = [str(python), "-m", f"contenders.{entry.module}", *entry.arguments()]
    command += ["--seed", str(options.seed + index), "--threads", str(options.threads)]
    command += ["--device", options.device, "--judge-on", conditions(options)["judge_on"]]
    with tempfile.TemporaryDirectory(prefix="speedrun-", ignore_cleanup_errors=True) as folder:
        try:
            # a session of its own: ctrl-C reaches this process alone, which then kills the child
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment(folder, options),
                capture_output=True,
                text=True,
                timeout=options.timeout_seconds,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return {**about, "status": "failed", "reason": f"no result in {options.timeout_seconds} seconds"}
    result = outcome(done)
    result.pop("recipe", None)  # it is under "changes" already
    return {**about, **result}


def environment(folder: str, options: argparse.Namespace) -> dict[str, str]:
    """The child's environment: threads fixed before torch loads, files of the libraries in its own folder."""
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": str(options.threads),
        "MKL_NUM_THREADS": str(options.threads),
        "KINGPOST_DATA": str(Path(os.environ["KINGPOST_DATA"]).resolve()),
        "KERAS_HOME": str(Path(folder) / "keras"),
        "FASTAI_HOME": str(Path(folder) / "fastai"),
        "MPLBACKEND": "agg",
    }
    return found if options.device != "cpu" else {**found, "CUDA_VISIBLE_DEVICES": ""}


def conditions(options: argparse.Namespace) -> Row:
    """What must be the same for measurements to stand in one table."""
    return {
        "judge_on": "validation" if options.ladder or options.validation else "test",
        "threads": options.threads,
        "device": options.device,
        "seed": options.seed,
        "quick": options.quick,
    }


def resumed(partial: Path, options: argparse.Namespace) -> list[Row]:
    """The measurements of a command that was stopped, if it was this one."""
    if not partial.exists():
        return []
    before = json.loads(partial.read_text(encoding="utf-8"))
    if before["conditions"] != conditions(options):
        raise SystemExit(f"{partial} holds measurements under other conditions; remove it, or go on with those")
    wanted = {e.name: list(e.changes) for e in chosen(options)}
    rows: list[Row] = before["measurements"]
    kept = [m for m in rows if m["entry"] in wanted and m["changes"] == wanted[m["entry"]]]
    print(f"{len(kept)} measurements are done already", flush=True)
    return kept


def said(measurement: Row) -> str:
    """One measurement in a line."""
    if measurement["status"] != "ok":
        return f"{measurement['status']}: {measurement['reason']}"
    last = measurement["verdicts"][-1]
    return f"{last['seconds']:7.1f} s  {last['cpu_seconds']:7.1f} cpu s  {last['accuracy']:.2%}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=positive, default=3, help="each runs every program once, with its own seed (default 3)")
    add("--threads", type=positive, default=2, help="torch's threads, the same for all (default 2)")
    add("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    add("--seed", type=int, default=0, help="of the first round; the next ones count on (default 0)")
    add("--only", nargs="+", metavar="PROGRAM", help="only these")
    add("--quick", action="store_true", help="one epoch of each program, to see whether it runs; writes nothing")
    add("--ladder", action="store_true", help="what each step of the recipe brings, on a validation part")
    add("--validation", action="store_true", help="train on 50,000, judge on the other 10,000: to choose by")
    add("--peers", type=_folder, default=peers.DEFAULT_FOLDER, help="their environment (default: .peers-venv here)")
    add("--setup-peers", action="store_true", help="make that environment, and do nothing else")
    add("--results", type=_folder, default=HERE / "results", help="folder for speedrun.json and speedrun.md")
    add("--timeout-seconds", type=positive, default=1200, help="for one process (default 1200)")
    return parser.parse_args(arguments)


def _folder(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    sys.exit(main())
