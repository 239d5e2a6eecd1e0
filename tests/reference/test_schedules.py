"""Every schedule against torch's of the same name, against its formula written out again, and for what all promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from kingpost import catalogue
from kingpost.assembly import Schedule
from kingpost.errors import RecipeError
from kingpost.option import choose
from kingpost.recipe import Recipe
from kingpost.train.assemble import assemble
from kingpost.train.optimise.schedules import chained
from kingpost.train.optimise.schedules_plateau import plateau_factor
from kingpost.train.train import resume, train
from reference.plain import net, recipe

NAMES = sorted(catalogue.CATALOGUE["schedule"])
PEAK = 0.25


def mounted(value: Any) -> Schedule:
    """The schedule that a recipe's value stands for, as the loop gets it."""
    made = recipe(net(), schedule=value)
    return assemble(made, made.data.open(), torch.device("cpu")).schedule


def alone(value: Any) -> Schedule:
    """The same without an assembly, quickly; not for those that follow the scores."""
    schedule: Schedule = choose("schedule", value).of_step  # type: ignore[attr-defined]
    return schedule


# ---- against torch, step by step

Maker = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
# Our fields for a run of 60 steps, and torch's scheduler, whose lengths are steps and whose rates are absolute.
TORCH: dict[str, tuple[dict[str, Any], Maker]] = {
    "step-decay": ({"every": 0.25, "factor": 0.3}, lambda o: lr_scheduler.StepLR(o, 15, gamma=0.3)),
    "multi-step": (
        {"milestones": [0.3, 0.5, 0.9], "factor": 0.2},
        lambda o: lr_scheduler.MultiStepLR(o, [18, 30, 54], gamma=0.2),
    ),
    "exponential": ({"end": 0.01}, lambda o: lr_scheduler.ExponentialLR(o, gamma=0.01 ** (1 / 60))),
    "polynomial": ({"power": 2.5}, lambda o: lr_scheduler.PolynomialLR(o, total_iters=60, power=2.5)),
    "polynomial, linear": ({"end": 0.2}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=60)),
    "cosine": ({"end": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, 60, eta_min=0.1 * PEAK)),
    "cosine-restarts": (
        {"first": 0.2, "end": 0.1},
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 12, eta_min=0.1 * PEAK),
    ),
    "cosine-restarts, growing": (
        {"first": 0.1, "growth": 2},
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6, T_mult=2),
    ),
    "cyclic": (
        {"cycle": 0.2, "low": 0.1},
        lambda o: lr_scheduler.CyclicLR(o, 0.1 * PEAK, PEAK, 6, cycle_momentum=False),
    ),
    "cyclic, odd": (
        {"cycle": 0.25, "low": 0.0},
        lambda o: lr_scheduler.CyclicLR(o, 0.0, PEAK, 7.5, cycle_momentum=False),  # type: ignore[arg-type]
    ),
    "cyclic, triangular2": (
        {"cycle": 0.2, "low": 0.1, "mode": "triangular2"},
        lambda o: lr_scheduler.CyclicLR(o, 0.1 * PEAK, PEAK, 6, mode="triangular2", cycle_momentum=False),
    ),
    "cyclic, exp-range": (
        {"cycle": 0.2, "low": 0.1, "mode": "exp-range", "end": 0.3},
        lambda o: lr_scheduler.CyclicLR(
            o, 0.1 * PEAK, PEAK, 6, mode="exp_range", gamma=0.3 ** (1 / 60), cycle_momentum=False
        ),
    ),
    "one-cycle": ({}, lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=60, cycle_momentum=False)),
    "constant": ({"factor": 0.5}, lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=100)),
    "constant, warm": ({"warmup": 0.15}, lambda o: lr_scheduler.LinearLR(o, 1 / 10, total_iters=9)),
}


