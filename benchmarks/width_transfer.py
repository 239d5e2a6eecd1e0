"""Does the best learning rate stay where it is as a net becomes wider? The sweep behind docs/width-transfer.md.

    python benchmarks/width_transfer.py            # runs what is missing, then writes table and plot
    python benchmarks/width_transfer.py --smoke    # one point of each net, a few steps, nothing is written
    python benchmarks/width_transfer.py --page     # table and plot from the results that are there

Each point is one training from a kingpost recipe, with and without the technique `mu-parametrisation`; all else is
equal. A point that is in the results already is not run again, so the sweep can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kingpost
from kingpost.assembly import Step
from kingpost.recipe import Recipe
from kingpost.source import Order
from kingpost.train.assemble import assemble
from kingpost.train.gradients.backward import clear_gradients

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "width-transfer.json"
DOCS = HERE.parent / "docs"
PAGE, PLOT = DOCS / "width-transfer.md", DOCS / "_static" / "width-transfer.svg"
BEGIN, END = "<!-- begin generated: width-transfer -->", "<!-- end generated -->"
WAYS = ("standard", "mu")


@dataclass(frozen=True)
class Sweep:
    """One net on one set of data, at several widths and learning rates.

    Args:
        title: what it is, for the table.
        recipe: fields of the recipe; the width of the model, the learning rate and the technique are added.
        widths: of the model; the first is the base of mu-parametrisation.
        rates: powers of two of the learning rate.
        steps: optimizer steps.
        tail: how many of the last steps the loss is averaged over.
        seeds: how many.
    """

    title: str
    recipe: dict[str, Any]
    widths: tuple[int, ...]
    rates: range
    steps: int
    tail: int
    seeds: int


def data_folder() -> Path:
    return Path(os.environ.get("KINGPOST_DATA", "."))


def images() -> dict[str, Any]:
    """A part of Fashion-MNIST, or scikit-learn's digits where that is not at hand."""
    folder = data_folder() / "fashion_mnist"
    if not folder.is_dir():
        return {"name": "digits"}
    return {"name": "idx", "folder": "fashion_mnist"}


def sweeps() -> dict[str, Sweep]:
    mlp = {"name": "mlp", "depth": 2}
    cnn = {"name": "cnn", "depth": 3, "norm": "none", "pool": "average"}
    gpt = {"name": "gpt", "depth": 2, "heads": 4, "tied": False}
    adam = {"name": "adamw", "weight_decay": 0.0}
    return {
        "mlp": Sweep(
            "perceptron, 2 hidden layers, Fashion-MNIST, Adam",
            {"data": images(), "model": mlp, "optimizer": adam, "batch_size": 64, "initialise": "he"},
            (64, 128, 256, 512, 1024), range(-12, -4), 200, 50, 2,
        ),
        "cnn": Sweep(
            "convolutions, 3 stages, Fashion-MNIST, Adam",
            {"data": images(), "model": cnn, "optimizer": adam, "batch_size": 32, "initialise": "he"},
            (8, 16, 32, 64), range(-11, -3), 80, 20, 1,
        ),
        "gpt": Sweep(
            "transformer, 2 blocks, Tiny Shakespeare, Adam",
            {"data": {"name": "text", "path": ["tiny_shakespeare/input.txt"], "context": 32},
             "model": gpt, "optimizer": adam, "batch_size": 8},
            (64, 128, 256, 512), range(-13, -4), 120, 30, 1,
        ),
    }  # fmt: skip


def recipe_of(sweep: Sweep, way: str, width: int, rate: int, seed: int) -> Recipe:
    fields = {**sweep.recipe, "name": "width-transfer", "seed": seed, "budget": {"steps": sweep.steps}}
    fields["model"] = {**sweep.recipe["model"], "width": width}
    fields["optimizer"] = {**sweep.recipe["optimizer"], "lr": 2.0**rate}
    if way == "mu":
        fields["techniques"] = [{"name": "mu-parametrisation", "base_width": sweep.widths[0]}]
    return Recipe.from_value(fields)


