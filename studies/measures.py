"""What a study measures when it is no column of a run's results: functions of a seed, for ``prove`` to compare."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kingpost as kp
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import Order
from kingpost.train.train import train

Words = Mapping[str, Any]
SEARCHED = (1_000_000, 1_000_001)  # seeds of small searches, which no pair uses
_CHOSEN: dict[str, float] = {}  # what small searches of this process chose
QUIET = {"save.report": False, "save.tensorboard": False, "save.keep": 1, "layout.threads": 1}


def trained(
    seed: int, *, recipe: Words, shared: Words | None = None, changes: Words | None = None, metric: str = "accuracy"
) -> float:
    """A metric of the last epoch of the last stage, for arms that differ in stages or in what a metric is called.

    Args:
        seed: of the run.
        recipe: the whole recipe.
        shared: a patch of it, the same in all arms.
        changes: a patch on top of that, the arm's own.
        metric: a column of ``results.csv``, without ``validation_``.
    """
    with ended(recipe, shared, changes, seed) as run:
        return float((run.stages or [run])[-1].results[-1][f"validation_{metric}"])


def robust(
    seed: int,
    *,
    recipe: Words,
    shared: Words | None = None,
    changes: Words | None = None,
    epsilon: float = 0.1,
    samples: int = 500,
) -> float:
    """Accuracy under a PGD attack of 20 steps, on validation samples.

    Args:
        seed: of the run.
        recipe: the whole recipe.
        shared: a patch of it, the same in all arms.
        changes: a patch on top of that, the arm's own.
        epsilon: greatest change of a pixel, in units of the standardised images.
        samples: how many are attacked.
    """
    from kingpost.train.adversarial.pgd import PGD

    with ended(recipe, shared, changes, seed) as run:
        attack = PGD(epsilon=epsilon, steps=20)
        found = kp.robust_accuracy(run, attack, part="validation", samples=samples, device="cpu")
        return found.robust_accuracy


def largest_rate(
    seed: int,
    *,
    recipe: Words,
    shared: Words | None = None,
    changes: Words | None = None,
    first: float = 0.01,
    rungs: int = 10,
    enough: float = 0.6,
) -> float:
    """Doublings of the learning rate, from ``first`` on, that a net still learns with; -1 if it never does.

    Args:
        seed: of the runs.
        recipe: the whole recipe.
        shared: a patch of it, the same in all arms.
        changes: a patch on top of that, the arm's own.
        first: learning rate of the first rung.
        rungs: how many are tried, each with twice the rate of the one before.
        enough: validation accuracy that counts as learned.
    """
    from kingpost.errors import TrainingError

    for rung in reversed(range(rungs)):
        try:
            rate = {**(changes or {}), "optimizer.lr": first * 2**rung}
            if trained(seed, recipe=recipe, shared=shared, changes=rate) >= enough:
                return float(rung)
        except TrainingError:
            continue
    return -1.0


def dead_units(seed: int, *, recipe: Words, shared: Words | None = None, changes: Words | None = None) -> float:
    """Part of the hidden units of an ``mlp`` whose slope is 0 on every validation sample after training.

    Args:
        seed: of the run.
        recipe: the whole recipe.
        shared: a patch of it, the same in all arms.
        changes: a patch on top of that, the arm's own.
    """
    with ended(recipe, shared, changes, seed) as run:
        model = kp.load_model(run, which="last", device="cpu")
        inputs = torch.cat([batch.inputs[0] for batch in _validation(run)])
    return dead_share(model, inputs)


def dead_share(model: nn.Module, inputs: Tensor) -> float:
    """Part of the units before an activation that no sample can move, ``inputs`` being ``(N, ...)``.

    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = net[0].weight.data.zero_(), net[0].bias.data.copy_(torch.tensor([-1.0, 1.0]))
    >>> dead_share(net, torch.zeros(3, 1))
    0.5
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    kept = [m for m in model.modules() if type(m).__module__.endswith("activation")]
    hooks = [m.register_forward_hook(lambda module, args, _: seen.append((module, args[0].detach()))) for m in kept]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    dead = units = 0
    for module, before in seen:
        x = before.requires_grad_()
        slope = torch.autograd.grad(module(x).sum(), x)[0]
        dead += int((slope.abs().amax(0) == 0).sum())
        units += before[0].numel()
    return dead / units


