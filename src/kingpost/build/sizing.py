"""One dial for the size of a net: depth and width change, and what depends on them follows, each with a reason.

The recipe that is scaled is taken as one that works: the numbers are moved from where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from kingpost.errors import RecipeError, nearest
from kingpost.figure import Figure
from kingpost.net import Net
from kingpost.option import choose, field_names
from kingpost.patch import Patch
from kingpost.recipe import Recipe
from kingpost.source import Dataset
from kingpost.task import Task

TOKENS_PER_PARAMETER = 20
MOST_PASSES = 4
BATCH_EXPONENT = 0.4
SMALLEST_BATCH = 8


@dataclass(frozen=True)
class Sized:
    """A recipe of another size, the patch that made it, and the reason for each number."""

    recipe: Recipe
    patch: Patch
    figures: tuple[Figure, ...]

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        figures = [asdict(figure) for figure in self.figures]
        return {"recipe": self.recipe.to_value(), "patch": self.patch.to_value(), "figures": figures}

    def __str__(self) -> str:
        return "\n".join([f"size of '{self.recipe.name}'", *map(str, self.figures), "", f"patch: {self.patch}"])


def sized(recipe: Recipe, **dial: int | str) -> Sized:
    """The recipe with its net deeper, wider, or of a named size; learning rate, batch and steps follow.

    - learning rate: times ``sqrt(width / width')`` as the width changes (not under ``mu-parametrisation``, where one
      rate serves all widths; a habit, no law: see docs/width-transfer.md), and times ``sqrt(batch' / batch)`` as the
      batch does (Malladi et al., arXiv 2205.10287); for SGD times ``batch' / batch`` (Goyal et al., arXiv 1706.02677).
    - batch: grows with the tokens of the run to the power 0.4 (Bergsma et al., arXiv 2505.13738), to a power of two.
    - steps, for language models: 20 tokens a parameter (Hoffmann et al., arXiv 2203.15556), at most 4 passes over the
      data (Muennighoff et al., arXiv 2305.16264). Other budgets stay.

    Args:
        recipe: one that works; its model must be one of kingpost's nets.
        dial: ``depth``, ``width`` or ``size``; for image nets ``phi``, see :func:`compound`.

    Raises:
        RecipeError: the net has no such dial.

    >>> base = Recipe(name="a", data="digits", model={"name": "mlp", "width": 64, "depth": 2})
    >>> str(sized(base, width=256).patch)
    'model.width=256 optimizer.lr=0.0005'
    """
    net = _net(recipe)
    dials: list[str] = [name for name in ("depth", "width", "size") if name in field_names(type(net))]
    dials += ["phi"] if {"depth", "width"} <= set(dials) and "image" in net.reads else []
    for name in dial:
        if name not in dials:
            raise RecipeError(f"'{net.name}' has no dial '{name}'", path=name, mend=nearest(name, dials))
    if not dial:
        raise RecipeError("nothing to change", mend=f"give one of: {', '.join(dials)}")
    dataset = recipe.data.open()
    before = _measure(recipe, dataset)
    patch, notes = _net_patch(recipe, dataset, dial)
    changed = patch.apply(recipe)
    after = _measure(changed, dataset)
    figures = [Figure(change.key, _shown(change.value), "", notes.get(change.key, "given")) for change in patch.changes]
    figures += [Figure(key, "as it is", "", note) for key, note in notes.items() if key not in patch.to_value()]
    figures += [f for f in _net(changed).derived(dataset.facts) if f.name not in {c.key for c in patch.changes}]
    figures.append(Figure("parameters", after.parameters, "", f"were {before.parameters:,}"))
    training, reasons = _training(changed, dataset, before, after)
    patch += training
    return Sized(training.apply(changed), patch, (*figures, *reasons))


def compound(phi: float, depth: int, width: int, resolution: int) -> tuple[int, int, int]:
    """Compound scaling: depth, width and resolution grow together; twice the compute for each unit of ``phi``.

    ``depth * 1.2^phi``, ``width * 1.1^phi``, ``resolution * 1.15^phi``, with ``1.2 * 1.1^2 * 1.15^2 = 1.92``.
    Source: Tan and Le, "EfficientNet", arXiv 1905.11946, section 3.3.

    Args:
        phi: how many times the compute is doubled, about.
        depth: layers; rounded up.
        width: channels; to the nearest multiple of 8 that is at least nine tenths.
        resolution: pixels a side; rounded to whole pixels.

    >>> compound(0, 18, 64, 224), compound(3, 18, 64, 224)
    ((18, 64, 224), (32, 88, 341))
    """
    return (
        math.ceil(round(depth * 1.2**phi, 9)),
        _multiple_of_8(width * 1.1**phi),
        round(resolution * 1.15**phi),
    )


@dataclass(frozen=True)
class _Measured:
    parameters: int
    width: float


def _net(recipe: Recipe) -> Net:
    if not isinstance(recipe.model, Net):
        raise RecipeError(
            f"'{recipe.model.name}' is not one of kingpost's nets, so there is no dial to turn",
            path="model",
            mend="change its own arguments",
        )
    return recipe.model


def _net_patch(recipe: Recipe, dataset: Dataset, dial: Mapping[str, int | str]) -> tuple[Patch, dict[str, str]]:
    """The given values, and reasons; what was given before and would contradict them goes back to 'derived'."""
    net = _net(recipe)
    if getattr(net, "widths", None) is not None:
        raise RecipeError("the layers are given one by one", path="model.widths", mend="model.widths=null first")
    if "phi" in dial:
        if len(dial) > 1 or not isinstance(dial["phi"], int | float):
            raise RecipeError(f"got {dict(dial)}", path="phi", mend="a number, and no other dial beside it")
        return _compound_patch(recipe, dataset, float(dial["phi"]))
    changes: dict[str, Any] = {f"model.{name}": value for name, value in dial.items()}
    if "size" in dial:
        fixed = [name for name in ("depth", "width") if getattr(net, name, None) is not None and name not in dial]
        changes |= {f"model.{name}": None for name in fixed}
    return Patch.of(changes), {}


def _compound_patch(recipe: Recipe, dataset: Dataset, phi: float) -> tuple[Patch, dict[str, str]]:
    """Depth, width and, where the source sets it, resolution."""
    net, data = _net(recipe), recipe.data
    before = {name: _dial_value(net, dataset, name) for name in ("depth", "width")}
    pixels = getattr(data, "size", None)
    depth, width, resolution = compound(phi, before["depth"], before["width"], pixels or 1)
    notes = {
        "model.depth": f"{before['depth']} x 1.2 ^ {phi:g}, rounded up",
        "model.width": f"{before['width']} x 1.1 ^ {phi:g}, to a multiple of 8",
        "data.size": f"{pixels} x 1.15 ^ {phi:g}" if pixels else f"'{data.name}' gives images of one size",
    }
    changes = {"model.depth": depth, "model.width": width} | ({"data.size": resolution} if pixels else {})
    return Patch.of(changes), notes


def _dial_value(net: Net, dataset: Dataset, name: str) -> int:
    """A dial's number, given or derived."""
    derived = {figure.name: figure.value for figure in net.derived(dataset.facts)}
    value = net.of(name) or derived.get(f"model.{name}")
    if not isinstance(value, int):
        raise RecipeError(f"'{net.name}' does not say its {name}", path=f"model.{name}", mend="give it")
    return value


def _shown(value: Any) -> float | int | str:
    return value if isinstance(value, float | int | str) else "derived"


def _measure(recipe: Recipe, dataset: Dataset) -> _Measured:
    """Parameters, and the width: the root of the mean size of its matrices' inputs."""
    net, task = _net(recipe), recipe.task or choose("task", dataset.facts.task)
    assert isinstance(task, Task)
    net.check_form(dataset.facts)
    with torch.device("meta"):
        model: nn.Module = net.make(dataset.facts, task.outputs_per_sample(dataset.facts))
    given = net.of("width") if "width" in field_names(type(net)) else None
    derived = next((f.value for f in net.derived(dataset.facts) if f.name == "model.width"), None)
    width = given or derived or 1
    return _Measured(sum(p.numel() for p in model.parameters()), float(width))


def _training(recipe: Recipe, dataset: Dataset, before: _Measured, after: _Measured) -> tuple[Patch, list[Figure]]:
    """Steps, batch and learning rate, as a patch and with reasons."""
    changes: dict[str, Any] = {}
    reasons: list[Figure] = []
    batch_ratio = 1.0
    if dataset.facts.task == "language-modelling":
        batch_ratio = _tokens(recipe, dataset, before, after, changes, reasons)
    rate = getattr(recipe.optimizer, "lr", None)
    if isinstance(rate, float):
        width_ratio, transfers = after.width / before.width, "mu-parametrisation" in {t.name for t in recipe.techniques}
        factor = 1.0 if transfers else width_ratio**-0.5
        factor *= batch_ratio if recipe.optimizer.name == "sgd" else math.sqrt(batch_ratio)
        if factor != 1:
            changes["optimizer.lr"] = float(f"{rate * factor:.3g}")
        why = "mu-parametrisation: one rate for all widths" if transfers else f"{rate} x width {width_ratio:.3g} ^ -1/2"
        power = "" if recipe.optimizer.name == "sgd" else " ^ 1/2"
        why += f" x batch {batch_ratio:.3g}{power}" if batch_ratio != 1 else ""
        reasons.append(Figure("optimizer.lr", changes.get("optimizer.lr", rate), "", why))
    return Patch.of(changes), reasons


def _tokens(
    recipe: Recipe,
    dataset: Dataset,
    before: _Measured,
    after: _Measured,
    changes: dict[str, Any],
    reasons: list[Figure],
) -> float:
    """Steps and batch of a language model; returns by how much the batch grows."""
    per_sample = math.prod(dataset.facts.target_shape)
    there = len(dataset.splits["train"]) * per_sample
    wanted, before_wanted = (min(TOKENS_PER_PARAMETER * m.parameters, MOST_PASSES * there) for m in (after, before))
    grown = recipe.batch_size * (wanted / before_wanted) ** BATCH_EXPONENT
    batch = max(SMALLEST_BATCH, 2 ** round(math.log2(grown)))
    capped = wanted < TOKENS_PER_PARAMETER * after.parameters
    why = f"{MOST_PASSES} passes over {there:,} tokens" if capped else f"{TOKENS_PER_PARAMETER} a parameter"
    reasons.append(Figure("tokens", wanted, "tokens", why))
    if batch != recipe.batch_size:
        changes["batch_size"] = batch
    tokens_ratio = wanted / before_wanted
    reasons.append(
        Figure(
            "batch_size",
            batch,
            "samples",
            f"{recipe.batch_size} x tokens {tokens_ratio:.3g} ^ {BATCH_EXPONENT}, to a power of two",
        )
    )
    steps = max(1, round(wanted / (batch * per_sample)))
    changes["budget.steps"] = steps
    reasons.append(Figure("budget.steps", steps, "steps", f"tokens / ({batch} x {per_sample} a step)"))
    return float(batch / recipe.batch_size)


def _multiple_of_8(width: float) -> int:
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8
