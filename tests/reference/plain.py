"""The plain PyTorch that kingpost is compared with: a net, its data, and a loop written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.toys import Toy
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import Order
from kingpost.train import checkpoint
from kingpost.train.train import train

BATCH = 8  # three steps an epoch


def net(outputs: int = 3) -> nn.Module:
    """A small smooth net; smooth, so that a rounding error stays one."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, outputs))


def recipe(model: nn.Module, **fields: Any) -> Recipe:
    """A recipe that trains this very model on the toy classes."""
    plain = {
        "name": "toy",
        "data": Toy(),
        "model": model,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0},
        "batch_size": BATCH,
        "budget": {"steps": 12},
        "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
        "save": {"report": False},
    }
    return Recipe(**{**plain, **fields})


def by_kingpost(folder: Path, model: nn.Module, **fields: Any) -> tuple[dict[str, Tensor], Run]:
    """The weights after training a copy of the model with kingpost, and the run."""
    trained = copy.deepcopy(model)
    run = train(recipe(trained, **fields), root=folder, quiet=True)
    path = checkpoint.all_in(run.folder / "checkpoints")[-1]
    return checkpoint._load(path, torch.device("cpu"))["model"], run


def batches(steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The toy's training batches in kingpost's order, which is not what is tested here."""
    split, epoch, done = Toy().open().splits["train"], 0, 0
    while True:
        for batch in split.batches(Order(batch_size=BATCH, shuffle=True, seed=seed, epoch=epoch)):
            if done == steps:
                return
            yield batch.inputs[0], batch.targets
            done += 1
        epoch += 1


def by_hand(
    model: nn.Module,
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    decay: float = 0.0,
    steps: int = 12,
    before_step: Callable[[nn.Module], object] = lambda model: None,
) -> tuple[dict[str, Tensor], list[float]]:
    """The loop of every tutorial. Returns weights and the learning rate of each step."""
    model = copy.deepcopy(model)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if name.endswith("weight")], "weight_decay": decay},
        {"params": [p for name, p in named.items() if name.endswith("bias")], "weight_decay": 0.0},
    ]
    optimizer = make(groups)
    scheduler = schedule(optimizer) if schedule else None
    rates = []
    for x, y in batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        before_step(model)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return {name: p.detach() for name, p in model.named_parameters()}, rates


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    """Equal names, and values that differ by no more than ``tolerance``."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")