def detection(
    seed: int,
    *,
    recipe: Words,
    shared: Words | None = None,
    changes: Words | None = None,
    rates: Sequence[float] = (0.001, 0.003, 0.01),
    false_alarms: float = 0.01,
) -> float:
    """Part of the attacks that are found at a fixed rate of false alarms, at the best of several learning rates.

    Args:
        seed: of the run.
        recipe: the whole recipe; one of its classes is ``normal``.
        shared: a patch of it, the same in all arms.
        changes: a patch on top of that, the arm's own.
        rates: learning rates that are tried first, with two seeds of their own.
        false_alarms: part of the normal samples that may raise an alarm.
    """

    def rate_of(seed: int, lr: float) -> float:
        with ended(recipe, shared, {**(changes or {}), "optimizer.lr": lr}, seed) as run:
            scores, targets = raw_scores(run)
            normal = run.recipe.data.open().facts.classes.index("normal")
        return float(detection_rate(scores.double().log_softmax(1)[:, normal], targets != normal, false_alarms))

    words = json.dumps([recipe, shared, changes, list(rates), false_alarms], sort_keys=True)
    if words not in _CHOSEN:
        _CHOSEN[words] = max(rates, key=lambda lr: math.fsum(rate_of(own, lr) for own in SEARCHED))
    return rate_of(seed, _CHOSEN[words])


def detection_rate(scores: Tensor, attacks: Tensor, false_alarms: float) -> Tensor:
    """Part of attacks that are found when the threshold lets at most so many normal samples raise an alarm.

    Args:
        scores: how normal each sample looks, ``(N,)``; an alarm is a score below the threshold.
        attacks: which are attacks, ``(N,)`` bool.
        false_alarms: part of the normal samples that may raise one.

    >>> float(detection_rate(torch.tensor([0.1, 0.8, 0.9, 0.7, 0.3]), torch.tensor([1, 1, 0, 0, 0]) == 1, 0.34))
    0.5
    """
    normal = scores[~attacks].sort().values
    threshold = normal[int(false_alarms * len(normal))]
    return (scores[attacks] < threshold).double().mean()


def together(
    seed: int, *, recipe: Words, shared: Words | None = None, members: int = 1, what: str = "accuracy"
) -> float:
    """Accuracy or calibration error (15 bins) of the mean of several separately trained nets, on the validation part.

    Args:
        seed: of the ensemble; its members have seeds of their own, so that the first is the same in every arm.
        recipe: the whole recipe.
        shared: a patch of it, the same in all arms.
        members: how many.
        what: ``accuracy`` or ``calibration_error``.
    """
    from kingpost.train.calibrate import scores_of

    votes = [_answers(json.dumps([recipe, shared], sort_keys=True), 1000 * seed + number) for number in range(members)]
    mean = torch.stack([scores.softmax(1) for scores, _ in votes]).mean(0)
    targets = votes[0][1]
    if what == "accuracy":
        return float((mean.argmax(1) == targets).double().mean())
    return scores_of(mean.clamp_min(1e-12).log(), targets)["calibration_error"]


def loss_when_wider(
    seed: int,
    *,
    recipe: Words,
    shared: Words | None = None,
    changes: Words | None = None,
    narrow: int = 32,
    wide: int = 128,
    rates: Sequence[float] = (0.001, 0.003, 0.01),
) -> float:
    """Validation loss of a wide net at the learning rate that was best for a narrow one.

    Args:
        seed: of the wide net's run.
        recipe: the whole recipe; ``model.width`` is set here.
        shared: a patch of it, the same in all arms.
        changes: a patch on top of that, the arm's own.
        narrow: width at which the rate is sought, with two seeds of their own.
        wide: width that is judged.
        rates: those that are tried.
    """

    def loss(seed: int, width: int, lr: float) -> float:
        sized = {**(changes or {}), "model.width": width, "optimizer.lr": lr}
        return trained(seed, recipe=recipe, shared=shared, changes=sized, metric="loss_nats")

    words = json.dumps([recipe, shared, changes, list(rates), narrow], sort_keys=True)
    if words not in _CHOSEN:
        _CHOSEN[words] = min(rates, key=lambda lr: math.fsum(loss(own, narrow, lr) for own in SEARCHED))
    return loss(seed, wide, _CHOSEN[words])


@lru_cache(maxsize=512)
def _answers(words: str, seed: int) -> tuple[Tensor, Tensor]:
    """Raw scores and targets of a net on the validation part."""
    with ended(*json.loads(words), None, seed) as run:
        return raw_scores(run)


def raw_scores(run: Run) -> tuple[Tensor, Tensor]:
    """Raw scores and targets of the last weights on the validation part."""
    model = kp.load_model(run, which="last", device="cpu")
    batches = list(_validation(run))
    with torch.no_grad():
        return torch.cat([model(*b.inputs) for b in batches]), torch.cat([b.targets for b in batches])


def _validation(run: Run) -> Iterator[Any]:
    yield from run.recipe.data.open().splits["validation"].batches(Order(batch_size=512))


@contextmanager
def ended(recipe: Words, shared: Words | None, changes: Words | None, seed: int) -> Iterator[Run]:
    """A run that has ended; its folder goes afterwards.

    Raises:
        KeyboardInterrupt: a signal stopped it.
    """
    made = (
        Recipe.from_value({"name": "run", **recipe})
        .patched(dict(shared or {}), dict(changes or {}), QUIET)
        .with_(seed=seed)
    )
    with tempfile.TemporaryDirectory() as folder:
        run = train(made, Path(folder), quiet=True)
        if run.status == "stopped":
            raise KeyboardInterrupt
        yield run
