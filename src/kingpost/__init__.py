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
    "Card": "kingpost.cards",
    "card": "kingpost.cards",
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
    "ensemble": "kingpost.train.predict",
    "calibrate": "kingpost.train.calibrate",
    "robust_accuracy": "kingpost.train.adversarial.robust",
    "learn_optimizer": "kingpost.train.optimise.learned_training",
    "report": "kingpost.report.html",
    "probe": "kingpost.train.probe",
    "merge_lora": "kingpost.train.transfer.lora",
    "Net": "kingpost.net",
    "Size": "kingpost.net",
    "Figure": "kingpost.figure",
    "summary": "kingpost.summary",
    "load_weights": "kingpost.build.initialise.weights_file",
    "nets": "kingpost.build.listing",
    "generate": "kingpost.verbs",
    "sized": "kingpost.build.sizing",
    "lr_range_test": "kingpost.train.range_test",
    "RangeTest": "kingpost.train.range_test",
    "compound": "kingpost.build.sizing",
    "remove_gates": "kingpost.train.regularise.remove_gates",
    "prove": "kingpost.verbs",
    "tune": "kingpost.verbs",
    "Ledger": "kingpost.ledger",
    "Verdict": "kingpost.verdict",
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
    from kingpost.build.initialise.weights_file import load_weights as load_weights
    from kingpost.build.listing import nets as nets
    from kingpost.build.sizing import compound as compound
    from kingpost.build.sizing import sized as sized
    from kingpost.cards import Card as Card
    from kingpost.cards import card as card
    from kingpost.errors import DataError as DataError
    from kingpost.errors import KingpostError as KingpostError
    from kingpost.errors import RecipeError as RecipeError
    from kingpost.errors import RunError as RunError
    from kingpost.errors import TrainingError as TrainingError
    from kingpost.figure import Figure as Figure
    from kingpost.finding import Finding as Finding
    from kingpost.foreign import call as call
    from kingpost.ledger import Ledger as Ledger
    from kingpost.net import Net as Net
    from kingpost.net import Size as Size
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
    from kingpost.summary import summary as summary
    from kingpost.technique import Technique as Technique
    from kingpost.train.adversarial.robust import robust_accuracy as robust_accuracy
    from kingpost.train.calibrate import calibrate as calibrate
    from kingpost.train.optimise.learned_training import learn_optimizer as learn_optimizer
    from kingpost.train.planning import plan as plan
    from kingpost.train.predict import ensemble as ensemble
    from kingpost.train.predict import load_model as load_model
    from kingpost.train.predict import predict as predict
    from kingpost.train.probe import probe as probe
    from kingpost.train.range_test import RangeTest as RangeTest
    from kingpost.train.range_test import lr_range_test as lr_range_test
    from kingpost.train.regularise.remove_gates import remove_gates as remove_gates
    from kingpost.train.transfer.lora import merge_lora as merge_lora
    from kingpost.verbs import generate as generate
    from kingpost.verbs import prove as prove
    from kingpost.verbs import resume as resume
    from kingpost.verbs import train as train
    from kingpost.verbs import tune as tune
    from kingpost.verdict import Verdict as Verdict
