"""The Recipe: a frozen, typed description of a run, the same thing in Python and in YAML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from annotated_types import Ge, Gt
from pydantic import Field

from kingpost import yaml_text
from kingpost.errors import RecipeError, nearest
from kingpost.files import write_text
from kingpost.option import Kind, Option, checked, choose, field_names, plain, unnamed
from kingpost.patch import Patch
from kingpost.source import Source
from kingpost.task import Task
from kingpost.technique import Technique, check_conflicts, check_order


@unnamed
@checked
class Budget(Option):
    """How long to train: exactly one of the three."""

    epochs: Annotated[int, Ge(1)] | None = None
    """Passes over the training data."""
    steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps."""
    seconds: Annotated[float, Gt(0)] | None = None
    """Seconds of training, evaluation included; such a run cannot be repeated bit for bit."""

    def __post_init__(self) -> None:
        given = [name for name in field_names(Budget) if getattr(self, name) is not None]
        if len(given) != 1:
            raise RecipeError(
                f"exactly one of epochs, steps, seconds must be given, got {' and '.join(given) or 'none'}",
                mend="keep one of them" if given else "for example epochs: 10",
            )

    def with_(self, **changes: object) -> Self:
        """A copy with another budget; one that is given takes the place of the others."""
        given = [name for name, value in changes.items() if value is not None]
        others: dict[str, object] = dict.fromkeys(field_names(Budget)) if len(given) == 1 else {}
        return super().with_(**(others | changes))


@unnamed
@checked
class Save(Option):
    """What is kept of a run, and when a checkpoint is written besides the one at the end of each epoch."""

    every_steps: Annotated[int, Ge(1)] | None = None
    """Also write a checkpoint every so many optimizer steps."""
    every_seconds: Annotated[float, Gt(0)] | None = 300.0
    """Also write a checkpoint whenever so many seconds have passed since the last one."""
    keep: Annotated[int, Ge(1)] = 2
    """How many of the newest checkpoints to keep; two, so that a damaged one has a predecessor."""
    evaluate_every_epochs: Annotated[int, Ge(1)] = 1
    """Judge the model on the validation part after every so many epochs, and after the last."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra 'tensorboard')."""
    report: bool = True
    """Write report.html at the end (needs the extra 'report'; without it, one line says so)."""


