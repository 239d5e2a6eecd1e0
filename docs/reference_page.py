"""The table of what each technique is compared with, read from the reference tests."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from kingpost import catalogue

TESTS = Path(__file__).resolve().parents[1] / "tests"
KINDS = {"technique": "Techniques", "optimizer": "Optimizers", "schedule": "Schedules", "initialise": "Initialisers"}
FOLDERS = ("reference", "build", "train")


def references_page() -> str:
    """A table for each kind; models have theirs in parity.md."""
    lines = [
        "# References\n",
        "What the numbers of each technique are compared with: a library that none of us wrote, the paper's equations "
        "written out slowly, or a closed form. `make test` runs all of it, and fails if a technique has no such test. "
        "Networks have a page of their own, [Comparisons](parity.md).\n",
    ]
    for kind, heading in KINDS.items():
        lines += [f"## {heading}\n", f"| {kind} | tests | what they compare with |", "| --- | --- | --- |"]
        for name, target in catalogue.CATALOGUE[kind].items():
            path = tests_of(name, *target.split(":"))
            where = f"`{path.relative_to(TESTS)}` | {subject(path)}" if path else "**none** |"
            lines.append(f"| [{name}](techniques.md#{name}) | {where} |")
        lines.append("")
    return "\n".join(lines)


def tests_of(name: str, module: str, cls: str) -> Path | None:
    """The test module that uses this technique most: its class, its module, or (less telling) its name in quotes.

    >>> tests_of("mixup", "kingpost.train.augment.mixup", "Mixup").name
    'test_augment.py'
    """
    used = re.compile(rf"\b{cls}\b|from {re.escape(module)} import")

    def telling(item: tuple[Path, str]) -> tuple[int, int]:
        return 3 * len(used.findall(item[1])) + item[1].count(f'"{name}"'), item[0].parent.name == "reference"

    path, text = max(sources().items(), key=telling)
    return path if telling((path, text))[0] else None


@functools.cache
def sources() -> dict[Path, str]:
    """Every test module that could compare, with its text."""
    paths = [path for folder in FOLDERS for path in sorted((TESTS / folder).glob("test_*.py"))]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def subject(path: Path) -> str:
    """What a test module says of itself."""
    return ast.get_docstring(ast.parse(sources()[path])) or ""
