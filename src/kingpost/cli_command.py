"""What a verb of the command line is: shared by the modules that define them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One verb: what it does, which arguments it takes, and commands that run as they stand."""

    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: Sequence[tuple[tuple[str, ...], dict[str, Any]]]
    examples: Sequence[str]
    words: Callable[[Sequence[str]], list[str]] = list
    """What is done to the words after the verb before they are parsed."""
    exit_codes: str = ""
    """Those that only this verb has, for its help."""
