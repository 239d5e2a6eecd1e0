"""How honest probabilities are, and temperature scaling, which mends them without changing a decision.

Legend of shapes: ``N`` predictions, ``C`` classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.assembly import Layout
from kingpost.errors import RunError
from kingpost.files import write_json
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import Split
from kingpost.train.evaluate import outputs
from kingpost.train.predict import CALIBRATION, restored

Binning = Literal["width", "mass"]
Criterion = Callable[[Tensor, Tensor], Tensor]

LARGEST = 100.0  # temperatures beyond this, or below its inverse, mean that the validation part cannot tell


def fit_temperature(scores: Tensor, targets: Tensor, criterion: Criterion = F.cross_entropy) -> float:
    """The temperature T that minimises the loss of ``scores / T``; above 1 the net was too sure.

    The loss is convex in ``1 / T``. Where it has no minimum (no mistakes, or nothing but chance), T goes
    towards its limits, 0.01 and 100.
    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.

    Args:
        scores: before softmax (or sigmoid), ``(N, C)``.
        targets: what ``criterion`` takes.
        criterion: mean loss of scores and targets.

    >>> scores = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    >>> t = fit_temperature(scores, torch.tensor([0, 0, 0, 1]))  # right three times of four
    >>> (scores[0] / t).softmax(-1)[0].item()
    0.75...
    """
    scores = scores.detach().double()
    targets = targets.double() if targets.is_floating_point() else targets
    log = torch.zeros((), dtype=torch.float64, device=scores.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    edge = math.log(LARGEST)

    def loss() -> Tensor:
        optimizer.zero_grad()
        # Beyond the edges the loss rises, so that the search comes back.
        value = criterion(scores / log.clamp(-edge, edge).exp(), targets) + F.relu(log.abs() - edge).square()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(lambda: float(loss().detach()))  # type: ignore[no-untyped-call]
    return float(log.detach().clamp(-edge, edge).exp())


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence.

    Args:
        low: lower edge.
        high: upper edge.
        samples: how many.
        confidence: their mean confidence.
        right: the part of them that is right.
    """

    low: float
    high: float
    samples: int
    confidence: float
    right: float