@checked
class Recipe(Option):
    """A run, described completely: what to learn from which data, with which techniques, for how long.

    >>> recipe = Recipe(name="digits", data="digits", model={"name": "mlp", "widths": [64]})
    >>> recipe.model.widths, recipe.optimizer.name, recipe.budget.epochs
    ((64,), 'adamw', 10)
    >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
    True
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder: letters, digits, dot, dash and underscore."""
    data: Annotated[Source, Kind("data")]
    """Where the samples come from."""
    model: Annotated[Technique, Kind("model")]
    """The network."""
    task: Annotated[Task | None, Kind("task")] = None
    """What is learned; null takes the one that the data is for."""
    initialise: Annotated[Technique | None, Kind("initialise")] = None
    """Starting weights; null leaves them as the model's constructor made them."""
    optimizer: Annotated[Technique, Kind("optimizer")] = field(default_factory=lambda: _technique("optimizer", "adamw"))
    """What turns gradients into steps."""
    schedule: Annotated[Technique, Kind("schedule")] = field(default_factory=lambda: _technique("schedule", "constant"))
    """How the learning rate changes during the run."""
    techniques: Annotated[tuple[Technique, ...], Kind("technique", many=True)] = ()
    """Techniques in the order in which they are mounted: a later one wraps an earlier one."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Samples per optimizer step, over all devices and micro-batches."""
    budget: Budget = field(default_factory=lambda: Budget(epochs=10))
    """How long to train."""
    layout: Annotated[Technique, Kind("layout")] = field(default_factory=lambda: _technique("layout", "data-parallel"))
    """Device, and number of processes that share each batch."""
    save: Save = field(default_factory=Save)
    """What is kept, and when."""
    seed: Annotated[int, Ge(0)] = 0
    """Determines initial weights, order of the data, and every random draw; not the split of the data."""
    stages: tuple[dict[str, Any], ...] = ()
    """Runs one after another: changes to this recipe, each on top of the last (``{}`` for none). A stage starts from
    the best weights of the one before it."""

    yaml_header: ClassVar[str] = "# A kingpost recipe. Train it again: kingpost train FILE [key=value ...]\n"

    def __post_init__(self) -> None:
        check_order(self.techniques)
        check_conflicts(technique for _, technique in self.mounts())
        object.__setattr__(self, "stages", tuple(plain(stage) for stage in self.stages))
        self.staged()
        if self.budget.seconds is not None and getattr(self.layout, "data", 1) > 1:
            raise RecipeError(
                "several processes have several clocks, and would part", path="budget.seconds", mend="use budget.steps"
            )

    def mounts(self) -> list[tuple[str, Technique]]:
        """All techniques in the order of mounting, each with its path in the recipe."""
        keys = ("layout", "model", "initialise", "optimizer", "schedule")
        found = [(key, getattr(self, key)) for key in keys]
        found += [(f"techniques.{technique.name}", technique) for technique in self.techniques]
        return [(path, technique) for path, technique in found if technique is not None]

    @property
    def not_reproducible(self) -> list[str]:
        """The keys that hold objects which the recipe's file cannot make again."""
        keys = {
            path: getattr(technique, "reproducible", True) and not technique.name.startswith("__main__:")
            for path, technique in self.mounts()
        }
        return [path for path, fine in {"data": self.data.reproducible, **keys}.items() if not fine]

    def staged(self) -> list[Recipe]:
        """The recipe of each stage, without the weights that it starts from; none if there are no stages.

        >>> recipe = Recipe(name="a", data="digits", model="mlp", stages=[{}, {"optimizer.lr": 0.1}, {"seed": 3}])
        >>> [(stage.name, stage.optimizer.lr, stage.seed) for stage in recipe.staged()]
        [('stage-1', 0.001, 0), ('stage-2', 0.1, 0), ('stage-3', 0.1, 3)]
        """
        found: list[Recipe] = []
        before = self.with_(stages=()) if self.stages else self
        for index, changes in enumerate(self.stages):
            if inside := [key for key in changes if key.rstrip("+-") in ("stages", "name")]:
                raise RecipeError("cannot be changed by a stage", path=f"stages.{index}.{inside[0]}", mend="remove it")
            try:
                before = before.patched(changes).with_(name=f"stage-{index + 1}")
            except RecipeError as error:
                raise error.under(f"stages.{index}") from error.__cause__
            found.append(before)
        return found

    def patched(self, *changes: str | Patch | Mapping[str, Any]) -> Recipe:
        """The recipe with overrides, written as on the command line, as a mapping, or as patches.

        >>> Recipe(name="a", data="digits", model="mlp").patched("optimizer.lr=0.1", {"seed": 3}).optimizer.lr
        0.1
        """
        recipe = self
        for change in changes:
            recipe = Patch.of(change).apply(recipe)
        return recipe

    @classmethod
    def from_yaml(cls, text: str, where: str = "") -> Self:
        """A recipe from the text of a YAML file.

        Args:
            text: the YAML document.
            where: name of the file, for error messages.

        Raises:
            RecipeError: not valid YAML, or not a valid recipe.
        """
        try:
            value = yaml_text.load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"not valid YAML: {error}", path=where) from error
        if not isinstance(value, Mapping):
            got = "an empty file" if value is None else repr(value)[:60]
            raise RecipeError(f"expected keys and values, got {got}", path=where, mend="see recipes/digits.yaml")
        try:
            return cls.from_value({str(key): item for key, item in value.items()})
        except RecipeError as error:
            raise type(error)(
                error.problem, path=": ".join(filter(None, (where, error.path))), mend=error.mend
            ) from error

    def to_yaml(self) -> str:
        """Every key with its value, defaults included, so that a later version reads the same run."""
        note = "".join(f"# not reproducible from this file: {key} was an object\n" for key in self.not_reproducible)
        return self.yaml_header + note + yaml_text.dump(self.to_value())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """A recipe from a YAML file, or one that comes with kingpost, by its name.

        Raises:
            RecipeError: no such file (similar names are given), or not a valid recipe.
        """
        path = Path(path)
        bundled = {recipe.stem: recipe for recipe in bundled_recipes()}
        if not path.exists() and str(path) in bundled:
            path = bundled[str(path)]
        if not path.is_file():
            here = {p.stem: p for p in path.parent.glob("*.yaml")}
            raise RecipeError(f"no recipe '{path}'", mend=nearest(path.stem, {**bundled, **here}))
        return cls.from_yaml(path.read_text(encoding="utf-8"), where=str(path))

    def save_to(self, path: Path | str) -> None:
        """Write the recipe as YAML, whole or not at all."""
        write_text(Path(path), self.to_yaml())

    def __str__(self) -> str:
        return _short(self)


def bundled_recipes() -> list[Path]:
    """The recipes that come with kingpost: beside the package in a wheel, in ``recipes/`` of a checkout."""
    package = Path(__file__).parent
    folders = (package / "recipes", package.parents[1] / "recipes")
    return sorted(next((f for f in folders if f.is_dir()), package).glob("*.yaml"))


def _technique(kind: str, name: str) -> Technique:
    chosen = choose(kind, name)
    assert isinstance(chosen, Technique)
    return chosen


def _short(recipe: Recipe) -> str:
    """The recipe in one line a key, sections without their defaults."""
    lines = []
    for key in field_names(Recipe):
        value = getattr(recipe, key)
        items = value if isinstance(value, tuple) else (value,)
        text = ", ".join(_brief(item) for item in items) or "none"
        lines.append(f"{key:<11} {text if len(text) < 100 else text[:97] + '...'}")
    return "\n".join(lines)


def _brief(value: object) -> str:
    if not isinstance(value, Option):
        return str(value)
    kept = {
        f.name: getattr(value, f.name)
        for f in dataclasses.fields(value)  # type: ignore[arg-type]
        if f.repr and getattr(value, f.name) != _default(f)
    }
    inner = ", ".join(f"{key}={item}" for key, item in kept.items())
    name = "" if isinstance(value, Budget | Save) else re.sub(r"^.*:", "", value.name)
    return f"{name}({inner})" if inner and name else name or inner or "defaults"


def _default(f: dataclasses.Field[Any]) -> object:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