@pytest.mark.parametrize("case", TORCH)
def test_equals_torchs_step_by_step(case: str) -> None:
    fields, make = TORCH[case]
    ours = mounted({"name": case.partition(",")[0], **fields})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    theirs = make(optimizer)
    for step in range(60):
        # Torch multiplies the rate before by a ratio, so that a rounding error (1e-16) is added at each of 60 steps;
        # where a rate falls to zero (cosines) the error stays relative to the peak.
        assert PEAK * ours(step, 60) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-14), step
        optimizer.step()
        theirs.step()


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9]), max_size=40),
    st.sampled_from([0.1, 0.5]),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.15]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.02]),
)
def test_on_plateau_equals_torchs(
    scores: list[float], factor: float, patience: int, gain: float, cooldown: int, lowest: float
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=factor, patience=patience - 1, threshold=gain, threshold_mode="abs",
        cooldown=cooldown, min_lr=lowest, eps=0.0,
    )  # fmt: skip
    for count, score in enumerate(scores, 1):
        theirs.step(score)
        ours = plateau_factor(scores[:count], factor, patience, gain, cooldown, lowest)
        assert ours == optimizer.param_groups[0]["lr"]


# ---- against the formula, written out once more and in another way where there is one

Twin = Callable[[int, int], float]


def by_cases(t: int, total: int) -> float:
    """The plateau and the linear fall, as two cases."""
    warm, fall = total // 5, total // 2
    if t < warm:
        return (t + 1) / (warm + 1)
    return 1.0 if t < total - fall else (total - t) / fall


def triangles(t: int, total: int) -> float:
    """Each cycle drawn from its corners."""
    length = round(0.6 * total)
    number, place = divmod(t, length)
    return 0.1 + 0.9 / 2**number * (2 * place / length if 2 * place <= length else 2 - 2 * place / length)


def bumps(t: int, total: int) -> float:
    """One cycle: half cosines as sines squared."""
    top = 0.3 * total - 1
    if t < top:
        return 0.04 + 0.96 * math.sin(math.pi / 2 * t / top) ** 2
    return 1 - (1 - 4e-6) * math.sin(math.pi / 2 * (t - top) / (total - 1 - top)) ** 2