def reliability(confidence: Tensor, right: Tensor, bins: int = 15, binning: Binning = "width") -> list[Bin]:
    """Predictions sorted into bins of confidence: of equal width on 0..1, or of equal mass; empty ones are left out.

    Args:
        confidence: the probability given to what was predicted, ``(N,)``.
        right: whether it was so, ``(N,)``.
        bins: how many.
        binning: ``width``: each bin is ``low < c <= high``; ``mass``: equally many predictions in each.

    >>> reliability(torch.tensor([0.9, 0.8, 0.3]), torch.tensor([True, False, False]), bins=2)
    [Bin(low=0.0, high=0.5, samples=1, confidence=0.3..., right=0.0), Bin(low=0.5, high=1.0, samples=2, ...
    """
    order = confidence.argsort(stable=True)
    confidence, right = confidence[order].double().cpu(), right[order].double().cpu()
    if binning == "mass":
        edges = [len(confidence) * i // bins for i in range(bins + 1)]
    else:
        inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        edges = [0, *torch.searchsorted(confidence, inner[1:-1].contiguous(), right=True).tolist(), len(confidence)]
    found = []
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        if start == stop:
            continue
        own = confidence[start:stop]
        low, high = (index / bins, (index + 1) / bins) if binning == "width" else (float(own[0]), float(own[-1]))
        found.append(Bin(low, high, stop - start, float(own.mean()), float(right[start:stop].mean())))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """The expected calibration error: mean distance between confidence and truth, weighted by samples.

    It is biased upward for few samples, and depends on the bins. Source: Naeini et al., AAAI 2015.

    >>> calibration_error([Bin(0.5, 1.0, 10, 0.9, 0.7)])
    0.2...
    """
    samples = sum(one.samples for one in bins)
    return sum(one.samples * abs(one.confidence - one.right) for one in bins) / samples


def brier(probabilities: Tensor, targets: Tensor) -> float:
    """Mean over samples of the squared distance between probabilities and truth, summed over classes: 0..2.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    >>> brier(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    0.125
    """
    truth = targets if targets.ndim == 2 else F.one_hot(targets, probabilities.shape[1])
    return float((probabilities.double() - truth).square().sum(1).mean())


def scores_of(scores: Tensor, targets: Tensor, bins: int = 15) -> dict[str, float]:
    """Accuracy, negative log likelihood in nats, Brier score, and both calibration errors of softmax scores."""
    probabilities = scores.double().softmax(-1)
    confidence, predicted = probabilities.max(-1)
    right = predicted == targets
    return {
        "accuracy": float(right.double().mean()),
        "nll_nats": float(F.cross_entropy(scores.double(), targets)),
        "brier": brier(probabilities, targets),
        "calibration_error": calibration_error(reliability(confidence, right, bins)),
        "calibration_error_equal_mass": calibration_error(reliability(confidence, right, bins, "mass")),
    }


@dataclass(frozen=True)
class Calibration:
    """A run's temperature, and how honest its probabilities are without and with it.

    Args:
        temperature: by which the scores are divided.
        weights: ``best`` or ``last``: whose scores.
        figures: by part of the data and ``before`` or ``after``.
        bins: those of the reliability diagram, of equal width, likewise.
    """

    temperature: float
    weights: str
    figures: Mapping[str, Mapping[str, Mapping[str, float]]]
    bins: Mapping[str, Mapping[str, list[Bin]]]

    @property
    def doubtful(self) -> bool:
        """Whether the validation part could not tell: no mistakes there, or nothing but chance."""
        return self.figures["validation"]["before"]["accuracy"] == 1 or self.temperature > LARGEST / 1.1

    def to_value(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"temperature  {self.temperature:.4g}   fitted on validation, {self.weights} weights"]
        if self.doubtful:
            lines.append("             doubtful: no mistakes on the validation part, or no better than chance")
        for part, both in self.figures.items():
            lines += [
                f"{part:<12} {key:<30} {both['before'][key]:.5f} -> {both['after'][key]:.5f}" for key in both["before"]
            ]
        return "\n".join(lines)


def calibrate(
    run: Run | Path | str,
    which: Literal["best", "last"] = "best",
    bins: int = 15,
    device: str = "auto",
    recipe: Recipe | None = None,
) -> Calibration:
    """Fit a classifier's temperature on its validation part, and write ``calibration.json`` into the run's folder.

    Args:
        run: the run, its folder or its name.
        which: weights of the best or the last epoch.
        bins: of the calibration error and the reliability diagram.
        device: where to compute.
        recipe: the one that was trained, for a run with objects that its file cannot hold.

    Raises:
        RunError: no such run or weights, no validation part, or not a classifier.
    """
    if bins < 1:
        raise RunError(f"at least 1 bin is needed, got {bins}")
    run = run if isinstance(run, Run) else Run.open(run)
    recipe = recipe or run.recipe
    model, dataset, task, where = restored(run, recipe, which, device)
    if task.name != "classification":
        raise RunError(f"a temperature is for classifiers, but the task of run '{run.name}' is '{task.name}'")
    if "validation" not in dataset.splits:
        raise RunError(f"the data of run '{run.name}' has no validation part to fit a temperature on; hold one out")
    parts = [part for part in ("validation", "test") if part in dataset.splits]
    raw = {part: raw_outputs(model, dataset.splits[part], 4 * recipe.batch_size, where) for part in parts}
    temperature = fit_temperature(*raw["validation"])
    found: dict[str, dict[str, tuple[dict[str, float], list[Bin]]]] = {
        part: {
            when: (scores_of(scores / t, targets, bins), _diagram(scores / t, targets, bins))
            for when, t in (("before", 1.0), ("after", temperature))
        }
        for part, (scores, targets) in raw.items()
    }
    made = Calibration(
        temperature,
        which,
        {part: {when: figures for when, (figures, _) in both.items()} for part, both in found.items()},
        {part: {when: drawn for when, (_, drawn) in both.items()} for part, both in found.items()},
    )
    write_json(run.folder / CALIBRATION, made.to_value())
    return made


def raw_outputs(model: nn.Module, split: Split, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All outputs and targets of a split, on the processor; the model must be in eval mode."""
    pairs = [(raw.cpu(), batch.targets.cpu()) for raw, batch in outputs(model, split, batch_size, device, Layout())]
    scores, targets = zip(*pairs, strict=True)
    return torch.cat(scores), torch.cat(targets)


def _diagram(scores: Tensor, targets: Tensor, bins: int) -> list[Bin]:
    confidence, predicted = scores.double().softmax(-1).max(-1)
    return reliability(confidence, predicted == targets, bins)


def read_calibration(run: Run) -> dict[str, Any] | None:
    """What :func:`calibrate` has written; None if it was not called."""
    path = run.folder / CALIBRATION
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
