"""kingpost takes a PyTorch network through its whole life, and says at every step what it measured.

>>> import kingpost as kp
>>> recipe = kp.Recipe(name="digits", data="digits", model=kp.MLP(widths=(64,)), budget={"epochs": 1})
>>> recipe.batch_size
64
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> module. Imported when first used: `import kingpost` does no work of its own.
WHERE = {
    "Recipe": "kingpost.recipe",
    "Budget": "kingpost.recipe",
    "Save": "kingpost.recipe",
    "Patch": "kingpost.patch",
    "Plan": "kingpost.plan",
    "plan": "kingpost.train.planning",
    "Run": "kingpost.run",
    "Finding": "kingpost.finding",
    "Technique": "kingpost.technique",
    "Assembly": "kingpost.assembly",
    "Batch": "kingpost.assembly",
    "Loss": "kingpost.assembly",
    "Step": "kingpost.assembly",
    "Source": "kingpost.source",
    "Dataset": "kingpost.source",
    "DataFacts": "kingpost.source",
    "Split": "kingpost.source",
    "KingpostError": "kingpost.errors",
    "RecipeError": "kingpost.errors",
    "DataError": "kingpost.errors",
    "RunError": "kingpost.errors",
    "TrainingError": "kingpost.errors",
    "checked": "kingpost.option",
    "call": "kingpost.foreign",
    "train": "kingpost.verbs",
    "resume": "kingpost.verbs",
    "predict": "kingpost.train.predict",
    "load_model": "kingpost.train.predict",
    "report": "kingpost.report.html",
}


def __getattr__(name: str) -> object:
    from kingpost.catalogue import CATALOGUE

    if name in WHERE:
        found: object = getattr(importlib.import_module(WHERE[name]), name)
    else:
        targets = (target.split(":") for kind in CATALOGUE.values() for target in kind.values())
        module = next((module for module, class_name in targets if class_name == name), None)
        if module is None:
            raise AttributeError(f"module 'kingpost' has no attribute '{name}'")
        found = getattr(importlib.import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    from kingpost.catalogue import CATALOGUE

    options = [target.split(":")[1] for kind in CATALOGUE.values() for target in kind.values()]
    return sorted([*WHERE, *options, "__version__"])


if TYPE_CHECKING:
    from kingpost.assembly import Assembly as Assembly
    from kingpost.assembly import Batch as Batch
    from kingpost.assembly import Loss as Loss
    from kingpost.assembly import Step as Step
    from kingpost.errors import DataError as DataError
    from kingpost.errors import KingpostError as KingpostError
    from kingpost.errors import RecipeError as RecipeError
    from kingpost.errors import RunError as RunError
    from kingpost.errors import TrainingError as TrainingError
    from kingpost.finding import Finding as Finding
    from kingpost.foreign import call as call
    from kingpost.option import checked as checked
    from kingpost.patch import Patch as Patch
    from kingpost.plan import Plan as Plan
    from kingpost.recipe import Budget as Budget
    from kingpost.recipe import Recipe as Recipe
    from kingpost.recipe import Save as Save
    from kingpost.report.html import report as report
    from kingpost.run import Run as Run
    from kingpost.source import DataFacts as DataFacts
    from kingpost.source import Dataset as Dataset
    from kingpost.source import Source as Source
    from kingpost.source import Split as Split
    from kingpost.technique import Technique as Technique
    from kingpost.train.planning import plan as plan
    from kingpost.train.predict import load_model as load_model
    from kingpost.train.predict import predict as predict
    from kingpost.verbs import resume as resume
    from kingpost.verbs import train as train
