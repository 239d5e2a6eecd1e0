"""The Declaration: all that is fixed before the first run, and written to the ledger first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kingpost.errors import RecipeError, RunError
from kingpost.files import write_json
from kingpost.prove.questions import BASELINE, Question, against_baseline, cells, effects
from kingpost.prove.sequential import Test

DECLARATION = "declaration.json"
MOST_PAIRS, FEWEST_PAIRS = 30, 5  # where nobody asks for others; decision 0012


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for; a command with other wishes is another trial."""

    metric: str | None = None
    direction: Literal["max", "min"] | None = None
    smallest_effect: float | None = None
    alpha: float = 0.05
    power: float = 0.8
    min_pairs: int | None = None
    max_pairs: int | None = None
    at: Literal["last", "best"] = "last"
    budget: str | None = None
    retune: tuple[str, ...] = ()
    factorial: tuple[str, ...] = ()
    first_seed: int = 0
    threads: int = 1

    @property
    def fewest_pairs(self) -> int:
        """No decision before so many: as given, or five, or all where there are fewer."""
        if self.min_pairs is not None:
            return self.min_pairs
        return FEWEST_PAIRS if self.max_pairs is None else min(FEWEST_PAIRS, self.max_pairs)


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A trial, described completely; with it alone a trial can be gone on with."""

    name: str
    kind: Literal["recipe", "command", "function"]
    asked: Mapping[str, Any]
    """As the user wrote it, with the baseline and the arms: what makes two trials the same."""
    patches: Mapping[str, str]
    """Each arm's change, in words."""
    work: Mapping[str, Any]
    """What each arm, the baseline among them, runs: a recipe's values, or the words of a command."""
    column: str
    metric: str
    higher_is_better: bool
    at: str
    smallest_effect: float
    smallest_effect_reason: str
    alpha: float
    power: float
    min_pairs: int
    max_pairs: int
    max_pairs_reason: str
    budget: str
    retune: Mapping[str, Mapping[str, list[Any]]] = field(default_factory=dict)
    """Key -> arm -> the values that are tried, the arm's own first."""
    factorial: tuple[str, ...] = ()
    first_seed: int = 0
    threads: int = 1
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each arm: parameters, FLOPs of a step, samples, estimated seconds and bytes."""
    version: str = ""
    declared_at: str = ""

    @property
    def arms(self) -> list[str]:
        """All arms but the baseline."""
        return [arm for arm in self.work if arm != BASELINE]

    @property
    def questions(self) -> list[Question]:
        """What is asked, each with its own answer."""
        return effects(self.factorial) if self.factorial else against_baseline(self.arms)

    @property
    def test(self) -> Test:
        """The test that is applied to each question."""
        return Test(
            smallest_effect=self.smallest_effect,
            alpha=self.alpha,
            power=self.power,
            min_pairs=self.min_pairs,
            max_pairs=self.max_pairs,
        )

    @property
    def question_sha256(self) -> str:
        """The same for two trials that were asked for in the same words."""
        return digest(self.asked)

    def seed(self, index: int) -> int:
        """The seed of a pair, from 0."""
        return self.first_seed + index

    def to_value(self) -> dict[str, Any]:
        """As plain values for JSON; :meth:`from_value` is the inverse."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return value

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Declaration:
        """A declaration from the values that :meth:`to_value` gives."""
        return cls(**{**value, "factorial": tuple(value["factorial"])})

    def save_to(self, folder: Path) -> None:
        """Write ``declaration.json``."""
        write_json(folder / DECLARATION, self.to_value())

    @classmethod
    def open(cls, folder: Path) -> Declaration:
        """That of a trial's folder.

        Raises:
            RunError: there is none.
        """
        path = folder / DECLARATION
        if not path.is_file():
            raise RunError(f"no trial in '{folder}': there is no {DECLARATION}")
        return cls.from_value(json.loads(path.read_text(encoding="utf-8")))

    def check_same(self, asked: Mapping[str, Any], folder: Path) -> None:
        """A trial cannot become another one.

        Raises:
            RecipeError: something was asked for that differs from what is declared; says what.
        """
        now = json.loads(json.dumps(asked))
        if now == self.asked:
            return
        keys = [key for key in {**self.asked, **now} if self.asked.get(key) != now.get(key)]
        was, is_now = (_short(some.get(keys[0])) for some in (self.asked, now))
        raise RecipeError(
            f"trial '{folder}' was declared with {keys[0]} {was}, now it is {is_now}; what is declared stays",
            mend=f"start another one with --name NAME, or go on with this one: kingpost prove --resume {folder}",
        )


def check_arms(patches: Mapping[str, Any], factorial: tuple[str, ...] = ()) -> None:
    """Refuse a trial without arms, and names that cannot be a folder's.

    Raises:
        RecipeError: says which.
    """
    if not patches:
        raise RecipeError(
            "a trial needs at least one arm",
            path="arms",
            mend="for example --arm smoothing techniques+=label-smoothing",
        )
    for name in patches:
        if name == BASELINE or not name or not set(name) <= _PLAIN or name[0] in ".-+":
            raise RecipeError(
                f"'{name}' cannot be the name of an arm", path="arms", mend="use letters, digits, dot, dash, underscore"
            )
    if factorial and (len(factorial) < 2 or set(factorial) != set(patches)):
        raise RecipeError(
            f"got {', '.join(factorial)}, but the arms are {', '.join(patches)}",
            path="factorial",
            mend="name two or more arms, and no arm besides",
        )


def combined(patches: Mapping[str, Any], factorial: tuple[str, ...]) -> dict[str, list[Any]]:
    """The patches of each arm that runs: its own, or in a factorial design those of every combination."""
    if not factorial:
        return {name: [patch] for name, patch in patches.items()}
    return {name: [patches[factor] for factor in some] for name, some in cells(factorial).items()}


def digest(value: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
