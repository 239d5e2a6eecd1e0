"""What kingpost says when something is wrong: what, where, got, expected, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 40  # names that still fit a terminal's width a few times


class KingpostError(Exception):
    """Base of every error that is the user's to mend; its text is complete without a traceback."""


class RecipeError(KingpostError, ValueError):
    """A recipe, patch or option that cannot be used as it stands.

    Args:
        problem: what is wrong, one sentence.
        path: where, as a dotted key of the recipe (``optimizer.lr``).
        mend: what to do about it.

    >>> print(RecipeError("unknown key", path="optimizer.lrr", mend="did you mean 'lr'?"))
    optimizer.lrr: unknown key; did you mean 'lr'?
    """

    def __init__(self, problem: str, *, path: str = "", mend: str = "") -> None:
        self.problem, self.path, self.mend = problem, path, mend
        super().__init__(problem, path, mend)

    def __str__(self) -> str:
        return (f"{self.path}: " if self.path else "") + self.problem + (f"; {self.mend}" if self.mend else "")

    def under(self, prefix: str) -> RecipeError:
        """The same error seen from one level higher in the recipe."""
        path = ".".join(part for part in (prefix, self.path) if part)
        return type(self)(self.problem, path=path, mend=self.mend)


class DataError(KingpostError, ValueError):
    """Data that is absent, damaged, or not what the recipe says it is."""


class RunError(KingpostError, RuntimeError):
    """A run folder that is absent, damaged, or does not fit what was asked of it."""


class TrainingError(KingpostError, RuntimeError):
    """A training that cannot go on; its last good state is saved."""


class NonFiniteError(TrainingError, ArithmeticError):
    """A NaN or Inf in the loss or a gradient; raised before it reaches the weights."""


class MissingExtraError(KingpostError, ImportError):
    """An optional library is not installed.

    >>> print(MissingExtraError("pandas", extra="data", purpose="reading tables"))
    reading tables needs 'pandas', which is not installed: pip install 'kingpost[data]'
    """

    def __init__(self, library: str, *, extra: str, purpose: str) -> None:
        self.library, self.extra, self.purpose = library, extra, purpose
        super().__init__(library, extra, purpose)

    def __str__(self) -> str:
        return f"{self.purpose} needs '{self.library}', which is not installed: pip install 'kingpost[{self.extra}]'"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word and, unless there are very many, all that are allowed.

    >>> nearest("optimzer", ["optimizer", "model"])
    "did you mean 'optimizer'? known: model, optimizer"
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    if len(known) > MANY:
        return hint.rstrip() or f"none of the {len(known)} known names is near it"
    return f"{hint}known: {', '.join(known)}" if known else "there are none"
