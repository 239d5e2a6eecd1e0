"""The kill exam: `kill -9` at random moments, resume, and count the bits that differ from an undisturbed run.

Recipes that stack up to twelve techniques, with 0 and 2 loader workers; the contract suite resumes every technique
alone. A third of the kills is aimed at a checkpoint while it is being written; the others fall anywhere, most of them
in the middle of an epoch.

    python benchmarks/kill_resume.py                 # at least 60 kills, some ten minutes
    python benchmarks/kill_resume.py --kills 6       # a quick look
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

from kingpost import catalogue
from kingpost.files import write_json, write_text
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.train import checkpoint

RESULTS = Path(__file__).parent / "results"
TIMES = {"seconds", "epoch_started_seconds", "samples_per_second", "peak_memory_mebibytes"}


def recipes(folder: Path) -> list[Recipe]:
    """The recipes of the exam; `folder` holds the pictures and the text that are made for it."""
    common: dict[str, Any] = {
        "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
        "save": {"every_steps": 3, "every_seconds": None, "keep": 2, "report": False},
        "batch_size": 32,
    }
    batchwise = ["mixup", "flip", {"name": "crop", "pixels": 1}]
    pictures = {
        "name": "image-folder",
        "folder": str(folder / "pictures"),
        "size": 8,
        "colour": "grey",
        "memory": False,
    }
    streamed = {
        "model": {"name": "cnn", "widths": [8, 16], "norm": "batch"},
        "optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True},
        "schedule": {"name": "cosine", "warmup": 0.1},
        "techniques": [*batchwise, "label-smoothing", "ema"],
        "budget": {"epochs": 4},
    }
    made: list[dict[str, Any]] = [
        {
            "name": "everything",
            "data": "digits",
            "model": {"name": "cnn", "widths": [16, 32], "norm": "group"},
            "initialise": "he",
            "optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True},
            "schedule": {"name": "cosine", "warmup": 0.1},
            "techniques": [
                *batchwise, {"name": "dropout", "p": 0.1}, "label-smoothing", "l2", "accumulate", "sam", "clip",
                {"name": "ema", "decay": 0.9}, {"name": "early-stopping", "patience": 50},
            ],
            "budget": {"epochs": 5},
        },
        {
            "name": "half",
            "data": "digits",
            "model": {"name": "mlp", "widths": [128, 64]},
            "initialise": "xavier",
            "optimizer": {"name": "adamw", "lr": 0.003},
            "schedule": "one-cycle",
            "techniques": [
                "mixup", {"name": "dropout", "p": 0.2}, "accumulate", {"name": "fp16", "scale": 2.0**20}, "clip"
            ],
            "budget": {"epochs": 12},
        },
        {
            "name": "language",
            "data": {"name": "text", "path": [str(folder / "text.txt")], "context": 32},
            "model": {"name": "gpt", "depth": 2, "width": 32, "heads": 2},
            "initialise": "naive-normal",
            "optimizer": {"name": "adamw", "lr": 0.003},
            "schedule": "constant",
            "techniques": [{"name": "dropout", "p": 0.1}, "label-smoothing", "bf16", "ema"],
            "budget": {"steps": 150},
        },
        {
            "name": "compiled",
            "data": "digits",
            "model": {"name": "mlp", "widths": [64]},
            "initialise": "naive-uniform",
            "optimizer": "adamw",
            "techniques": [{"name": "compile", "backend": "aot_eager"}],
            "budget": {"epochs": 12},
        },
        {"name": "streamed", "data": {**pictures, "workers": 0}, **streamed},
        {"name": "workers", "data": {**pictures, "workers": 2}, **streamed},
    ]  # fmt: skip
    stacked = Recipe.load(RESULTS.parents[1] / "recipes" / "twelve-digits.yaml")
    stacked = stacked.patched({"layout": common["layout"], "save": common["save"]})
    return [*(Recipe.from_value({**common, **one}) for one in made), stacked]


def make_data(folder: Path) -> None:
    """Pictures of digits in folders by class, and a text of random words."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images[:600], digits.target[:600], strict=True)):
        place = folder / "pictures" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(place / f"{index}.png")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(50)]
    (folder / "text.txt").write_text(" ".join(draw.choices(words, k=6000)), encoding="utf-8")


def start(*words: str, log: Path) -> subprocess.Popen[bytes]:
    """A kingpost command in a process of its own, with its output in a file."""
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-m", "kingpost", *words], stdout=out, stderr=out)


