"""Optimizers, schedules, L2 and clipping through kp.train, against a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from kingpost.train.optimise.schedules_cycles import one_cycle
from kingpost.train.optimise.schedules_decay import cosine
from reference.plain import assert_same, batches, by_hand, by_kingpost, net

# Twelve steps with numbers around 1 in 64 bits: each step rounds at 1e-16 and the net is smooth, so a few 1e-15 are
# expected; AdamW divides by the root of the second moment, which enlarges that about a hundredfold.
TOLERANCE = 1e-12
STEPS = 12

Maker = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, tuple[dict[str, Any], Maker, float]] = {
    "plain": (
        {"name": "sgd", "lr": 0.3, "momentum": 0.0},
        lambda groups: torch.optim.SGD(groups, lr=0.3, foreach=False),
        0.0,
    ),
    "momentum": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.8, "weight_decay": 0.05},
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, foreach=False),
        0.05,
    ),
    "nesterov": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.8, "nesterov": True},
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True, foreach=False),
        0.0,
    ),
    "adamw": (
        {"name": "adamw", "lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.3},
        lambda groups: torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False),
        0.3,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_equals_torchs_unfused_one(name: str, tmp_path: Path) -> None:
    fields, make, decay = OPTIMIZERS[name]
    ours, run = by_kingpost(tmp_path, net(), optimizer=fields)
    theirs, rates = by_hand(net(), make, decay=decay)
    assert [row["learning_rate"] for row in run.steps] == rates  # constant, so not a bit may differ
    assert_same(ours, theirs, TOLERANCE)


def test_weight_decay_leaves_vectors_alone(tmp_path: Path) -> None:
    """The difference from torch's habit: torch decays every parameter that it is given, kingpost matrices only."""
    fields = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.5}
    ours, _ = by_kingpost(tmp_path, net(), optimizer=fields)
    flat = by_hand(net(), lambda g: torch.optim.SGD([p for x in g for p in x["params"]], lr=0.1, weight_decay=0.5))[0]
    assert max(float((ours[name] - flat[name]).abs().max()) for name in ours if name.endswith("bias")) > 1e-3


def warm_cosine(optimizer: torch.optim.Optimizer) -> Any:
    """Four steps of warm-up (a third of twelve), then cosine: 1/5, 2/5, ... as kingpost's convention says."""
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 5, end_factor=1.0, total_iters=4)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - 4, eta_min=0.02)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[4])


# The conventions agree in full: OneCycleLR's div_factor 25 and final_div_factor 1e4 are start 1/25 and end 4e-6;
# CosineAnnealingLR reaches eta_min *after* the last of T_max steps, so does kingpost; LinearLR from 1/(w+1) over w
# steps is kingpost's warm-up.
SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[torch.optim.Optimizer], Any]]] = {
    "one-cycle": (
        {"name": "one-cycle"},
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=STEPS, cycle_momentum=False),
    ),
    "one-cycle, own shape": (
        {"name": "one-cycle", "rise": 0.5, "start": 0.1, "end": 0.001},
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.2, total_steps=STEPS, pct_start=0.5, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
    ),
    "cosine": ({"name": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS)),
    "cosine with warm-up": ({"name": "cosine", "warmup": 1 / 3, "end": 0.1}, warm_cosine),
    "constant with warm-up": (
        {"name": "constant", "warmup": 1 / 3},
        lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 5, total_iters=4),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_equals_torchs(name: str, tmp_path: Path) -> None:
    fields, schedule = SCHEDULES[name]
    optimizer = {"name": "sgd", "lr": 0.2, "momentum": 0.5}
    ours, run = by_kingpost(tmp_path, net(), optimizer=optimizer, schedule=fields)
    theirs, rates = by_hand(net(), lambda g: torch.optim.SGD(g, lr=0.2, momentum=0.5, foreach=False), schedule)
    # torch computes some of these from the rate before, so a rounding error per step is added.
    assert [row["learning_rate"] for row in run.steps] == pytest.approx(rates, rel=1e-12, abs=1e-15)
    assert len(set(rates)) > 4, "a schedule that stays flat would prove nothing"
    assert_same(ours, theirs, TOLERANCE)