def trained(recipe: Recipe, tail: int) -> float:
    """The mean training loss of the last steps; infinite if the training broke down.

    The loop is kingpost's own step without its checkpoints and evaluations: tens of runs of a few seconds.
    """
    dataset = _opened(recipe)
    device = torch.device("cpu")
    assembly = assemble(recipe, dataset, device)
    optimizer = assembly.optimizer(assembly.model)
    assembly.model.train()
    losses: list[float] = []
    epoch = 0
    while True:
        order = Order(batch_size=recipe.batch_size, shuffle=True, seed=recipe.seed, epoch=epoch)
        for batch in dataset.splits["train"].batches(order):
            step = Step(index=len(losses), seed=recipe.seed, items=assembly.setting.task.items(batch.targets))
            loss = assembly.gradient(assembly.model, assembly.objective, assembly.batch(batch, step), step)
            losses.append(float(loss.mean()))
            if not math.isfinite(losses[-1]):
                return math.inf
            assembly.update(assembly.model, optimizer, step)
            clear_gradients(assembly.model)
            if len(losses) == recipe.budget.steps:
                return statistics.fmean(losses[-tail:])
        epoch += 1


_OPEN: dict[str, Any] = {}


def _opened(recipe: Recipe) -> Any:
    key = json.dumps(recipe.data.to_value(), default=str)
    if key not in _OPEN:
        _OPEN[key] = recipe.data.open()
    return _OPEN[key]


# ---- results


def points(sweep: Sweep) -> Iterator[tuple[str, int, int, int]]:
    for seed in range(sweep.seeds):
        for width in sweep.widths:
            for rate in sweep.rates:
                for way in WAYS:
                    if way == "mu" and width == sweep.widths[0]:
                        continue  # the base: both are the same there
                    yield way, width, rate, seed


def key_of(name: str, way: str, width: int, rate: int, seed: int) -> str:
    return f"{name}/{way}/{width}/{rate}/{seed}"


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"points": {}}


def run_all(only: list[str]) -> None:
    torch.set_num_threads(1)
    done = load()
    done["kingpost"], done["torch"], done["python"] = kingpost.__version__, torch.__version__, platform.python_version()
    done["machine"] = f"{os.cpu_count()} cores, no GPU; one thread"
    started = time.perf_counter()
    for name, sweep in sweeps().items():
        if only and name not in only:
            continue
        wanted = [point for point in points(sweep) if key_of(name, *point) not in done["points"]]
        for number, point in enumerate(wanted, 1):
            loss = trained(recipe_of(sweep, *point), sweep.tail)
            done["points"][key_of(name, *point)] = None if math.isinf(loss) else round(loss, 5)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
            minutes = (time.perf_counter() - started) / 60
            print(
                f"{name} {number}/{len(wanted)}  {key_of(name, *point):32} {loss:8.4f}   {minutes:5.1f} min", flush=True
            )


def smoke() -> None:
    torch.set_num_threads(1)
    for name, sweep in sweeps().items():
        for way in WAYS:
            recipe = recipe_of(sweep, way, sweep.widths[-1], sweep.rates[2], 0).patched({"budget": {"steps": 6}})
            started = time.perf_counter()
            loss = trained(recipe, 3)
            print(
                f"{name:5} {way:9} {sweep.widths[-1]:5} {loss:8.4f}  {(time.perf_counter() - started):.2f} s",
                flush=True,
            )


def curve(done: dict[str, Any], name: str, sweep: Sweep, way: str, width: int) -> dict[int, float]:
    """Mean loss over seeds at each rate; infinite where any seed broke down."""
    way = "standard" if width == sweep.widths[0] else way
    found = {}
    for rate in sweep.rates:
        losses = [done["points"].get(key_of(name, way, width, rate, seed), "absent") for seed in range(sweep.seeds)]
        if "absent" not in losses:
            found[rate] = math.inf if None in losses else statistics.fmean(losses)
    return found


def best(found: dict[int, float]) -> int | None:
    return min(found, key=lambda rate: found[rate]) if found and min(found.values()) < math.inf else None


