"""Finds every technique and puts it into a small recipe; no technique is named here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kingpost import catalogue
from kingpost.net import Net
from kingpost.recipe import Recipe
from kingpost.technique import Technique
from kingpost.train import checkpoint

KINDS = ("model", "initialise", "optimizer", "schedule", "technique", "layout")
STEPS, BATCH = 6, 8  # two epochs of three steps


def subjects() -> list[tuple[str, str]]:
    """(kind, name) of everything in the catalogue that is a technique and needs no files of the user's."""
    found = [(kind, name, catalogue.find(kind, name)) for kind in KINDS for name in catalogue.CATALOGUE[kind]]
    return [(kind, name) for kind, name, cls in found if cls.example is not None]  # type: ignore[attr-defined]


def make(kind: str, name: str, **fields: Any) -> Technique:
    """The technique with its example fields, or the given ones on top."""
    cls = catalogue.find(kind, name)
    assert isinstance(cls, type) and issubclass(cls, Technique)
    return cls(**{**cls.example, **fields})


# Form of sample -> the toy of that form. Images, and tokens to be continued, are what the toy gives by default.
TOYS = {
    "table": "codes", "clip": "clips", "series": "series", "tokens": "tokens", "token-pair": "pairs",
    "nodes": "nodes", "graph": "graphs",
}  # fmt: skip
MODELS: dict[str, Any] = {
    "language-modelling": {"name": "gpt", "depth": 1, "width": 8, "heads": 2},
    "sequence-to-sequence": "seq2seq",
    "multi-task": "multi-task",
}


def toy_for(subject: Technique | None) -> dict[str, str]:
    """Task and form of the toy that a subject is tried on: its first task, and the first form that it reads."""
    task = subject.tasks[0] if subject is not None and subject.tasks else "classification"
    if task == "multi-task":
        return {"task": task, "form": "heads"}
    if task == "sequence-to-sequence":
        return {"task": task, "form": "pairs"}
    reads = getattr(subject, "reads", ("image",))
    if reads[0] == "series" and subject is not None and not isinstance(subject, Net) and task in subject.tasks:
        return {"task": task, "form": "recordings"}  # the toy of a net that reads series is a forecast
    if "image" in reads or task == "language-modelling":
        return {"task": task, "form": ""}
    return {"task": task, "form": TOYS[reads[0]]}


def recipe_with(kind: str, subject: Technique | None, dtype: str = "float64") -> Recipe:
    """A toy recipe in which the subject stands at its place; None leaves the place as the plain recipe has it."""
    toy = toy_for(subject)
    needed = subject.example_model if subject is not None else ""
    fields: dict[str, Any] = {
        "name": "toy",
        "data": {"name": "contract.toys:Toy", **toy, "dtype": dtype},
        "model": example_model(needed or MODELS.get(toy["task"], {"name": "mlp", "widths": [16]})),
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.5},
        "batch_size": BATCH,
        "budget": {"epochs": 2},
        "layout": {"name": "data-parallel", "threads": 1},
        "save": {"every_steps": 1, "keep": 100, "report": False},
    }
    if subject is not None:
        fields[{"technique": "techniques"}.get(kind, kind)] = [subject] if kind == "technique" else subject
    if kind == "layout" and subject is not None:
        fields["layout"] = subject.with_(threads=1)
    return Recipe.from_value(fields)


def example_model(named: Any) -> Any:
    """A net by name alone is the one that it shows as its example."""
    return make("model", named) if isinstance(named, str) else named


def dtype_of(subject: Technique) -> str:
    """Half precision is tested from 32 bits, since autocast leaves 64 bits alone."""
    return "float32" if subject.name in ("bf16", "fp16") else "float64"


def plus(recipe: Recipe, *techniques: Any) -> Recipe:
    """The recipe with more techniques, at the places where their `after` wants them."""
    from kingpost.option import choose
    from kingpost.technique import right_order

    added = [choose("technique", technique) for technique in techniques]
    everything = {t.name: t for t in [*added, *recipe.techniques]}
    order = right_order([t for t in everything.values() if isinstance(t, Technique)])
    return recipe.with_(techniques=tuple(everything[name] for name in order))


def state_of(run: Any) -> dict[str, Any]:
    """The state in the newest checkpoint of a run."""
    folder = run.folder / "checkpoints"
    return checkpoint._load(checkpoint.all_in(folder)[-1], torch.device("cpu"))


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Paths at which two nested states differ in any bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        return [] if same else [path]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}.{i}")]
    return [] if type(a) is type(b) and (a == b or (a != a and b != b)) else [path]


TIMES = ("seconds", "epoch_started_seconds", "samples_per_second", "peak_memory_mebibytes")


def without_times(state: dict[str, Any]) -> dict[str, Any]:
    """A state without what the clock and the memory meter say."""
    position = {key: value for key, value in state["position"].items() if key not in TIMES}
    position["rows"] = [{k: v for k, v in row.items() if k not in TIMES} for row in position["rows"]]
    return {**state, "position": position}


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference between two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
