"""What checkpointing of activations saves in memory and costs in time, with and without, side by side.

    python benchmarks/activation_checkpointing.py            # a few minutes on one core; Linux
    python benchmarks/activation_checkpointing.py --smoke    # one round of each, nothing is written

Memory is counted by the plan, and measured as the peak resident memory of a fresh process above what it held before
its first step. Time is that of one step; steps with and without alternate in one process, and the ratio is taken of
neighbours, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

import kingpost as kp
from kingpost import seeds
from kingpost.assembly import Assembly, Step
from kingpost.files import write_json, write_text
from kingpost.train.assemble import assemble, first_batch
from kingpost.train.gradients.backward import clear_gradients

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "vit, 12 blocks of width 128": {"name": "vit", "depth": 12, "width": 128, "heads": 4, "patch": 4},
    "resnet, 9 blocks with batch norm": {"name": "resnet", "depth": 20, "width": 16},
}
WAYS: dict[str, tuple[dict[str, Any], ...]] = {
    "plain": (),
    "each block": ({"name": "checkpoint-activations"},),
    "each second block": ({"name": "checkpoint-activations", "every": 2},),
}
MEBI = 2**20


def recipe(model: str, way: str) -> kp.Recipe:
    """Batches of 16 random images of 3 x 32 x 32; what they show makes no difference here."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 32, 32, generator=draw)
    return kp.Recipe(
        name="memory",
        data=kp.Arrays(inputs=images, targets=torch.arange(40) % 10, validation=0.2),
        model=MODELS[model],
        optimizer=kp.SGD(lr=0.01),
        techniques=WAYS[way],
        batch_size=16,
        layout=kp.DataParallel(device="cpu", threads=1),
    )


class Stepper:
    """One assembled recipe that takes steps on its first batch."""

    def __init__(self, made: kp.Recipe) -> None:
        dataset = made.data.open()
        self.assembly: Assembly = assemble(made, dataset, CPU)
        self.batch = first_batch(made, dataset, CPU)
        self.optimizer = self.assembly.optimizer(self.assembly.model)
        self.assembly.model.train()
        self.index = 0

    def step(self) -> float:
        """One step; returns its seconds."""
        a, began = self.assembly, time.perf_counter()
        step = Step(index=self.index, seed=0, items=len(self.batch))
        seeds.seed_default_generators(self.index, CPU)
        a.gradient(a.model, a.objective, self.batch, step)
        a.update(a.model, self.optimizer, step)
        clear_gradients(a.model)
        self.index += 1
        return time.perf_counter() - began


def status(key: str) -> int:
    """A figure of this process from Linux, in bytes: VmRSS is what is resident now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def resident_growth(model: str, way: str) -> int:
    """Bytes by which the peak of two steps is above what this process held before."""
    torch.set_num_threads(1)
    stepper = Stepper(recipe(model, way))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    before = status("VmRSS")
    stepper.step(), stepper.step()
    return status("VmHWM") - before


def in_a_fresh_process(model: str, way: str) -> int:
    command = [sys.executable, __file__, "--one", model, way]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return int(done.stdout)


def measure(model: str, rounds: int, pairs: int) -> dict[str, Any]:
    """All ways of one model."""
    torch.set_num_threads(1)
    plans = {way: kp.plan(recipe(model, way)) for way in WAYS}
    resident: dict[str, list[int]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            resident[way].append(in_a_fresh_process(model, way))
    steppers = {way: Stepper(recipe(model, way)) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for index in range(pairs + 1):
        for way, stepper in steppers.items():
            taken = stepper.step()
            if index:  # the first step allocates
                seconds[way].append(taken)
    return {
        way: {
            "activations_bytes": int(plans[way]["activations"]),
            "compute_flops": int(plans[way]["compute per step"]),
            "resident_bytes": resident[way],
            "seconds": seconds[way],
            "time_ratio": [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)],
        }
        for way in WAYS
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    rows = ["| net | checkpointed | activations, counted (MiB) | peak memory of two steps, measured (MiB) | compute | "
            "time of a step |", "|---|---|---|---|---|---|"]  # fmt: skip
    for model, ways in found.items():
        plain = ways["plain"]
        for way, figures in ways.items():
            resident = sorted(value / MEBI for value in figures["resident_bytes"])
            ratio = sorted(figures["time_ratio"])
            low, high = ratio[len(ratio) // 4], ratio[-1 - len(ratio) // 4]
            cells = [
                model,
                "nothing" if way == "plain" else way,
                f"{figures['activations_bytes'] / MEBI:.1f}",
                f"{statistics.median(resident):.0f} ({resident[0]:.0f} to {resident[-1]:.0f}, n = {len(resident)})",
                f"x {figures['compute_flops'] / plain['compute_flops']:.2f}",
                f"x {statistics.median(ratio):.2f} (quartiles {low:.2f} to {high:.2f}, n = {len(ratio)})"
                if way != "plain" else f"{1000 * statistics.median(figures['seconds']):.0f} ms",
            ]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    if args.one:
        print(resident_growth(*args.one))
        return
    rounds, pairs = (1, 2) if args.smoke else (3, 12)
    found = {model: measure(model, rounds, pairs) for model in MODELS}
    print(table(found))
    if args.smoke:
        return
    where = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kingpost": kp.__version__,
        "device": f"{platform.machine()}, one thread",
    }
    write_json(RESULTS / "activation-checkpointing.json", {"where": where, "results": found})
    lines = [
        "# Checkpointing of activations",
        "",
        f"Batches of 16 images of 3 x 32 x 32 in 32 bits; {', '.join(f'{k} {v}' for k, v in where.items())}. Made by "
        "`python benchmarks/activation_checkpointing.py`.",
        "",
        table(found),
        "",
        "Counted: the most bytes kept for the backward pass at one time, what is computed again included. Measured: by "
        "how much two steps raise the peak of a fresh process (Linux); gradients and working space of the kernels come "
        "on top of the activations there. Compute: matrix products of forward and backward, counted, against the plain "
        "step. The time of a step is against the plain step beside it.",
        "",
    ]
    write_text(RESULTS / "activation-checkpointing.md", "\n".join(lines))


if __name__ == "__main__":
    main()
