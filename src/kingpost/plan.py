"""The Plan: a recipe with every number derived, each with its unit and the reason for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kingpost.figure import Figure as Figure
from kingpost.figure import readable as readable
from kingpost.recipe import Recipe
from kingpost.summary import Summary
from kingpost.verb import make_callable

make_callable(__name__)

LINES, FEWEST_LAYERS = 30, 6  # of the whole, and of the summary in it


@dataclass(frozen=True)
class Plan:
    """What a run will be, before anything is spent."""

    recipe: Recipe
    figures: tuple[Figure, ...]
    summary: Summary

    def __getitem__(self, name: str) -> float | int | str:
        """The value of the figure with that name."""
        return next(figure.value for figure in self.figures if figure.name == name)

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        return {
            "recipe": self.recipe.to_value(),
            "figures": [asdict(figure) for figure in self.figures],
            "summary": self.summary.to_value(),
        }

    def __str__(self) -> str:
        lines = [f"plan of '{self.recipe.name}'", *map(str, self.figures), ""]
        return "\n".join([*lines, self.summary.text(max(FEWEST_LAYERS, LINES - len(lines) - 2))])
