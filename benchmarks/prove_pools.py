"""Pools of real runs for the exam of the gate of evidence. Writes results/prove-pools.json.

    python benchmarks/prove_pools.py            # some 4,000 small runs, a quarter of an hour on one thread
    python benchmarks/prove_pools.py --smoke    # a few runs, nothing is written

The lists of a pool are one recipe, run with the same seeds: the second list has a breath of noise on its inputs
besides, which changes little but the rounding and what follows from it. So what two runs share by having the same
weights and batches is kept. (Not with layer norm on pictures with an empty background: it made 0.01 of noise there as
large as the picture, and cost 3 points of accuracy.)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kingpost.files import write_text
from kingpost.prove.vectorised import train_seeds
from kingpost.recipe import Recipe

POOLS = Path(__file__).resolve().parent / "results" / "prove-pools.json"
TOGETHER = 40  # seeds in one stack
BREATH = 0.01  # in standard deviations of an input
MLP = {"name": "mlp", "widths": [32]}
COMMON: dict[str, Any] = {
    "name": "pool",
    "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
    "save": {"report": False, "evaluate_every_epochs": 1000},
}
RECIPES: dict[str, tuple[int, dict[str, Any]]] = {
    "digits, perceptron": (400, {"data": "digits", "model": MLP, "budget": {"epochs": 5}}),
    "digits, convolutions with mixup": (
        160,
        {"data": "digits", "model": {"name": "cnn", "widths": [8, 16], "norm": "group"}, "techniques": ["mixup"],
         "optimizer": {"name": "adamw", "lr": 0.005}, "budget": {"epochs": 5}},
    ),
    "diabetes, perceptron": (
        400, {"data": {"name": "bundled", "which": "diabetes"}, "model": MLP, "budget": {"epochs": 20}}
    ),
    "wine, 27 samples judged": (400, {"data": {"name": "bundled", "which": "wine"}, "model": MLP}),
    "breast cancer, rate too high": (
        400,
        {"data": {"name": "bundled", "which": "breast-cancer"}, "model": MLP, "budget": {"epochs": 5},
         "optimizer": {"name": "sgd", "lr": 3.0, "momentum": 0.95}},
    ),
}  # fmt: skip


def values(recipe: Recipe, seeds: Sequence[int]) -> dict[str, list[float | None]]:
    """Each metric's last value for each seed; None for a run that failed."""
    found: dict[str, list[float | None]] = {}
    for start in range(0, len(seeds), TOGETHER):
        runs = train_seeds(recipe, seeds[start : start + TOGETHER])
        keys = [key for key in next(run.rows[-1] for run in runs if run.rows) if key.startswith("validation_")]
        for run in runs:
            for key in keys:
                value = None if run.failed else float(run.rows[-1][key])
                found.setdefault(key.removeprefix("validation_"), []).append(value)
    return found


def main() -> None:
    """Train, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", choices=RECIPES, help="one pool again; the others stay")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pools: dict[str, dict[str, list[list[float | None]]]] = json.loads(POOLS.read_text()) if args.only else {}
    for name, (count, fields) in RECIPES.items():
        if args.only not in (None, name):
            continue
        recipe = Recipe.from_value({**COMMON, **fields})
        technique = "gaussian-noise" if fields["data"] == "digits" else "feature-noise"
        breath = recipe.patched({"techniques+": {"name": technique, "std": BREATH}})
        seeds = range(4 if args.smoke else count)
        lists = [values(one, seeds) for one in (recipe, breath)]
        pools[name] = {metric: [found[metric] for found in lists] for metric in lists[0]}
        pools[f"{name}, not paired"] = {metric: [found] for metric, found in lists[0].items()}
        for metric, (a, b) in pools[name].items():
            both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
            one, two = (torch.tensor(side, dtype=torch.float64) for side in zip(*both, strict=True))
            print(f"{name}, {metric}: n {len(both)} of {len(a)}, mean {one.mean():.4g}, spread {one.std():.3g}, "
                  f"of differences {(one - two).std():.3g}", flush=True)  # fmt: skip
    if not args.smoke:
        rounded = json.loads(json.dumps(pools), parse_float=lambda text: float(f"{float(text):.7g}"))
        write_text(POOLS, json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main()
