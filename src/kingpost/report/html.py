"""``report.html``: everything about a run on one page that needs no network and no program but a browser."""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kingpost import catalogue, yaml_text
from kingpost.errors import KingpostError, MissingExtraError
from kingpost.files import write_text
from kingpost.finding import Finding
from kingpost.report import judged as judging
from kingpost.report.calibration import draw_calibration
from kingpost.report.curves import draw_epochs, draw_steps
from kingpost.report.scores import wilson_interval
from kingpost.report.staged import staged_page
from kingpost.report.words import duration, number, score, words
from kingpost.run import Row, Run
from kingpost.task import Task

TEMPLATE = Path(__file__).with_name("template.html.j2")
EARLY = "early stopping"
MOST_ANSWERS = 30
CHANGING = {"objective", "batch", "model"}  # slots through which a technique changes the training loss


@dataclass(frozen=True)
class Card:
    """One figure of the headline."""

    title: str
    value: str
    notes: Sequence[str]


@dataclass(frozen=True)
class Command:
    """Something to do next, and what for."""

    purpose: str
    line: str


def report(run: Run) -> Path:
    """Write ``report.html`` into the run's folder.

    Args:
        run: finished or not; what it does not hold yet is left out, and said to be missing.

    Returns:
        The file, which can be opened by a double click.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    if run.stages:
        for stage in run.stages:
            report(stage)
        return staged_page(run)
    path = run.folder / "report.html"
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The page as text; the same run gives the same text."""
    for library in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise MissingExtraError(library, extra="report", purpose="report.html") from error
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "score": score, "words": words}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(_collected(run))


