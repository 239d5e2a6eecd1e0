"""The Study: a claim, and the trials that decide about it, as ``studies/NAME/study.yaml`` declares them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from annotated_types import Ge, Gt

from kingpost import catalogue, yaml_text
from kingpost.errors import RecipeError, RunError, nearest
from kingpost.option import Option, checked, field_names
from kingpost.prove.declaration import digest
from kingpost.recipe import Recipe

STUDIES, DECLARED = "studies", "study.yaml"
Mode = Literal["quick", "full"]
Word = Literal["helps", "neutral", "harms"]
WORDS: tuple[Word, ...] = get_args(Word)
ADDED = ("changes", "given")  # mappings to which a trial and ``quick`` add, rather than replace them


@checked
class StudyTrial(Option):
    """One trial of a study: a baseline, arms, and how they are judged."""

    base: str | dict[str, Any] | None = None
    """The baseline: a bundled recipe's name, or a whole recipe."""
    changes: dict[str, Any] = field(default_factory=dict)
    """A patch of the baseline, which all arms share."""
    function: str | None = None
    """Instead of a recipe: ``module:function`` of ``(seed, **arguments)`` that returns the metric."""
    given: dict[str, Any] = field(default_factory=dict)
    """Arguments of the function that all arms share."""
    arms: dict[str, dict[str, Any]]
    """Name -> patch of the baseline, or arguments of the function."""
    metric: str | None = None
    """What is judged; null takes the task's own."""
    direction: Literal["max", "min"] | None = None
    """Which is better; null takes what is known of the metric."""
    smallest_effect: Annotated[float, Gt(0)]
    """The smallest difference that matters, in the metric's unit."""
    at: Literal["last", "best"] = "last"
    """Epoch whose metric counts."""
    budget: str | None = None
    """What is equal: steps, samples, seconds, flops; or own."""
    retune: tuple[str, ...] = ()
    """Nuisance parameters that every arm searches for itself."""
    factorial: tuple[str, ...] = ()
    """Arms that are tried in every combination."""
    min_pairs: Annotated[int, Ge(3)] = 5
    """No decision before so many."""
    max_pairs: Annotated[int, Ge(3)] = 20
    """No more pairs than so many."""
    expect: dict[str, Word | list[Word]] = field(default_factory=dict)
    """Arm -> what the claim says of it: helps, neutral, harms, or several of these. An arm may be left out."""
    claimed_fewer_errors: dict[str, float] = field(default_factory=dict)
    """Arm -> part of the baseline's errors (1 - metric) that the claim says it avoids."""
    on: str | None = None
    """Data and net in words, where they differ from the study's."""
    note: str = ""
    """What is asked here, in a few words."""

    def __post_init__(self) -> None:
        if (self.base is None) == (self.function is None):
            raise RecipeError("exactly one of base and function must be given", path="base")
        if not self.arms:
            raise RecipeError("a trial needs at least one arm", path="arms", mend="arms: {he: {initialise: he}}")
        known = [*self.arms, *(["a x b"] if self.factorial else [])]
        for key in ("expect", "claimed_fewer_errors"):
            for arm in getattr(self, key):
                if arm not in self.arms and not self.factorial:
                    raise RecipeError("no such arm", path=f"{key}.{arm}", mend=nearest(arm, known))

    def expected(self, arm: str) -> tuple[Word, ...]:
        """What the claim says of an arm; nothing if it does not speak of it."""
        words = self.expect.get(arm, ())
        return (words,) if isinstance(words, str) else tuple(words)

    def recipe(self, name: str) -> Recipe:
        """The baseline's recipe.

        Raises:
            RecipeError: it is not valid, or there is none.
        """
        if isinstance(self.base, str):
            found = Recipe.load(self.base)
        else:
            found = Recipe.from_value({"name": name, **(self.base or {})})
        try:
            return found.patched(self.changes)
        except RecipeError as error:
            raise error.under("changes") from error.__cause__

    def subject(self, name: str) -> Recipe | Callable[..., float]:
        """What ``prove`` is asked about: the baseline's recipe, or the function with its shared arguments.

        Raises:
            RecipeError: the recipe is not valid, or there is no such function.
        """
        if self.function is None:
            return self.recipe(name)
        found = catalogue.find("data", self.function) if ":" in self.function else None
        if not callable(found):
            raise RecipeError(f"no function '{self.function}'", path="function", mend="write module:function")
        return _bound(found, self.given)


def _bound(function: Callable[..., float], given: Mapping[str, Any]) -> Callable[..., float]:
    """The function with arguments filled in; what an arm says goes before them."""

    @functools.wraps(function)
    def call(seed: int, **changes: Any) -> float:
        return function(seed, **{**given, **changes})

    known = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for key in given:
            if key not in known:
                raise RecipeError("no such argument", path=f"given.{key}", mend=nearest(key, known))
    return call


