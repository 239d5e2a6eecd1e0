"""What each technique and optimizer costs: time of a step, parameters, state and activations, against a plain recipe.

Both recipes run side by side in one process, some steps of one and some of the other in turn, so that a slow minute of
the machine hits both. A round should be long enough to hold what is done every few steps only. ``kingpost techniques``
and docs/techniques.md show the figures.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kingpost import catalogue, seeds
from kingpost.assembly import Batch, Step
from kingpost.cards import Cost
from kingpost.data.tensors import TensorSplit
from kingpost.errors import KingpostError
from kingpost.option import checked
from kingpost.recipe import Recipe
from kingpost.source import DataFacts, Dataset, Order, Source
from kingpost.technique import Technique
from kingpost.train.assemble import assemble
from kingpost.train.gradients.backward import clear_gradients
from kingpost.train.optimise.groups import base_rates
from kingpost.train.planning import plan
from overhead import machine, to_json, write

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))
from contract.subjects import recipe_with  # noqa: E402 - toys for techniques that need other data than images

RESULTS = HERE / "results" / "technique_costs.json"
KINDS = ("technique", "optimizer")
BATCH, SAMPLES = 32, 320
EXAMPLES = """examples:
  python benchmarks/technique_costs.py                      everything; goes on where it was interrupted
  python benchmarks/technique_costs.py --quick              three rounds of three steps
  python benchmarks/technique_costs.py --only sam ema       some of them, into the results that are there
"""


@checked
class Pictures(Source):
    """Noise of 1 x 28 x 28 numbers in ten classes: only the time is looked at."""

    def open(self) -> Dataset:
        """The pictures; the last batch of them is the validation part."""
        draw = torch.Generator().manual_seed(1)
        whole = TensorSplit(
            (torch.randn(SAMPLES, 1, 28, 28, generator=draw),), torch.randint(10, (SAMPLES,), generator=draw)
        )
        parts = {"train": torch.arange(SAMPLES - BATCH), "validation": torch.arange(SAMPLES - BATCH, SAMPLES)}
        facts = DataFacts(
            task="classification", inputs=(((1, 28, 28), torch.float32),), classes=tuple(map(str, range(10)))
        )
        splits = {part: whole.subset(index) for part, index in parts.items()}
        return Dataset(facts=facts, splits=splits, fingerprint="pictures", indices=parts)


@dataclass(frozen=True)
class Pair:
    """A technique in a recipe, the same recipe without it, and in words what both train."""

    with_it: Recipe
    without: Recipe
    subject: str


class Runner:
    """Makes the steps of one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.device = recipe, torch.device("cpu")
        self.dataset = recipe.data.open()
        self.assembly = assemble(recipe, self.dataset, self.device)
        self.model = self.assembly.model.train()
        self.optimizer = self.assembly.optimizer(self.model)
        self.rates = base_rates(self.optimizer)
        self.batches, self.index = self.endless(), 0

    def endless(self) -> Iterator[Batch]:
        """The batches of one epoch after another."""
        epoch = 0
        while True:
            order = Order(batch_size=self.recipe.batch_size, shuffle=True, seed=self.recipe.seed, epoch=epoch)
            yield from self.dataset.splits["train"].batches(self.assembly.order(order))
            epoch += 1

    def seconds(self, steps: int) -> float:
        """Processor seconds a step, over so many of them; as in the training loop, but nothing is written down.

        With one thread they are the clock's seconds on a quiet machine, and on a busy one they do not count the others.
        """
        a = self.assembly
        started = time.process_time()
        for _ in range(steps):
            step = Step(index=self.index, seed=self.recipe.seed)
            seeds.seed_default_generators(step.index, self.device)
            batch = a.batch(next(self.batches).to(self.device), step)
            step.items = a.setting.task.items(batch.targets)
            factor = a.schedule(self.index, a.setting.total_steps)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            if a.gradient(self.model, a.objective, batch, step).finite:
                a.update(self.model, self.optimizer, step)
            clear_gradients(self.model)
            self.index += 1
        return (time.process_time() - started) / steps

    def parameters(self) -> int:
        """Numbers in the model that are parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def state(self) -> int:
        """Numbers that are kept across steps besides the model's own."""
        kept = [self.optimizer.state_dict()["state"], *(part.state_dict() for part in self.assembly.state.values())]
        return sum(map(numbers, kept))


def numbers(value: object) -> int:
    """Of all tensors in nested mappings and lists; counters and other single numbers do not count."""
    if isinstance(value, torch.Tensor):
        return value.numel() if value.ndim else 0
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(numbers, inner))


