"""The public list of everything that a recipe can name: kind, name, and where it lives.

A name that is not listed here can still be used by reference, ``my_package.my_module:MyTechnique``.
Nothing is imported before it is asked for, so this list costs nothing.
"""

from __future__ import annotations

import importlib
import os
import sys

from kingpost.errors import RecipeError, nearest

CATALOGUE: dict[str, dict[str, str]] = {
    "data": {
        "arrays": "kingpost.data.arrays:Arrays",
        "npz": "kingpost.data.arrays:Npz",
        "digits": "kingpost.data.bundled:Digits",
        "bundled": "kingpost.data.bundled:Bundled",
        "table": "kingpost.data.tables:Table",
        "idx": "kingpost.data.images:Idx",
        "image-folder": "kingpost.data.images:ImageFolder",
        "text": "kingpost.data.text:Text",
        "sentence-pairs": "kingpost.data.text:SentencePairs",
        "loaders": "kingpost.data.loaders:Loaders",
    },
    "task": {
        "classification": "kingpost.train.tasks:Classification",
        "regression": "kingpost.train.tasks:Regression",
        "language-modelling": "kingpost.train.tasks:LanguageModelling",
        "multi-label": "kingpost.train.tasks:MultiLabel",
    },
    "model": {
        "mlp": "kingpost.build.nets.mlp:MLP",
        "cnn": "kingpost.build.nets.cnn:CNN",
        "gpt": "kingpost.build.nets.gpt:GPT",
    },
    "initialise": {
        "naive-normal": "kingpost.build.initialisers:NaiveNormal",
        "naive-uniform": "kingpost.build.initialisers:NaiveUniform",
        "xavier": "kingpost.build.initialisers:Xavier",
        "he": "kingpost.build.initialisers:He",
    },
    "optimizer": {
        "sgd": "kingpost.train.optimise.sgd:SGD",
        "adamw": "kingpost.train.optimise.adam:AdamW",
    },
    "schedule": {
        "constant": "kingpost.train.optimise.schedules:Constant",
        "cosine": "kingpost.train.optimise.schedules:Cosine",
        "one-cycle": "kingpost.train.optimise.schedules:OneCycle",
    },
    "technique": {
        "label-smoothing": "kingpost.train.regularise.label_smoothing:LabelSmoothing",
        "l2": "kingpost.train.regularise.l2:L2",
        "dropout": "kingpost.train.regularise.dropout:Dropout",
        "mixup": "kingpost.train.augment.mixup:Mixup",
        "flip": "kingpost.train.augment.images:Flip",
        "crop": "kingpost.train.augment.images:Crop",
        "clip": "kingpost.train.gradients.clip:Clip",
        "accumulate": "kingpost.train.gradients.accumulate:Accumulate",
        "sam": "kingpost.train.regularise.sam:SAM",
        "ema": "kingpost.train.regularise.ema:EMA",
        "early-stopping": "kingpost.train.regularise.early_stopping:EarlyStopping",
        "bf16": "kingpost.train.precision:BF16",
        "fp16": "kingpost.train.precision:FP16",
        "compile": "kingpost.train.compiled:Compile",
    },
    "layout": {
        "data-parallel": "kingpost.train.parallel:DataParallel",
    },
}

_NAMES = {target: name for kind in CATALOGUE.values() for name, target in kind.items()}


def name_of(cls: type) -> str:
    """The name under which a recipe knows a class: its catalogue name, else ``module:Class``."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    return _NAMES.get(target, target)


def find(kind: str, name: str) -> object:
    """The class (or, by reference, any callable) that ``name`` stands for.

    Args:
        kind: a key of the catalogue, such as ``"optimizer"``.
        name: a catalogue name, or ``module:attribute`` for the user's own.

    Raises:
        RecipeError: the name is unknown (the nearest one is given), or the reference cannot be imported.

    >>> find("schedule", "cosine").__name__
    'Cosine'
    """
    if ":" in name:
        return _imported(name)
    if name not in CATALOGUE[kind]:
        raise RecipeError(
            f"unknown {kind} '{name}'", mend=nearest(name, CATALOGUE[kind]) + "; or your own as module:name"
        )
    return _imported(CATALOGUE[kind][name])


def _imported(reference: str) -> object:
    module_name, _, attribute = reference.partition(":")
    if (here := os.getcwd()) not in sys.path:  # the console script does not put the user's folder on the path
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise RecipeError(
                f"no module '{module_name}' (looked for '{reference}')",
                mend="run from the folder that holds it, or install the package it is in",
            ) from error
        raise
    try:
        found: object = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise RecipeError(
            f"module '{module_name}' has no '{attribute}'",
            mend=nearest(attribute, [n for n in vars(module) if not n.startswith("_")]),
        ) from error
    return found
