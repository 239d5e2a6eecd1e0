"""Nets, data and techniques that misbehave on purpose, all by reference so that a run can be resumed from its file."""

from __future__ import annotations

import os
import shutil
import signal
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from contract.subjects import differences, state_of, without_times
from contract.toys import Toy
from kingpost.assembly import Assembly, Batch, Slot, Step
from kingpost.data.tensors import TensorSplit
from kingpost.option import checked
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import Dataset, Source
from kingpost.technique import Technique
from kingpost.train import checkpoint

Fault = Literal["none", "output", "loss", "gradient"]


class Faulty(nn.Module):
    """Passes its input on, until its ``at``-th training call (from 0); from then on it does what ``fault`` says."""

    def __init__(self, fault: Fault, at: int) -> None:
        super().__init__()
        self.fault, self.at, self.calls = fault, at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if not self.training or self.calls <= self.at:
            return x
        if self.fault == "output":
            return x * float("nan")
        if self.fault == "loss":
            return x * 1e200  # finite in 64 bits, but its square is not
        if self.fault == "gradient":
            return x + 0 * (x * 0).sqrt()  # 0 forward, 0 times Inf backward
        return x


class Hungry(nn.Module):
    """Passes its input on, but pretends that memory ran out in training when there are more samples than ``limit``."""

    def __init__(self, limit: int, norm: bool = False) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.limit:
            raise torch.OutOfMemoryError(f"pretended: {len(x)} samples")
        return x


def net(fault: Fault = "none", at: int = 10**9, limit: int = 10**9, norm: bool = False) -> nn.Module:
    """A small smooth net in 64 bits, whose middle may fail."""
    parts: list[tuple[str, nn.Module]] = [
        ("flat", nn.Flatten()),
        ("first", nn.Linear(64, 8, dtype=torch.float64)),
        ("norm", nn.BatchNorm1d(8, dtype=torch.float64) if norm else nn.Identity()),
        ("hungry", Hungry(limit)),
        ("act", nn.Tanh()),
        ("last", nn.Linear(8, 3, dtype=torch.float64)),
        ("faulty", Faulty(fault, at)),
    ]
    return nn.Sequential(OrderedDict(parts))


def with_a_bad_weight() -> nn.Module:
    """The same, with a NaN among the weights of its last layer."""
    model = net()
    with torch.no_grad():
        model.last.weight[1, 2] = float("nan")  # type: ignore[union-attr,index]
    return model


@checked
class Odd(Source):
    """The toy, changed in one respect."""

    task: Literal["classification", "regression"] = "classification"
    bad_sample: int | None = None
    """A training sample that holds an Inf."""
    bad_target: int | None = None
    """A training sample whose target is NaN."""
    parts: tuple[str, ...] = ("train", "validation")
    mark: str = "toy"
    """Fingerprint; a file of this name in KINGPOST_MARK takes precedence."""

    def open(self) -> Dataset:
        whole = Toy(task=self.task).open()
        splits: dict[str, Any] = {part: split for part, split in whole.splits.items() if part in self.parts}
        given = splits["train"]
        x, y = given.inputs[0].clone(), given.targets.clone()
        if self.bad_sample is not None:
            x[self.bad_sample, 0, 3, 3] = float("inf")
        if self.bad_target is not None:
            y[self.bad_target] = float("nan")
        splits["train"] = TensorSplit((x,), y)
        mark = os.environ.get("KINGPOST_MARK", self.mark)
        return Dataset(facts=whole.facts, splits=splits, fingerprint=mark)


@checked
class StopAt(Technique):
    """Sends this very process a signal while it prepares the batch of one step."""

    at: int = 10**9

    touches: ClassVar[frozenset[Slot]] = frozenset({"batch"})

    def mount(self, assembly: Assembly) -> Assembly:
        inner = assembly.batch

        def send(batch: Batch, step: Step) -> Batch:
            if step.index == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(batch, step)

        return assembly.with_(batch=send)


def recipe(**fields: Any) -> Recipe:
    """A recipe in 64 bits with three steps an epoch."""
    plain = {
        "name": "toy",
        "data": {"name": "contract.toys:Toy"},
        "model": {"name": "train.parts:net"},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.5},
        "batch_size": 8,
        "budget": {"epochs": 2},
        "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
        "save": {"report": False},
    }
    return Recipe.from_value({**plain, **fields})


def model_state(run: Run) -> dict[str, Tensor]:
    """Weights and buffers in the newest checkpoint."""
    state: dict[str, Tensor] = state_of(run)["model"]
    return state


def different(a: Run, b: Run) -> list[str]:
    """Where the newest checkpoints, the kept weights and the step history of two runs differ in any bit."""
    found = differences(without_times(state_of(a)), without_times(state_of(b)))
    for name in ("steps.csv", "weights/best.safetensors", "weights/last.safetensors"):
        if (a.folder / name).read_bytes() != (b.folder / name).read_bytes():
            found.append(name)
    return found


def cut_back(run: Run, steps: int, folder: Path) -> Run:
    """A copy of a run in which only the checkpoints of the first ``steps`` steps are left."""
    copied = Run(Path(shutil.copytree(run.folder, folder / run.name)))
    for path in checkpoint.all_in(copied.folder / "checkpoints"):
        if int(path.name.split("-")[1]) > steps:
            shutil.rmtree(path)
    copied.set_status("running")
    return copied