def pairs(kind: str, cls: type[Technique], steps: int) -> Iterator[Pair]:
    """Recipes to try the technique in, the best first: its defaults on pictures, its example there, its toy."""
    assert cls.example is not None
    layout = {"name": "data-parallel", "device": "cpu", "threads": 1}
    pictures = (not cls.tasks or "classification" in cls.tasks) and cls.example_model in ("", "cnn")
    if pictures and "image" in getattr(cls, "reads", ("image",)):
        plain = Recipe.from_value(
            {
                "name": "costs",
                "data": Pictures(),
                "model": {"name": "cnn", "depth": 2, "width": 8},
                "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
                "batch_size": BATCH,
                "budget": {"steps": steps},
                "layout": layout,
            }
        )
        for fields in ({}, cls.example):
            try:
                made = cls(**fields)
            except KingpostError:
                continue
            place = {"techniques": (made,)} if kind == "technique" else {kind: made}
            yield Pair(plain.with_(**place), plain, f"cnn of 2 stages, 1x28x28, batch {BATCH}")
    made = cls(**cls.example)
    toy = recipe_with(kind, made, "float32").with_(budget={"steps": steps})
    place = {"techniques": ()} if kind == "technique" else {kind: recipe_with(kind, None).optimizer}
    yield Pair(toy, toy.with_(**place), f"{toy.model.name}, toy, batch {toy.batch_size}")


def measure(kind: str, name: str, rounds: int, steps: int) -> dict[str, Any]:
    """One row: a measured cost, or why there is none."""
    cls = catalogue.find(kind, name)
    assert isinstance(cls, type) and issubclass(cls, Technique)
    if cls.example is None:
        return {"skipped": "needs files of the user's"}
    reasons = []
    for pair in pairs(kind, cls, (rounds + 1) * steps):
        try:
            return compared(pair, kind, rounds, steps)
        except (KingpostError, RuntimeError, ValueError) as error:  # the next pair may fit
            reasons.append(f"{pair.subject}: {str(error).splitlines()[0]}")
    return {"skipped": "; ".join(dict.fromkeys(reasons))}


def compared(pair: Pair, kind: str, rounds: int, steps: int) -> dict[str, Any]:
    """Both recipes, some steps in turn; the first round is for warming up."""
    plain, full = Runner(pair.without), Runner(pair.with_it)
    times = []
    for index in range(rounds + 1):
        order = (plain, full) if index % 2 else (full, plain)
        taken = {runner: runner.seconds(steps) for runner in order}
        times.append((taken[plain], taken[full]))
    quotients = [b / a for a, b in times[1:]]
    low_plain, low_full = (percentile([pair[i] for pair in times[1:]], 10) for i in (0, 1))
    kept = full.state() - (plain.state() if kind == "technique" else 0)
    bytes_plain, bytes_full = activations(pair.without), activations(pair.with_it)
    cost = Cost(
        time_ratio=low_full / low_plain,
        low=percentile(quotients, 10),
        high=percentile(quotients, 90),
        rounds=rounds,
        extra_parameters=full.parameters() - plain.parameters(),
        state_per_weight=kept / plain.parameters(),
        activation_ratio=bytes_full / bytes_plain if bytes_full and bytes_plain else None,
        subject=pair.subject,
        machine=f"{machine()['processor']}, 1 thread",
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        load=os.getloadavg()[0] / (os.cpu_count() or 1),
    )
    return {
        **vars(cost),
        "steps_per_round": steps,
        "seconds_per_step_plain": low_plain,
        "seconds_per_step": low_full,
        "state_bytes_per_parameter": 4 * cost.state_per_weight,
        "activation_bytes_plain": bytes_plain,
        "activation_bytes": bytes_full,
    }


def activations(recipe: Recipe) -> int | None:
    """Bytes kept for backward, as the plan counts them; None where it cannot."""
    try:
        return int(plan(recipe)["activations"])
    except Exception:  # what cannot be counted on tensors without memory is left out, whatever the reason
        return None


def percentile(values: Sequence[float], percent: int) -> float:
    """By linear interpolation."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all that is not in the partial results yet; write the whole at the end."""
    options = parse(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    settings = {"rounds": options.rounds, "steps_per_round": options.steps, "torch": torch.__version__}
    partial = options.results.with_suffix(".partial.json")
    source = options.results if options.only else partial
    before = json.loads(source.read_text(encoding="utf-8")) if source.exists() else {}
    done = dict(before) if options.only or before.get("settings") == settings else {}
    found = {
        "settings": done.get("settings", settings),
        "measured": done.get("measured", {}),
        "skipped": done.get("skipped", {}),
    }
    for kind, name in ((k, n) for k in KINDS for n in catalogue.CATALOGUE[k]):
        key = f"{kind}/{name}"
        known = key in found["measured"] or key in found["skipped"]
        if name in options.leave_out or (name not in options.only if options.only else known):
            continue
        row = measure(kind, name, options.rounds, options.steps)
        found["measured"].pop(key, None), found["skipped"].pop(key, None)
        said = f"x {row['time_ratio']:.2f}" if "time_ratio" in row else f"skipped: {row['skipped']}"
        found["skipped" if "skipped" in row else "measured"][key] = row.get("skipped", row)
        print(f"{key:<40} {said}", flush=True)
        write(partial, to_json(found))
    write(options.results, to_json(found))
    partial.unlink(missing_ok=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=12, help="each measures both recipes once (default 12)")
    parser.add_argument("--steps", type=int, default=10, help="of each recipe in a round (default 10)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 3 steps")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these, again")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="NAME", help="not these")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: results/technique_costs.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.steps = 3, 3
    return options


if __name__ == "__main__":
    sys.exit(main())