def _collected(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    summary, results = run.summary, run.results
    text = (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    recipe = yaml_text.load(text)  # plain values: a recipe with a living object in it cannot be made again
    data = run.data
    task = (recipe.get("task") or {}).get("name") or data.get("task", "")
    found = _task(task)
    metric, unit = (found.metric, _unit(found, data)) if found else ("", "unit of the task")
    judged = judging.read_judged(run)
    best = summary.get("best") or {}
    return {
        "run": run,
        "task": task,
        "message": summary.get("message", ""),
        "cards": _cards(summary, results, metric, data.get("samples", {}), judged),
        "figures": _figures(best, summary.get("test") or {}),
        "unit": unit,
        "no_test": summary.get("status") == "finished" and not summary.get("test"),
        "findings": [(finding, _remedy(run, finding)) for finding in run.findings],
        "epochs": draw_epochs(results, best.get("epoch"), metric, unit, _changing(recipe)),
        "steps": draw_steps(run.steps, unit),
        "judged": judged,
        "calibration": draw_calibration(run),
        "answers": _answers(run),
        "most": {"classes": judging.MOST_CLASSES, "rows": judging.MOST_ROWS, "pairs": judging.MOST_PAIRS},
        "costs": _costs(summary, results, run.environment),
        "recipe": text,
        "environment": _flat(run.environment),
        "data": _data_facts(data),
        "commands": _commands(run, recipe, summary) if "\n# not reproducible" not in text else [],
    }


def _answers(run: Run) -> dict[str, Any] | None:
    """The first texts that the model has written, if it writes."""
    path = run.folder / "answers.json"
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value | {"answers": value["answers"][:MOST_ANSWERS]}


def _task(name: str) -> type[Task] | None:
    """The task; None if it is not known yet, or cannot be looked up here."""
    try:
        found = catalogue.find("task", name) if name else None
    except KingpostError:
        return None
    return found if isinstance(found, type) and issubclass(found, Task) else None


def _unit(task: type[Task], data: Mapping[str, Any]) -> str:
    """The unit of the loss, which is taken on the scaled target if there is a scale."""
    scaled = ", scaled target" if "target" in data.get("fitted", {}) else ""
    return task.unit.replace("_", " ") + scaled


def _changing(recipe: Mapping[str, Any]) -> list[str]:
    """The techniques that make the training loss another thing than the validation loss."""
    names = []
    for technique in recipe.get("techniques") or []:
        try:
            found = catalogue.find("technique", technique["name"])
        except KingpostError:
            continue
        if CHANGING & getattr(found, "touches", frozenset()):
            names.append(technique["name"])
    return names


def _cards(
    summary: Mapping[str, Any],
    results: Sequence[Row],
    metric: str,
    samples: Mapping[str, int],
    judged: judging.Judged | None,
) -> list[Card]:
    """The chosen metric on the test and on the validation part."""
    best, test = summary.get("best") or {}, summary.get("test") or {}
    cards = []
    for part, value in (("test", test.get(metric)), ("validation", best.get(f"validation_{metric}"))):
        if value is None:
            continue
        n = samples.get(part, 0)
        notes = [f"n = {n:,} samples"] if n else []
        if metric == "accuracy" and n:
            low, high = wilson_interval(value, n)
            notes.append(f"95 % interval {low:.3f} to {high:.3f} (Wilson)")
        if part == "validation":
            notes.append(f"best of {len(results)} epochs (epoch {best['epoch']}), so it flatters a little")
        elif judged and judged.part == "test" and judged.right is not None:
            wrong = f"{judged.samples - judged.right:,} wrong"
            notes.append(f"{wrong}; always the commonest class: {judged.commonest:.3f}")
        cards.append(Card(f"{part} {words(metric)}", number(value), notes))
    return cards


def _figures(best: Mapping[str, float], test: Mapping[str, float]) -> list[tuple[str, Any, Any]]:
    """Every figure: its name, its value on validation, its value on test."""
    validation = {key.removeprefix("validation_"): value for key, value in best.items() if key != "epoch"}
    return [(words(key), validation.get(key), test.get(key)) for key in dict.fromkeys([*validation, *test])]


def _remedy(run: Run, finding: Finding) -> str:
    """The command that tries a finding's remedy."""
    if not finding.remedy:
        return ""
    return _command("train", run.folder / "recipe.yaml", *map(str, finding.remedy.changes))


def _costs(
    summary: Mapping[str, Any], results: Sequence[Row], environment: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Time and memory: what, how much, remark."""
    costs = []
    if seconds := summary.get("seconds"):
        evaluation = "training and evaluation; the judgement at the end not counted"
        costs.append(("time", duration(seconds), evaluation))
        steps = summary["step"]
        costs.append(("steps", number(steps), f"{steps / seconds:.3g} a second, all included"))
    speeds = sorted(row["samples_per_second"] for row in results if "samples_per_second" in row)
    if speeds:
        spread = f"median of {len(speeds)} epochs; {number(speeds[0])} to {number(speeds[-1])}"
        costs.append(("training speed", f"{number(speeds[len(speeds) // 2])} samples/s", spread))
    memory = [row["peak_memory_mebibytes"] for row in results if "peak_memory_mebibytes" in row]
    if memory:
        device = str(environment.get("device", ""))
        where = f"tensors on {device}" if device.startswith("cuda") else "whole process, libraries included"
        costs.append(("peak memory", f"{number(float(max(memory)))} MiB", where))
    return costs


def _data_facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not data:
        return []
    facts = [(f"{part} samples", number(count)) for part, count in data["samples"].items()]
    facts += [("input", f"{_shape(x['shape'])} {x['dtype'].removeprefix('torch.')}") for x in data["inputs"]]
    facts += [("target", _shape(data["target_shape"]))]
    facts += [(name, _listed(data[name])) for name in ("classes", "features") if data[name]]
    if data["vocabulary"]:
        facts.append(("vocabulary", f"{number(data['vocabulary'])} tokens"))
    if data["fitted"]:
        facts.append(("fitted on the training part", ", ".join(data["fitted"])))
    return [*facts, ("SHA-256", data["fingerprint_sha256"])]


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one value"


def _listed(values: Sequence[str], most: int = 20) -> str:
    return f"{len(values)}: " + ", ".join(values[:most]) + (" …" if len(values) > most else "")


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            rows += [(str(name), str(version)) for name, version in value.items()]
        else:
            rows.append((words(key), number(value)))
    return rows


def _commands(run: Run, recipe: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Command]:
    """What one would do next, given how far the run is."""
    folder, recipe_file = run.folder, run.folder / "recipe.yaml"
    found = []
    if summary.get("status") != "finished":
        found.append(("Go on from the newest checkpoint:", _command("resume", folder)))
    else:
        if summary.get("test"):
            found.append(("Predictions for the test part:", _command("predict", folder, "--part", "test")))
        found.append(("Predictions for new samples:", _command("predict", folder, "--input", "FILE")))
        if not str(summary.get("message", "")).startswith(EARLY):
            key, value = next((key, value) for key, value in recipe["budget"].items() if value is not None)
            purpose = "Train on, to twice the budget (the schedule is stretched to it):"
            found.append((purpose, _command("resume", folder, f"budget.{key}={2 * value}")))
    if lr := (recipe.get("optimizer") or {}).get("lr"):
        half = _command("train", recipe_file, f"optimizer.lr={lr / 2:.3g}")
        found.append(("The same with half the learning rate:", half))
    other_seed = _command("train", recipe_file, f"seed={recipe['seed'] + 1}")
    found.append(("The same with another seed, to see how much is luck:", other_seed))
    return [Command(purpose, line) for purpose, line in found]


def _command(verb: str, path: Path, *arguments: str) -> str:
    return shlex.join(["kingpost", verb, str(path), *arguments])
