"""The learning-rate range test: raise the rate step by step on weights that are thrown away, and watch the loss."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, Step
from kingpost.errors import RecipeError, TrainingError
from kingpost.figure import Figure
from kingpost.foreign import Foreign
from kingpost.recipe import Recipe
from kingpost.source import Dataset, Order
from kingpost.train.assemble import assemble
from kingpost.train.gradients.backward import clear_gradients, gradients
from kingpost.train.guards import Statistics, gradient_norm, take_gradient
from kingpost.train.optimise.groups import base_rates
from kingpost.train.parallel import launched_ranks, process_group
from kingpost.train.planning import with_copies
from kingpost.train.progress import Display

FEWEST_STEPS = 20
RISE = 0.25  # the loss has diverged when it is so much above the first losses, as a part of them
CLEAR = 2.0  # a fall is clear if it is so many times what single losses scatter around their mean
HALF_SPAN = 0.1  # a slope is fitted to the steps on both sides of a step, this part of all steps on each


@dataclass(frozen=True)
class RangeTest:
    """What a range test measured; rates are in units of the recipe's ``optimizer.lr``.

    Args:
        name: of the recipe.
        unit: of the loss.
        rates: learning rate of each step.
        losses: training loss of each step, before it was made.
        smoothed: mean of each loss and its neighbours, as many on both sides.
        steepest: the rate at which the loss falls most per decade; None if it did not clearly fall.
        diverged: the rate at which the test was ended because the loss had risen; None if it never did.
    """

    name: str
    unit: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    diverged: float | None

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return self.rates[int(np.argmin(self.smoothed))]

    @property
    def suggestion(self) -> float | None:
        """The smaller of the steepest rate and a tenth of the rate of divergence, to two digits."""
        found = [rate for rate in (self.steepest, self.diverged and self.diverged / 10) if rate]
        return float(f"{min(found):.2g}") if found else None

    def figures(self) -> tuple[Figure, ...]:
        """What was found, each number with the rule that gave it."""
        number = "{:.3g}".format
        first, last = number(self.rates[0]), number(self.rates[-1])
        steepest = number(self.steepest) if self.steepest else "none"
        diverged = number(self.diverged) if self.diverged else "none"
        tenth = number(self.diverged / 10) if self.diverged else "none"
        fell = "where the loss falls most per decade" if self.steepest else "the loss fell no more than it scatters"
        rose = f"the loss was {RISE:.0%} above its start" if self.diverged else f"not up to {last}"
        best = f"optimizer.lr={self.suggestion:g}" if self.suggestion else "none"
        if not self.suggestion:
            rule = "try more steps, or another range with --from and --to"
        elif self.steepest and self.diverged:
            rule = "the smaller of the steepest fall and a tenth of the divergence"
        else:
            rule = "the steepest fall" if self.steepest else "a tenth of the divergence"
        return (
            Figure("steps", len(self.rates), "steps", f"rates from {first} to {last}, each a batch of its own"),
            Figure("lowest loss", min(self.smoothed), self.unit, f"smoothed, at {number(self.lowest)}"),
            Figure("steepest fall", steepest, "", fell),
            Figure("divergence", diverged, "", rose),
            Figure("a tenth of the divergence", tenth, "", "leaves a margin for the rest of the run"),
            Figure("suggestion", best, "", rule),
        )

    def curve(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """What a plot needs: rates, losses, and losses smoothed."""
        return self.rates, self.losses, self.smoothed

    def marks(self) -> dict[str, float]:
        """The rates that were found, by what they are."""
        found = {"suggestion": self.suggestion, "steepest fall": self.steepest, "divergence": self.diverged}
        return {name: rate for name, rate in found.items() if rate is not None}

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        return {
            "recipe": self.name,
            "suggestion": self.suggestion,
            "rule": self.figures()[-1].reason,
            "steepest": self.steepest,
            "diverged": self.diverged,
            "tenth_of_diverged": self.diverged and self.diverged / 10,
            "lowest": self.lowest,
            "unit": self.unit,
            "rates": list(self.rates),
            "losses": list(self.losses),
            "smoothed": list(self.smoothed),
        }

    def __str__(self) -> str:
        return "\n".join([f"learning-rate range test of '{self.name}'", *map(str, self.figures())])


def lr_range_test(
    recipe: Recipe, low: float = 1e-6, high: float = 1.0, steps: int = 100, quiet: bool = False
) -> RangeTest:
    """Train for a few steps while the learning rate grows from ``low`` to ``high`` by the same factor each step.

    Everything of the recipe is used but its schedule and budget; nothing is written, and objects that were passed in
    are copied. It ends when the loss is not finite, or the mean of the last few is a quarter above that of the first.
    Source: Smith, "Cyclical Learning Rates", arXiv 1506.01186, section 3.3.

    Args:
        recipe: what would be trained.
        low: first learning rate, in units of ``optimizer.lr``.
        high: last learning rate.
        steps: how many, at least 20.
        quiet: no progress on standard error.

    Raises:
        RecipeError: the range is not one, or the recipe cannot be assembled.
        TrainingError: the loss was not finite from the start.

    >>> recipe = Recipe(name="tiny", data="digits", model="mlp")
    >>> test = lr_range_test(recipe, low=1e-4, high=10.0, steps=60, quiet=True)
    >>> 1e-4 < test.suggestion < 0.1
    True
    """
    if not 0 < low < high < math.inf:
        raise RecipeError(f"got a range from {low:g} to {high:g}", mend="from must be above 0, and to above from")
    if steps < FEWEST_STEPS:
        raise RecipeError(f"got {steps} steps", mend=f"at least {FEWEST_STEPS}, or no slope can be seen")
    if launched_ranks() > 1:
        raise RecipeError("a range test runs on one process", mend="start it without torchrun; batches are the same")
    ramp = np.geomspace(low, high, steps)
    losses: list[float] = []
    with process_group(recipe.layout) as device, Display(f"{recipe.name}, range test", quiet) as display:
        dataset = recipe.data.open()
        assembly = assemble(with_copies(recipe), dataset, device)
        began, few = time.monotonic(), _few(steps)
        for loss in _losses(assembly, dataset, recipe, ramp):
            losses.append(loss)
            if display.due():
                seconds, done = time.monotonic() - began, len(losses) / steps
                speed = recipe.batch_size * len(losses) / max(1e-9, seconds)
                display.step(done, 0, loss, speed, seconds * (1 / done - 1))
            if has_risen(losses, few):
                break
    return judged(recipe.name, assembly.setting.task.unit, ramp[: len(losses)].tolist(), losses, few)


def has_risen(losses: Sequence[float], few: int) -> bool:
    """Whether the last loss is not finite, or the mean of the last few is a quarter above that of the first few.

    >>> has_risen([2.0, 2.0, 1.0, 1.0], few=2), has_risen([2.0, 2.0, 1.0, 5.0], few=2)
    (False, True)
    """
    if not math.isfinite(losses[-1]):
        return True
    start, now = float(np.mean(losses[:few])), float(np.mean(losses[-few:]))
    return now > start + RISE * abs(start)


def judged(name: str, unit: str, rates: Sequence[float], losses: Sequence[float], few: int) -> RangeTest:
    """The figures that follow from the losses at these rates.

    Raises:
        TrainingError: hardly any loss is finite.
    """
    diverged = rates[-1] if has_risen(losses, few) else None
    count = sum(map(math.isfinite, losses))  # only the last one may not be
    if count < 2 * few:
        raise TrainingError(
            f"the loss was out of bounds after {count} steps, at a rate of {rates[-1]:.3g}; begin the range lower, "
            "with low=... (--from), or mend the model"
        )
    x, y = np.log10(rates[:count]), np.array(losses[:count])
    smoothed = np.array([y[max(0, i - few // 2) : i + few // 2 + 1].mean() for i in range(count)])
    lowest = int(smoothed.argmin())
    scatter = float((y - smoothed)[: lowest + 1].std())
    steepest = None
    if smoothed[:few].mean() - smoothed[lowest] > CLEAR * scatter and lowest >= few:
        span = max(few, round(HALF_SPAN * count))
        lines = [_line(x[: lowest + 1], y[: lowest + 1], i, span) for i in range(lowest + 1)]
        steepest = float(10 ** min(lines)[1])
    return RangeTest(name, unit, tuple(rates[:count]), tuple(y.tolist()), tuple(smoothed.tolist()), steepest, diverged)


def _line(x: Any, y: Any, at: int, span: int) -> tuple[float, float]:
    """Slope and middle of the straight line through the points around one, by least squares."""
    near = slice(max(0, at - span), at + span + 1)
    dx = x[near] - x[near].mean()
    return float((dx * y[near]).sum() / (dx * dx).sum()), float(x[near].mean())


def _few(steps: int) -> int:
    """How many losses are averaged: an odd number, 5 of 100 steps."""
    return max(3, steps // 20 | 1)


def _losses(assembly: Assembly, dataset: Dataset, recipe: Recipe, ramp: Any) -> Iterator[float]:
    """The mean training loss of each step, at these rates; ends after one that is not finite."""
    model, seed, device = assembly.model, recipe.seed, assembly.setting.device
    optimizer = assembly.optimizer(model)
    rates, statistics = base_rates(optimizer), Statistics(model)
    usual = _usual_rate(recipe, rates)
    model.train()
    for index, (rate, loaded) in enumerate(zip(ramp, _batches(dataset, recipe), strict=False)):
        step = Step(index=index, seed=seed)
        seeds.seed_default_generators(seeds.derive(seed, "forward", index, 0), device)
        batch = assembly.batch(loaded.to(device), step)
        step.items = assembly.setting.task.items(batch.targets)
        for group, base in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = base * float(rate) / usual
        with statistics.kept_on_error():
            loss, _ = take_gradient(assembly, model, batch, step, statistics)
        mean, norm = float(loss.mean()), gradient_norm(gradients(model))
        yield mean if math.isfinite(norm) or not loss.finite else math.nan
        if loss.finite:  # else half precision overflowed, and the technique has lowered its scale
            assembly.update(model, optimizer, step)
        clear_gradients(model)


def _batches(dataset: Dataset, recipe: Recipe) -> Iterator[Batch]:
    """The batches of the run, epoch after epoch."""
    for epoch in itertools.count():
        order = Order(batch_size=recipe.batch_size, shuffle=True, seed=recipe.seed, epoch=epoch)
        yield from dataset.splits["train"].batches(order)


def _usual_rate(recipe: Recipe, rates: Sequence[float]) -> float:
    """The recipe's ``optimizer.lr``, in units of which rates are given; without one, the first group's."""
    option = recipe.optimizer
    named = option.arguments.get("lr") if isinstance(option, Foreign) else getattr(option, "lr", None)
    usual = float(named) if isinstance(named, int | float) and named else rates[0]
    if not usual:
        raise RecipeError("a rate of 0 cannot be scaled", path="optimizer.lr", mend="give one above 0")
    return usual
