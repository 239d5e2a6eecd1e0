"""What the speed run runs: the default programs, the recipe at each target, and the ladder from one to the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

TARGETS = (0.90, 0.91, 0.92, 0.93)
PEER_EPOCHS = 12
"""After which a default program is given up; it stops before, at the highest target."""
CYCLE_EPOCHS = 8
"""Length of fastai's one cycle, which has to be said beforehand."""

Change = str | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One program of the speed run."""

    name: str
    module: str
    """Of contenders/."""
    peer: bool = False
    """Whether it runs in the peers' environment."""
    epochs: int = 0
    """Most passes over the samples; kingpost's are in its recipe."""
    target: float | None = None
    """What its length was chosen for; None if it is judged at every epoch."""
    changes: tuple[Change, ...] = ()
    """Of kingpost's recipe."""

    def arguments(self) -> list[str]:
        """The part of the command line that is its own."""
        recipe = json.dumps(list(self.changes))
        return ["--epochs", str(self.epochs), "--stop", str(TARGETS[-1]), "--recipe", recipe]


def of_target(target: float, *changes: Change) -> Entry:
    """The recipe, changed for one target."""
    return Entry(name=f"kingpost-{target:.0%}".rstrip("%"), module="speedrun_kingpost", target=target, changes=changes)


def wide(*widths: int) -> Change:
    """Channels of the three convolutions."""
    return {"model.widths": list(widths)}


def default(name: str, epochs: int = PEER_EPOCHS) -> Entry:
    """A default program."""
    return Entry(name=name, module="speedrun_" + name.replace("-", "_"), peer=True, epochs=epochs)


# Lengths and widths were chosen on a validation split; docs/speedrun.md says how.
ENTRIES = (
    of_target(0.90, "budget.epochs=1", wide(24, 48, 96)),
    of_target(0.91, "budget.steps=800", wide(24, 48, 96)),
    of_target(0.92, "budget.epochs=4"),
    of_target(0.93, "budget.epochs=10", "techniques+=flip", wide(48, 96, 192)),
    default("lightning"),
    default("keras"),
    default("fastai"),
    default("fastai-one-cycle", CYCLE_EPOCHS),
)

LADDER_EPOCHS = (1, 2, 4, 8)
LONG_RUNGS = 2
"""So many rungs, the slowest to learn, are also trained for the longest of these lengths."""

PLAIN: tuple[Change, ...] = (
    {"model": {"name": "contenders.speedrun_common:two_convolutions"}},
    {"optimizer": {"name": "adam", "lr": 0.001, "weight_decay": 0.0}},
    {"schedule": "constant"},
    {"techniques": []},
    {"batch_size": 128},
)

RISE_AND_FALL: Change = {"schedule": {"name": "polynomial", "warmup": 0.2}}
STRIDED: Change = {"model": {"name": "cnn", "widths": [32, 64, 128], "pool": "stride", "head": "flat"}}
MUON: Change = {"optimizer": {"name": "muon", "lr": 0.1, "adamw_lr": 0.012}}
SMOOTHING: Change = {"techniques": ["channels-last", {"name": "label-smoothing", "strength": 0.1}]}

# Each rung is the one before with these changes on top.
RUNGS: tuple[tuple[str, tuple[Change, ...]], ...] = (
    ("default program: two convolutions, Adam 1e-3, constant rate", PLAIN),
    ("rate 4e-3, rising for a fifth, then falling to zero", ("optimizer.lr=0.004", RISE_AND_FALL)),
    ("three strided convolutions with batch norm, 32-64-128", (STRIDED,)),
    ("channels last in memory", ({"techniques": ["channels-last"]},)),
    ("Muon for the kernels", (MUON,)),
    ("label smoothing 0.1: the recipe", (SMOOTHING,)),
    ("flips, which the recipe is without", ("techniques+=flip",)),
)


def ladder() -> list[Entry]:
    """Every rung at every length, shortest first."""
    entries, so_far = [], ()
    for rung, (_, changes) in enumerate(RUNGS):
        so_far = (*so_far, *changes)
        for epochs in LADDER_EPOCHS if rung < LONG_RUNGS else LADDER_EPOCHS[:-1]:
            length = f"budget.epochs={epochs}"
            name = f"rung-{rung}-epochs-{epochs}"
            entries.append(Entry(name=name, module="speedrun_kingpost", changes=(*so_far, length)))
    return entries


def quick(entries: Sequence[Entry]) -> list[Entry]:
    """The same programs for one epoch: to see whether they run."""
    return [replace(e, epochs=min(e.epochs, 1), changes=(*e.changes, "budget.epochs=1")) for e in entries]
