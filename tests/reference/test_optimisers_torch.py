"""The optimizers that torch has, through kp.train, against torch's own plain (unfused, one tensor at a time) ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reference.plain import assert_same, by_hand, by_kingpost, net

# Twelve steps with numbers around 1 in 64 bits. All divide by a root, which enlarges the rounding of the gradient.
TOLERANCE = 1e-12

Maker = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
PLAIN = {"foreach": False}

OPTIMIZERS: dict[str, tuple[dict[str, Any], Maker, float]] = {
    "adam": (
        {"name": "adam", "lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.3},
        lambda g: torch.optim.Adam(g, lr=0.02, betas=(0.8, 0.95), eps=1e-6, fused=False, **PLAIN),
        0.3,
    ),
    "amsgrad": (
        {"name": "adam", "lr": 0.02, "amsgrad": True},
        lambda g: torch.optim.Adam(g, lr=0.02, amsgrad=True, fused=False, **PLAIN),
        0.0,
    ),
    "nadam": (
        {"name": "nadam", "lr": 0.02, "weight_decay": 0.3, "momentum_decay": 0.01},
        lambda g: torch.optim.NAdam(g, lr=0.02, momentum_decay=0.01, decoupled_weight_decay=True, **PLAIN),
        0.3,
    ),
    "radam": (  # with this beta2 the variance is bounded from the sixth step on, so both branches are walked
        {"name": "radam", "lr": 0.02, "beta2": 0.9, "weight_decay": 0.3},
        lambda g: torch.optim.RAdam(g, lr=0.02, betas=(0.9, 0.9), decoupled_weight_decay=True, **PLAIN),
        0.3,
    ),
    "adagrad": (
        {"name": "adagrad", "lr": 0.05, "start": 0.1, "weight_decay": 0.02},
        lambda g: torch.optim.Adagrad(g, lr=0.05, initial_accumulator_value=0.1, fused=False, **PLAIN),
        0.02,
    ),
    "adadelta": (
        {"name": "adadelta", "lr": 1.0, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.02},
        lambda g: torch.optim.Adadelta(g, lr=1.0, rho=0.8, eps=1e-4, **PLAIN),
        0.02,
    ),
    "rmsprop": (
        {"name": "rmsprop", "lr": 0.01, "memory": 0.9, "momentum": 0.5, "centred": True, "weight_decay": 0.02},
        lambda g: torch.optim.RMSprop(g, lr=0.01, alpha=0.9, momentum=0.5, centered=True, **PLAIN),
        0.02,
    ),
    "adafactor": (
        {"name": "adafactor", "lr": 0.05, "weight_decay": 0.02, "clip": 1.5},
        lambda g: torch.optim.Adafactor(g, lr=0.05, d=1.5, **PLAIN),
        0.02,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_torchs_plain_one(name: str, tmp_path: Path) -> None:
    fields, make, decay = OPTIMIZERS[name]
    ours, run = by_kingpost(tmp_path, net(), optimizer=fields)
    theirs, rates = by_hand(net(), make, decay=decay)
    assert [row["learning_rate"] for row in run.steps] == rates
    assert_same(ours, theirs, TOLERANCE)
    start = net().state_dict()
    assert all(float((ours[key] - start[key]).abs().max()) > 1e-4 for key in ours)


def test_lbfgs_equals_torchs_with_a_closure_written_by_hand(tmp_path: Path) -> None:
    import torch.nn.functional as F

    from reference.plain import batches

    fields = {"name": "lbfgs", "lr": 0.5, "iterations": 3, "history": 4}
    ours, run = by_kingpost(tmp_path, net(), optimizer=fields)
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3, history_size=4, line_search_fn="strong_wolfe")
    counts = []
    for x, y in batches(12):

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            counts[-1] += 1
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        counts.append(0)
        optimizer.step(closure)
    assert [row["evaluations"] for row in run.steps] == counts
    # Each of 36 quasi-Newton steps divides by the curvature along one direction, which enlarges rounding.
    assert_same(ours, {name: p.detach() for name, p in model.named_parameters()}, 1e-8)