def finished(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a command that must succeed."""
    if process.wait(timeout=600) != 0:
        raise RuntimeError(f"exit code {process.returncode}\n{log.read_text()[-3000:]}")


def kill(
    process: subprocess.Popen[bytes], run: Run, draw: random.Random, seconds: float, aimed: bool
) -> dict[str, bool] | None:
    """Kill at a random moment, or as soon after it as a checkpoint is being written; None if it ended before."""
    checkpoints = run.folder / "checkpoints"
    moment = time.monotonic() + draw.uniform(0.0, seconds)
    while process.poll() is None:
        now = time.monotonic()
        writing = any(checkpoints.glob(".step-*.tmp")) if aimed else True
        if now >= moment and writing:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return describe(run)
        time.sleep(0.0005 if aimed else 0.002)
    return None


def describe(run: Run) -> dict[str, bool]:
    """What the kill left: a checkpoint half written, and a newest one in the middle of an epoch."""
    folder = run.folder / "checkpoints"
    half_written = any(folder.glob(".step-*.tmp"))
    saved = checkpoint.load_newest(folder, torch.device("cpu"), lambda path, why: None)
    position = saved["position"] if saved else {"batch": 0}
    return {"half_written": half_written, "mid_epoch": position["batch"] > 0, "before_first": saved is None}


def differing(a: Run, b: Run) -> list[str]:
    """Names of what differs in any bit: state, kept weights, and histories (their times left out)."""
    device = torch.device("cpu")
    states = [checkpoint.load_newest(run.folder / "checkpoints", device, lambda path, why: None) for run in (a, b)]
    found = list(_differences(_without_times(states[0]), _without_times(states[1]), "state"))
    for name in ("weights/best.safetensors", "weights/last.safetensors", "steps.csv", "judged.safetensors"):
        files = [run.folder / name for run in (a, b)]
        if [f.exists() and f.read_bytes() for f in files[:1]] != [f.exists() and f.read_bytes() for f in files[1:]]:
            found.append(name)
    if _without_times(a.results) != _without_times(b.results):
        found.append("results.csv")
    return found


def _differences(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.numpy().tobytes() != b.numpy().tobytes():
            yield path
    elif isinstance(a, dict):
        for key in {*a, *b}:
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list | tuple) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{path}.{index}")
    elif a != b:
        yield path


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def examine(recipe: Recipe, kills: int, folder: Path, draw: random.Random) -> dict[str, Any]:
    """Train once undisturbed and once with kills; returns counts and what differs."""
    place = folder / recipe.name
    place.mkdir()
    recipe.save_to(place / "recipe.yaml")
    log = place / "log.txt"
    started = time.monotonic()
    finished(start("train", str(place / "recipe.yaml"), "--runs", str(place / "whole"), log=log), log)
    seconds = time.monotonic() - started
    whole = Run(place / "whole" / recipe.name)
    outcomes: list[dict[str, bool]] = []
    rounds = 0
    differences: list[str] = []
    while len(outcomes) < kills:
        rounds += 1
        broken = Run(place / f"broken-{rounds}" / recipe.name)
        process = start("train", str(place / "recipe.yaml"), "--runs", str(broken.folder.parent), log=log)
        while len(outcomes) < kills:
            aimed = len(outcomes) % 3 == 0
            outcome = kill(process, broken, draw, seconds, aimed) if broken_exists(process, broken) else None
            if outcome is None:
                break
            outcomes.append(outcome)
            print(
                f"  {recipe.name}: kill {len(outcomes)} of {kills} {[key for key, yes in outcome.items() if yes]}",
                flush=True,
            )
            process = start("resume", str(broken.folder), log=log)
        finished(process, log)
        differences += differing(whole, broken)
        shutil.rmtree(broken.folder.parent)
    return {
        "recipe": recipe.name,
        "techniques": sorted({t.name for _, t in recipe.mounts()}),
        "loader_workers": recipe.to_value()["data"].get("workers", 0),
        "steps": len(whole.steps),
        "kills": len(outcomes),
        "runs": rounds,
        "while_writing_a_checkpoint": sum(o["half_written"] for o in outcomes),
        "mid_epoch": sum(o["mid_epoch"] for o in outcomes),
        "before_the_first_checkpoint": sum(o["before_first"] for o in outcomes),
        "differing": differences,
    }


def broken_exists(process: subprocess.Popen[bytes], run: Run) -> bool:
    """Wait until the run's folder is there; before that there is nothing to resume."""
    while process.poll() is None and not (run.folder / "run.json").exists():
        time.sleep(0.005)
    return (run.folder / "run.json").exists()


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The results as Markdown."""
    heads = [
        "recipe",
        "loader_workers",
        "steps",
        "kills",
        "runs",
        "while_writing_a_checkpoint",
        "mid_epoch",
        "before_the_first_checkpoint",
    ]
    lines = [
        "# Kill exam", "",
        f"`kill -9` and resume against an undisturbed run; {about['date']}, torch {about['torch']}, "
        f"Python {about['python']}, {about['processor']}. Made by "
        f"`python benchmarks/kill_resume.py --kills {about['kills']} --seed {about['seed']}`.", "",
        "| " + " | ".join(head.replace("_", " ") for head in heads) + " | differing |",
        "|" + "---|" * (len(heads) + 1),
        *("| " + " | ".join(str(row[head]) for head in heads) + f" | {len(row['differing'])} |" for row in rows),
        "",
        "Compared bit for bit: weights, optimizer, technique state, position, kept weights, history of steps and "
        "epochs (times and memory left out), judged predictions.", "",
        f"Techniques that took part: {', '.join(sorted({t for row in rows for t in row['techniques']}))}.",
        f"Not among them: {len(about['missing'])}, which the contract suite stops and resumes one by one.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Run the exam; exit code 1 if a single bit differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="in all; spread evenly over the recipes")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--only", help="name of one recipe")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        chosen = [recipe for recipe in recipes(folder) if args.only in (None, recipe.name)]
        each = -(-args.kills // len(chosen))
        rows = [examine(recipe, each, folder, draw) for recipe in chosen]
    used = {technique for row in rows for technique in row["techniques"]}
    kinds = ("model", "initialise", "optimizer", "schedule", "technique")
    everything = {name for kind in kinds for name in catalogue.CATALOGUE[kind]}
    from kingpost.train.environment import describe as describe_machine

    machine = describe_machine(torch.device("cpu"), 1)
    about = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        "kills": args.kills,
        "seed": args.seed,
        "missing": sorted(everything - used),
    }
    text = table(rows, about)
    print(text)
    if args.only is None:
        write_json(RESULTS / "kill_resume.json", {"about": about, "rows": rows})
        write_text(RESULTS / "kill_resume.md", text)
    return 1 if any(row["differing"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
