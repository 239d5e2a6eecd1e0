"""All comparisons in the ``cases_*.py`` beside this file; ``docs/generate.py`` makes its table from the same list."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from parity.case import Case


def all_cases() -> list[Case]:
    names = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    return [case for name in names for case in importlib.import_module(f"parity.{name}").CASES]


@pytest.mark.filterwarnings("default")  # the reference libraries' own warnings are not ours to mend
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: f"{case.ours} = {case.reference}")
def test_equals_the_reference(case: Case) -> None:
    pytest.importorskip(case.needs)
    errors = case.compare()
    assert errors.outputs <= case.tolerance, case.why
    assert errors.gradients <= case.tolerance, case.why