@checked
class StudyText(Option):
    """What a study says of itself to people."""

    question: str
    """What is asked, one sentence."""
    claim: str
    """What is claimed, in our words."""
    source: str
    """Who claims it."""
    on: str
    """Data and net, in words."""
    scientific: str = ""
    """What is varied on purpose."""
    nuisance: str = ""
    """What could mask the effect, and what is done about it."""
    fixed: str = ""
    """What is held, so that the answer holds for it only."""
    cards: dict[str, str | list[str]] = field(default_factory=dict)
    """Technique (``kind/name``) -> arms whose verdict its card takes: ``arm`` in any trial, or ``trial/arm``."""
    limits: tuple[str, ...] = ()
    """What the study does not show."""

    def __post_init__(self) -> None:
        for key in self.cards:
            kind, _, name = key.partition("/")
            if name not in catalogue.CATALOGUE.get(kind, {}):
                every = [f"{k}/{n}" for k, names in catalogue.CATALOGUE.items() for n in names]
                raise RecipeError("no such technique", path=f"cards.{key}", mend=nearest(key, every))


@dataclass(frozen=True)
class Study:
    """A claim and its trials.

    Args:
        name: of its folder.
        text: what it says to people.
        shared: keys of :class:`StudyTrial` that hold for all trials.
        parts: trial -> keys of its own.
        quick: keys that change for a quick run; ``trials`` below it for single trials, ``only`` for some of them.
    """

    name: str
    text: StudyText
    shared: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    quick: Mapping[str, Any]

    @classmethod
    def from_value(cls, name: str, value: Mapping[str, Any]) -> Study:
        """A study from the values of its file; every trial is checked, quick and full.

        Raises:
            RecipeError: a key is unknown, absent or wrong; says which.
        """
        of_text, of_trial = field_names(StudyText), field_names(StudyTrial)
        known = {*of_text, *of_trial, "trials", "quick"}
        if unknown := [key for key in value if key not in known]:
            raise RecipeError("unknown key", path=unknown[0], mend=nearest(unknown[0], known))
        quick = dict(value.get("quick", {}))
        study = cls(
            name=name,
            text=StudyText.from_value({key: item for key, item in value.items() if key in of_text}),
            shared={key: item for key, item in value.items() if key in of_trial and key not in of_text},
            parts=value.get("trials", {"trial": {}}),
            quick=quick,
        )
        for where, names in (("quick.only", quick.get("only", [])), ("quick.trials", quick.get("trials", {}))):
            if strange := [one for one in names if one not in study.parts]:
                raise RecipeError("no such trial", path=f"{where}.{strange[0]}", mend=nearest(strange[0], study.parts))
        full = study.trials(quick=False)
        study.trials(quick=True)
        study._check_cards(full)
        return study

    @classmethod
    def open(cls, folder: Path) -> Study:
        """The study of a folder.

        Raises:
            RunError: there is none.
            RecipeError: its file is not valid.
        """
        path = folder / DECLARED
        if not path.is_file():
            known = [one.parent.name for one in folder.parent.glob(f"*/{DECLARED}")]
            raise RunError(f"no study '{folder}': there is no {DECLARED}; {nearest(folder.name, known)}")
        try:
            value = yaml_text.load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise RecipeError(f"not valid YAML: {error}", path=str(path)) from error
        if not isinstance(value, Mapping):
            raise RecipeError("expected keys and values", path=str(path))
        try:
            return cls.from_value(folder.name, value)
        except RecipeError as error:
            raise RecipeError(error.problem, path=f"{path}: {error.path}", mend=error.mend) from error

    def trials(self, quick: bool) -> dict[str, StudyTrial]:
        """Every trial by name, as it is run.

        Raises:
            RecipeError: one is not valid; says which.
        """
        found = {}
        below = {key: item for key, item in self.quick.items() if key not in ("trials", "only")} if quick else {}
        wanted = self.quick.get("only", list(self.parts)) if quick else list(self.parts)
        for name in wanted:
            own = self.quick.get("trials", {}).get(name, {}) if quick else {}
            merged: dict[str, Any] = {}
            for layer in (self.shared, self.parts[name] or {}, below, own):
                merged |= {k: _both(merged.get(k, {}), v) if k in ADDED else v for k, v in layer.items()}
            try:
                found[name] = StudyTrial.from_value(merged)
            except RecipeError as error:
                raise error.under(f"{'quick.' * quick}trials.{name}") from error.__cause__
        return found

    def _check_cards(self, trials: Mapping[str, StudyTrial]) -> None:
        known = {arm for trial in trials.values() for arm in trial.arms}
        known |= {f"{name}/{arm}" for name, trial in trials.items() for arm in trial.arms}
        for key, arms in self.text.cards.items():
            for arm in (arms,) if isinstance(arms, str) else arms:
                if arm not in known:
                    raise RecipeError(f"no arm '{arm}'", path=f"cards.{key}", mend=nearest(arm, known))


def _both(old: Any, new: Any) -> Any:
    """The new value, laid over the old one where both are mappings."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _both(old.get(key), value) for key, value in new.items()}}


def trial_id(name: str, trial: StudyTrial) -> str:
    """The name of a trial's folder: another declaration is another trial."""
    words = {key: item for key, item in trial.to_value().items() if key not in ("expect", "on", "note")}
    return f"{name}-{digest(words)[:8]}"


def studies_in(folder: Path) -> list[str]:
    """The names of all studies in a folder, in order."""
    return sorted(path.parent.name for path in folder.glob(f"*/{DECLARED}"))
