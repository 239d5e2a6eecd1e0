"""The pages on networks: nets.md from the catalogue, results.md from measurements, parity.md from the comparisons."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import json
import platform
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import kingpost
from kingpost.build.listing import nets
from kingpost.net import FORMS
from kingpost.recipe import Recipe

DOCS = Path(__file__).resolve().parent
MEASURED = DOCS.parent / "benchmarks" / "results" / "architectures.json"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# ---- nets.md


def nets_page() -> str:
    """Every net with all its sizes."""
    lines = [
        "# Networks\n",
        "Plain `nn.Module`s that fill the `model` slot. The parameters are counted from the code; where a size is "
        "published, the number must equal the published one, and a test compares them. That the outputs and gradients "
        "are right too is shown in [the table of comparisons](parity.md); what the nets reach on real data in "
        "[the table of results](results.md); how to change their size in [Sizing](sizing.md). `kingpost nets` prints "
        "this list, `kingpost plan RECIPE` the layers of the net in a recipe.\n",
    ]
    for entry in nets():
        reads = "; ".join(FORMS[form] for form in entry.reads)  # type: ignore[index]
        facts = [f"- reads: {reads}", f"- tasks: {', '.join(entry.tasks) or 'all'}", f"- paper: {entry.paper}"]
        rows = [
            (f"`{s.size}`", f"{s.parameters:,}", f"{s.published:,}" if s.published is not None else "", s.sample)
            for s in entry.sizes
        ]
        lines += [
            f"## {entry.name}\n",
            f"{sentence(entry.summary)} Fields: [{entry.name}](techniques.md#{entry.name}).\n",
        ]
        lines += ["\n".join(facts) + "\n", table(("size", "parameters", "published", "counted on"), rows)]
    return "\n".join(lines)


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


# ---- results.md


def results_page() -> str:
    """What every recipe reached, from the measurements."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {"runs": [], "baselines": {}}
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in measured["runs"]:
        runs.setdefault(run["recipe"], []).append(run)
    machines = sorted({f"{run['machine']}, torch {run['torch']}" for run in measured["runs"]})
    dates = sorted(run["date"] for run in measured["runs"])
    when = f"Measured from {dates[0]} to {dates[-1]} on: {'; '.join(machines)}." if dates else "Nothing measured yet."
    rows = [row(name, runs[name], measured["baselines"].get(name, {})) for name in sorted(runs, key=data_of)]
    return "\n".join(
        [
            "# Results\n",
            "Every recipe in `recipes/`, trained as it stands on one thread, and judged on its test part (validation "
            "where there is none). Budgets are short and nothing was tuned at length: these figures show that the nets "
            "learn what they should, not the best that they can do. Poor ones are kept. The baseline is a plain method "
            "on the same split.\n",
            f"{when} Seconds are noisy there, twofold. Written by `python benchmarks/architectures.py`.\n",
            table(("data", "recipe", "net", "parameters", "metric", "result", "n", "baseline", "seconds"), rows),
            notes(),
        ]
    )


def notes() -> str:
    """What has to be said on single rows, by hand, in results-notes.md."""
    path = DOCS / "results-notes.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def recipe_named(name: str) -> Recipe:
    """A recipe of the folder recipes/."""
    return Recipe.load(DOCS.parent / "recipes" / f"{name}.yaml")


def data_of(name: str) -> tuple[str, str]:
    """For sorting: all recipes on the same data together."""
    return first_line(name), name


def first_line(name: str) -> str:
    """What the recipe says its data is: the folder of its first file, else the name of its source."""
    data = recipe_named(name).data.to_value()
    for value in data.values():
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, str) and ("/" in first or "_" in first):
            return first.split("/")[0]
    return recipe_named(name).data.name


def row(name: str, runs: list[dict[str, Any]], baseline: dict[str, Any]) -> tuple[str, ...]:
    """One recipe: mean and spread over seeds."""
    first = runs[0]["test"] or runs[0]["best"]
    usual = "bleu" if "bleu" in first else next((key for key in first if key != "loss"), "loss")
    metric = baseline.get("metric") or usual
    metric = metric if metric in first else f"validation_{metric}" if f"validation_{metric}" in first else "loss"
    values = [(run["test"] or run["best"])[metric] for run in runs]
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    there = f"{baseline['value']:.4g} ({baseline['method']})" if baseline else ""
    seconds = statistics.median(run["seconds"] for run in runs)
    return (
        first_line(name),
        f"`{name}`",
        recipe_named(name).model.name,
        f"{runs[0]['parameters']:,}",
        metric,
        f"{statistics.mean(values):.4g}{spread}",
        str(len(values)),
        there,
        f"{seconds:.0f}",
    )


# ---- parity.md


def parity_page() -> str:
    """Run all comparisons; ends the program if one is out of its tolerance."""
    torch.set_num_threads(1)  # sums are taken in one order
    rows = []
    used, left = set[str](), set[str]()
    for case in cases():
        if not can_import(case.needs):
            left.add(case.needs)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reference libraries' own
            errors = case.compare()
        if max(errors.outputs, errors.gradients) > case.tolerance:
            sys.exit(f"{case.ours} differs from {case.reference}: {errors}; parity.md is left as it was")
        used.add(case.needs.split(".")[0])
        rows.append(
            (case.ours, case.reference, f"{errors.outputs:.1e}", f"{errors.gradients:.1e}", f"{case.tolerance:.0e}")
        )
        print(f"{case.ours} = {case.reference}: {errors}", flush=True)
    versions = [f"{name} {importlib.metadata.version(name.replace('_', '-'))}" for name in sorted(used | {"torch"})]
    return "\n".join(
        [
            "# Comparisons\n",
            "The same weights in our networks and in implementations that none of us wrote: largest differences of the "
            "outputs, and of the gradients with respect to weights and inputs, each as a fraction of the reference's "
            "largest value. In 64 bits where the reference can. `tests/parity/` repeats them on every change; there "
            "stands also where each tolerance comes from.\n",
            f"Run on {datetime.date.today().isoformat()} with kingpost {kingpost.__version__}, Python "
            f"{platform.python_version()}, {', '.join(versions)}: {len(rows)} comparisons.\n",
            table(("ours", "reference", "outputs", "gradients", "tolerance"), sorted(rows)),
            f"Left out, because it is not installed here: {', '.join(sorted(left))}.\n" if left else "",
        ]
    )


def can_import(module: str) -> bool:
    """Whether a library is there, with all that it needs itself."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def cases() -> Iterator[Any]:
    """All comparisons of tests/parity."""
    tests = DOCS.parent / "tests"
    sys.path.insert(0, str(tests))
    for path in sorted((tests / "parity").glob("cases_*.py")):
        yield from importlib.import_module(f"parity.{path.stem}").CASES