TWINS: dict[str, tuple[dict[str, Any], Twin]] = {
    "constant": ({"factor": 0.7}, lambda t, total: 0.7),
    "cosine": ({"end": 0.2}, lambda t, total: 1 - 0.8 * math.sin(math.pi / 2 * t / total) ** 2),
    "polynomial": ({"power": 3.0, "end": 0.1}, lambda t, total: 0.1 + 0.9 * ((total - t) / total) ** 3),
    "exponential": ({"end": 0.05}, lambda t, total: math.exp(math.log(0.05) * t / total)),
    # Vaswani's own form, width^-0.5 min(n^-0.5, n w^-1.5), over its peak; n counts from 1.
    "inverse-root": (
        {"warmup": 0.1},
        lambda t, total: min((t + 1) ** -0.5, (t + 1) * (total // 10 + 1) ** -1.5) * (total // 10 + 1) ** 0.5,
    ),
    "warmup-stable-decay": ({"warmup": 0.2, "decay": 0.5, "shape": "linear"}, by_cases),
    "step-decay": (
        {"every": 0.2, "factor": 0.5},
        lambda t, total: math.prod([0.5] * sum(t >= k * total // 5 for k in range(1, 6))),
    ),
    "multi-step": (
        {"milestones": [0.5, 0.8], "factor": 0.1},
        lambda t, total: 1.0 if t < total // 2 else 0.1 if t < total * 4 // 5 else 0.01,
    ),
    "one-cycle": ({}, bumps),
    "cyclic": ({"cycle": 0.6, "low": 0.1, "mode": "triangular2"}, triangles),
    "cosine-restarts": (
        {"first": 0.2},
        lambda t, total: math.cos(math.pi / 2 * (t % (total // 5)) / (total // 5)) ** 2,
    ),
    "on-plateau": ({}, lambda t, total: 1.0),  # before the first score
}


def test_every_schedule_has_a_twin() -> None:
    assert sorted(TWINS) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [10, 20, 230])
def test_equals_the_formula(name: str, total: int) -> None:
    fields, twin = TWINS[name]
    ours = mounted({"name": name, **fields})
    for step in range(total):
        # A few operations on numbers up to 1; where sines and cosines cancel, the error is relative to 1.
        assert ours(step, total) == pytest.approx(twin(step, total), rel=1e-12, abs=1e-14), step


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_shapes_of_the_decay(shape: str) -> None:
    ours = alone({"name": "warmup-stable-decay", "decay": 0.4, "shape": shape, "end": 0.1})
    twins = {"linear": lambda x: x, "cosine": lambda x: math.sin(math.pi / 2 * x) ** 2, "1-sqrt": lambda x: x**0.5}
    expected = [1.0] * 6 + [1 - 0.9 * twins[shape](k / 4) for k in range(5)]
    assert [ours(step, 10) for step in range(11)] == pytest.approx(expected, rel=1e-13)  # one or two roundings


# ---- what all promise

CURVES = [name for name in NAMES if hasattr(catalogue.find("schedule", name), "curve")]
RISING_BY_THEMSELVES = ("one-cycle",)  # refuse a warm-up


def example(name: str) -> dict[str, Any]:
    return {"name": name, **catalogue.find("schedule", name).example}  # type: ignore[attr-defined]


values = st.deferred(
    lambda: st.builds(
        lambda name, warmup, then, at: {
            **example(name),
            **({} if name in RISING_BY_THEMSELVES or warmup is None else {"warmup": warmup}),
            **({} if then is None else {"then": then, "at": at}),
        },
        st.sampled_from(CURVES),
        st.none() | st.floats(0.01, 0.3),
        st.none() | values,
        st.floats(0.05, 0.95),
    )
)


@settings(deadline=None, max_examples=200)
@given(values, st.integers(1, 400), st.data())
def test_rates_are_finite_and_never_negative(value: dict[str, Any], total: int, data: st.DataObject) -> None:
    made = recipe(net(), schedule=value).schedule
    schedule = whole(made)
    for step in {0, total - 1, total, 2 * total, data.draw(st.integers(0, 3 * total))}:  # an estimate may be too short
        factor = schedule(step, total)
        assert math.isfinite(factor) and 0 <= factor <= 1 + 1e-12  # rounding of a cosine


def whole(made: Any) -> Schedule:
    """A chain as `mount` makes it, without the rest of the assembly."""
    return made.of_step if made.then is None else chained(made.of_step, whole(made.then), made.at)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("total", [400, 1000])
def test_continuous_where_promised(name: str, total: int) -> None:
    """Sixteen times the steps must at least halve the greatest jump (a root at its start only quarters it)."""
    schedule = alone({"warmup": 0.1, **example(name)} if name not in RISING_BY_THEMSELVES else example(name))

    def jump(steps: int) -> float:
        factors = [schedule(step, steps) for step in range(steps + 1)]
        return max(abs(a - b) for a, b in itertools.pairwise(factors))

    cls = catalogue.find("schedule", name)
    assert (jump(16 * total) <= jump(total) / 2) == cls.continuous  # type: ignore[attr-defined]


@settings(deadline=None)
@given(st.sampled_from(sorted({*CURVES} - {*RISING_BY_THEMSELVES})), st.floats(0.01, 0.3), st.integers(4, 500))
def test_warmup_starts_at_the_first_steps_share_and_meets_the_curve(name: str, warmup: float, total: int) -> None:
    schedule = alone({**example(name), "warmup": warmup})
    steps = round(warmup * total)
    first, met = schedule(0, total), schedule(steps, total)
    assert first == pytest.approx(met / (steps + 1), rel=1e-12)  # one product
    rises = [schedule(step, total) for step in range(steps + 1)]
    for a, b in itertools.pairwise(rises):
        assert b - a == pytest.approx(met / (steps + 1), rel=1e-9)  # a difference of numbers near 1 loses digits


@pytest.mark.parametrize(
    ("name", "fields", "lands"),
    [
        ("cosine", {"end": 0.1}, 0.1),
        ("polynomial", {"end": 0.1, "power": 0.9}, 0.1),
        ("exponential", {"end": 0.02}, 0.02),
        ("warmup-stable-decay", {"end": 0.05}, 0.05),
        ("cyclic", {"cycle": 0.25, "low": 0.2}, 0.2),
        ("cyclic", {"cycle": 0.25, "low": 0.2, "mode": "exp-range", "end": 0.5}, 0.2),
    ],
)
@pytest.mark.parametrize("total", [8, 40, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_lands_where_it_says_after_the_last_step(
    name: str, fields: dict[str, Any], lands: float, total: int, warmup: float
) -> None:
    schedule = alone({"name": name, "warmup": warmup, **fields})
    assert schedule(total, total) == pytest.approx(lands, rel=1e-12)  # a few roundings


def test_one_after_another_each_sees_its_own_share() -> None:
    value = {
        "name": "constant", "warmup": 0.5, "at": 0.4,
        "then": {"name": "polynomial", "at": 0.5, "then": {"name": "constant", "factor": 0.1}},
    }  # fmt: skip
    schedule = mounted(value)
    assert [schedule(step, 10) for step in range(10)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3, 0.1, 0.1, 0.1], rel=1e-13
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"name": "cosine", "at": 0.5}, "schedule.at: has no effect without 'then'; add for example then: {name:"),
        ({"name": "cosine", "then": "constant"}, "schedule.then: has no effect without 'at'; add for example at: 0.5"),
        ({"name": "cosine", "then": "cosin", "at": 0.5}, "schedule.then: unknown schedule 'cosin'; did you mean"),
        ({"name": "cosine", "then": "adamw", "at": 0.5}, "schedule.then: unknown schedule 'adamw'"),
        ({"name": "one-cycle", "warmup": 0.1}, "schedule.warmup: this schedule rises by itself; set rise"),
        ({"name": "inverse-root"}, "schedule.warmup: got 0, but the warm-up is the time scale of this curve"),
        ({"name": "warmup-stable-decay", "warmup": 0.5, "decay": 0.6}, "schedule.decay: warmup 0.5 and decay 0.6"),
        ({"name": "multi-step", "milestones": [0.5, 0.4]}, "schedule.milestones: got [0.5, 0.4], which do not rise"),
        ({"name": "multi-step", "warmup": 0.6}, "schedule.milestones: the first drop, at 0.5, is not after"),
        ({"name": "step-decay", "warmup": 0.4}, "schedule.every: the first drop, at 0.3333, is not after the warm-up"),
        ({"name": "cyclic", "mode": "exp-range"}, "schedule.end: the mode exp-range needs it"),
        ({"name": "cyclic", "end": 0.1}, "schedule.end: has no effect in mode triangular"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(value: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_value({"name": "a", "data": "digits", "model": "mlp", "schedule": value})
    assert str(caught.value).startswith(said)


# ---- the one that follows the scores, in the loop

PLATEAU = {"name": "on-plateau", "patience": 1, "factor": 0.5, "smallest_gain": 10.0}  # nothing is such a gain


def rates(run: Any) -> list[float]:
    return [row["learning_rate"] / 0.1 for row in run.steps[::3]]  # of the first step of each epoch


def test_on_plateau_follows_the_scores_of_the_run(tmp_path: Path) -> None:
    run = train(recipe(net(), schedule=PLATEAU, budget={"epochs": 4}), root=tmp_path, quiet=True)
    assert rates(run) == pytest.approx([1, 1, 0.5, 0.25], rel=1e-15)


def test_behind_another_schedule_it_counts_from_its_turn_on_also_after_a_restart(tmp_path: Path) -> None:
    """Two epochs at a constant rate, whose scores do not count; resumed at each epoch's end, where scores arrive."""
    value = {"name": "constant", "at": 0.4, "then": PLATEAU}
    chain = recipe(net(), schedule=value, budget={"epochs": 5}, save={"report": False, "keep": 9})
    chain = chain.patched({"model": {"name": "mlp", "widths": [4]}})  # which a resumed run can make again
    run = train(chain, root=tmp_path, quiet=True)
    assert rates(run) == pytest.approx([1, 1, 1, 1, 0.5], rel=1e-15)
    before = (run.folder / "steps.csv").read_bytes()
    for kept in (4, 3, 2, 1):
        checkpoints = sorted((run.folder / "checkpoints").iterdir())
        for folder in checkpoints[kept:]:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        assert (resume(run.folder, quiet=True).folder / "steps.csv").read_bytes() == before