@pytest.mark.parametrize(("rise", "total"), [(0.5, 2), (0.1, 10), (0.25, 4), (0.2, 5)])
def test_one_cycle_whose_top_is_the_first_step(rise: float, total: int) -> None:
    """torch's OneCycleLR divides by zero here; the rate starts at the top and falls."""
    factors = [one_cycle(step, total, rise=rise, end=0.0) for step in range(total)]
    assert factors[0] == pytest.approx(1.0, abs=1e-15)  # one rounding
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(0.0, abs=1e-15)


def test_schedules_stay_in_range_beyond_the_end() -> None:
    """A budget in seconds estimates the number of steps, so a step can come after the last."""
    for step in range(20):
        assert 0 <= cosine(step, 10, warmup_steps=3) <= 1
        assert 0 <= one_cycle(step, 10) <= 1
    assert cosine(50, 10, end=0.1) == pytest.approx(0.1, rel=1e-15)  # one rounding
    assert [one_cycle(0, 1), cosine(0, 1)] == pytest.approx([4e-6, 1.0], rel=1e-9)  # 1 - (1 - 4e-6) cancels digits


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_l2_with_sgd_is_torchs_weight_decay(momentum: float, tmp_path: Path) -> None:
    optimizer = {"name": "sgd", "lr": 0.2, "momentum": momentum}
    ours, run = by_kingpost(tmp_path, net(), optimizer=optimizer, techniques=[{"name": "l2", "strength": 0.05}])
    theirs, _ = by_hand(net(), lambda g: torch.optim.SGD(g, lr=0.2, momentum=momentum, foreach=False), decay=0.05)
    assert_same(ours, theirs, TOLERANCE)
    x, y = next(batches(1))
    model = net()
    squares = sum(float((p.detach() ** 2).sum()) for name, p in model.named_parameters() if name.endswith("weight"))
    expected = float(torch.nn.functional.cross_entropy(model(x), y).detach()) + 0.05 * squares / 2
    assert run.steps[0]["loss"] == pytest.approx(expected, rel=1e-13)  # the recorded loss holds the penalty


@pytest.mark.parametrize("norm", [0.05, 1.15, 1e6])
def test_clip_equals_torchs_clip_grad_norm(norm: float, tmp_path: Path) -> None:
    norms: list[float] = []

    def clip(model: torch.nn.Module) -> None:
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), norm, foreach=False)))

    ours, run = by_kingpost(tmp_path, net(), techniques=[{"name": "clip", "norm": norm}])
    theirs, _ = by_hand(net(), lambda g: torch.optim.SGD(g, lr=0.1, foreach=False), before_step=clip)
    assert_same(ours, theirs, TOLERANCE)
    # What is recorded is the norm before clipping; sums in another order, a few 1e-16 each.
    assert [row["gradient_norm"] for row in run.steps] == pytest.approx(norms, rel=1e-13)
    if norm == 1.15:
        assert min(norms) < 1.15 < max(norms), "this bound is meant to clip some steps only"


def test_clip_is_the_formula_of_its_card() -> None:
    """``g * min(1, norm / |g|)``, written out without torch's helper."""
    from kingpost.assembly import Step
    from kingpost.train.gradients.clip import clipped

    model = net()
    for seed, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    length = sum(float((g**2).sum()) for g in grads) ** 0.5
    clipped(lambda model, optimizer, step: None, 2.0)(model, torch.optim.SGD(model.parameters()), Step(0, 0))
    for p, g in zip(model.parameters(), grads, strict=True):
        # torch adds 1e-6 to the norm, which is about 30 here.
        torch.testing.assert_close(p.grad, g * min(1.0, 2.0 / length), rtol=1e-6 / length * 2, atol=0)