def table(done: dict[str, Any]) -> list[str]:
    heads = ["net", "width", "best rate, standard", "loss", "best rate, mu", "loss", "loss at the base's best rate, "
             "standard", "and mu"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, sweep in sweeps().items():
        base = best(curve(done, name, sweep, "standard", sweep.widths[0]))
        for width in sweep.widths:
            cells = []
            for way in WAYS:
                found = curve(done, name, sweep, way, width)
                top = best(found)
                cells += ["", ""] if top is None else [f"2^{top}", f"{found[top]:.3f}"]
            for way in WAYS:  # what the base's best rate would have given
                found = curve(done, name, sweep, way, width)
                loss = found.get(base, math.nan) if base is not None else math.nan
                cells.append("broke down" if math.isinf(loss) else f"{loss:.3f}")
            lines.append(f"| {name} | {width} | " + " | ".join(cells) + " |")
    return lines


def verdicts(done: dict[str, Any]) -> list[str]:
    """How far the best rate moves over the widths, in factors of two."""
    lines = []
    for name, sweep in sweeps().items():
        moved = {}
        for way in WAYS:
            tops = [best(curve(done, name, sweep, way, width)) for width in sweep.widths]
            known = [top for top in tops if top is not None]
            moved[way] = 2 ** (max(known) - min(known)) if known else math.nan
        seeds = f"{sweep.seeds} seeds" if sweep.seeds > 1 else "1 seed"
        edge = "" if not _at_edge(done, name, sweep) else " (a best rate lies at the edge of the grid: at least)"
        lines.append(
            f"- **{name}**: {sweep.title}; {seeds}, {sweep.steps} steps. From {sweep.widths[0]} to "
            f"{sweep.widths[-1]} the best rate moves by a factor of {moved['standard']:g} under the standard "
            f"parametrisation, and of {moved['mu']:g} under mu{edge}."
        )
    return lines


def _at_edge(done: dict[str, Any], name: str, sweep: Sweep) -> bool:
    tops = {best(curve(done, name, sweep, way, width)) for way in WAYS for width in sweep.widths}
    return bool(tops & {sweep.rates[0], sweep.rates[-1]})


def draw(done: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "width-transfer"
    from matplotlib import pyplot

    shown = sweeps()
    figure, axes = pyplot.subplots(len(shown), 2, figsize=(9, 3.2 * len(shown)), squeeze=False, layout="constrained")
    for row, (name, sweep) in zip(axes, shown.items(), strict=True):
        start = [loss for way in WAYS for w in sweep.widths for loss in curve(done, name, sweep, way, w).values()]
        finite = [loss for loss in start if loss < math.inf]
        for axis, way in zip(row, WAYS, strict=True):
            for shade, width in zip(np.linspace(0.15, 0.9, len(sweep.widths)), sweep.widths, strict=True):
                found = {r: loss for r, loss in curve(done, name, sweep, way, width).items() if loss < math.inf}
                colour = pyplot.get_cmap("viridis")(shade)
                axis.plot(list(found), list(found.values()), marker=".", color=colour, label=str(width))
                if (top := best(found)) is not None:
                    axis.plot([top], [found[top]], marker="*", markersize=12, color=colour)
            axis.set(title=f"{name}, {way}", xlabel="log2 of the learning rate", ylabel="training loss")
            if finite:
                axis.set_ylim(min(finite) * 0.95, sorted(finite)[int(0.8 * len(finite))] * 1.1)
            axis.legend(title="width", fontsize=7, title_fontsize=7)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


def write_page() -> None:
    done = load()
    draw(done)
    made = [
        *verdicts(done),
        "",
        *table(done),
        "",
        f"kingpost {done['kingpost']}, torch {done['torch']}, Python {done['python']}; {done['machine']}. "
        "Loss: mean training loss of the last steps, in nats, mean over seeds.",
    ]
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(made) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="mlp, cnn, gpt")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        smoke()
    else:
        if not given.page:
            run_all(given.only)
        write_page()
