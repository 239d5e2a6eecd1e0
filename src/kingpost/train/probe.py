"""Probe a trained net: how well the features of each layer carry to a task, and how far they have moved.

Legend of shapes: ``N`` samples, ``D`` features of a layer, ``C`` classes or values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.assembly import Layout
from kingpost.errors import DataError, RunError
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import Dataset, Split
from kingpost.train import checkpoint
from kingpost.train.assemble import assemble
from kingpost.train.evaluate import questions
from kingpost.train.parallel import DataParallel
from kingpost.train.tasks import Classification

MOST_SAMPLES = 2000
STRENGTHS = (1e-4, 1e-2, 1.0, 100.0)


def cka(x_nd: Tensor, y_nd: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same samples, in 0..1.

    ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` of the centred features, Frobenius norms. It does not change when features are
    turned, or all scaled by one factor. NaN if one of them does not vary. With fewer samples than features it is
    high also for unrelated ones. Source: Kornblith et al., arXiv 1905.00414.

    >>> x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> round(cka(x, -5 * x.roll(1, 1)), 12)
    1.0
    """
    x, y = x_nd - x_nd.mean(0), y_nd - y_nd.mean(0)
    if x.shape[1] + y.shape[1] > 2 * len(x):  # the same through the samples' kernels, which are then smaller
        k, m = x @ x.T, y @ y.T
        return float((k * m).sum() / (k.norm() * m.norm()))
    return float((y.T @ x).norm().square() / ((x.T @ x).norm() * (y.T @ y).norm()))


def ridge(x_nd: Tensor, y_nc: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights ``(D, C)`` and offsets ``(C,)`` that minimise ``|y - x w - b|^2 + strength |w|^2``."""
    mean_x, mean_y = x_nd.mean(0), y_nc.mean(0)
    x, y = x_nd - mean_x, y_nc - mean_y
    if x.shape[1] <= len(x):
        w = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    else:
        w = x.T @ torch.linalg.solve(x @ x.T + strength * torch.eye(len(x), dtype=x.dtype), y)
    return w, mean_y - mean_x @ w


def linear_probe(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, strengths: Sequence[float] = STRENGTHS
) -> float:
    """Accuracy (or R2, for ``classes`` = 0) on the second part of a ridge regression fitted on the first.

    Features are standardised by the first part; classes are coded as +1 and -1. The strength, in units of the number
    of samples, is the one that does best on the last fifth of the first part.

    Args:
        train: features ``(N, D)`` and targets, classes ``(N,)`` or values ``(N, C)``.
        test: alike.
        classes: how many; 0 for values.
        strengths: of the penalty.
    """
    x, y = train[0].double(), train[1]
    mean, std = x.mean(0), x.std(0, correction=0)
    x, other = ((part.double() - mean) / std.where(std > 0, torch.ones_like(std)) for part in (x, test[0]))
    kept = len(x) - len(x) // 5
    tried = [_scored(x[:kept], y[:kept], x[kept:], y[kept:], classes, s) for s in strengths]
    best = strengths[max(range(len(tried)), key=tried.__getitem__)]
    return _scored(x, y, other, test[1], classes, best)


def _scored(x: Tensor, y: Tensor, other: Tensor, wanted: Tensor, classes: int, strength: float) -> float:
    coded = 2 * F.one_hot(y, classes).double() - 1 if classes else y.reshape(len(y), -1).double()
    w, b = ridge(x, coded, strength * len(x))
    guessed = other @ w + b
    if classes:
        return float((guessed.argmax(1) == wanted).double().mean())
    values = wanted.reshape(len(wanted), -1).double()
    return float(1 - (guessed - values).square().sum() / (values - values.mean(0)).square().sum())


@dataclass(frozen=True)
class LayerProbe:
    """One layer's features.

    Args:
        path: of the layer.
        features: how many numbers it gives for a sample, positions averaged.
        trained: score of a linear probe on them.
        untrained: that of the same net as it started.
        moved: 1 - CKA of the two; 0 if training has changed nothing that matters to a linear reader.
    """

    path: str
    features: int
    trained: float
    untrained: float
    moved: float


@dataclass(frozen=True)
class Probe:
    """What a net's layers know.

    Args:
        run: its name.
        data: name of the data that is probed with.
        metric: of the scores, accuracy or r2.
        samples: that the probes were fitted on, and judged on.
        layers: from the input on.
        alignment: CKA between each two layers of the trained net.
    """

    run: str
    data: str
    metric: str
    samples: tuple[int, int]
    layers: tuple[LayerProbe, ...]
    alignment: tuple[tuple[float, ...], ...]

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        wide = max(12, *(len(layer.path) for layer in self.layers))
        fitted, judged = self.samples
        lines = [
            f"probe of {self.run} on {self.data}: {self.metric} of ridge regression on each layer's features "
            f"(positions averaged), fitted on {fitted:,} samples, judged on {judged:,}",
            f"{'layer':<{wide}} {'features':>8} {'trained':>8} {'untrained':>10} {'moved (1 - CKA)':>16}",
        ]
        for one in self.layers:
            scores = f"{one.trained:>8.4f} {one.untrained:>10.4f} {one.moved:>16.4f}"
            lines.append(f"{one.path:<{wide}} {one.features:>8,} {scores}")
        return "\n".join(lines)


def probe(
    run: Run,
    data: Recipe | None = None,
    which: Literal["best", "last"] = "best",
    device: str = "auto",
    recipe: Recipe | None = None,
) -> Probe:
    """Linear probes of each layer of a trained net, beside those of the net as it started, and their CKA.

    Args:
        run: the trained run; of one with stages, the last.
        data: a recipe whose data and task the features are tried on; None for the run's own.
        which: weights of the best or the last epoch.
        device: where to compute.
        recipe: the one that was trained, for a run with objects that its file cannot hold.

    Raises:
        DataError: the data is not labelled, has no second part, or has other inputs than the net takes.
    """
    run = run.final
    recipe = recipe or run.recipe
    where = DataParallel(device=device).torch_device(0)
    own = recipe.data.open()
    other = own if data is None else data.data.open()
    if [x for x, _ in other.facts.inputs] != [x for x, _ in own.facts.inputs]:
        raise DataError(
            f"the net takes {[x for x, _ in own.facts.inputs]}, but '{data.data.name if data else ''}' gives "
            f"{[x for x, _ in other.facts.inputs]}"
        )
    train, test = _parts(other)
    fresh = assemble(recipe.with_(initialise=_own_start(recipe)), own, where).model.eval()
    trained = assemble(recipe, own, where, told=None).model.eval()
    checkpoint.load_weights(run.weights(which), trained)
    classes = len(other.facts.classes) if other.facts.task == Classification().name else 0
    if not classes and other.facts.task not in ("regression", "forecasting"):
        raise DataError(f"probes are for classes or values, but the data is for '{other.facts.task}'")
    found = [[features(model, split, where) for split in (train, test)] for model in (trained, fresh)]
    layers, targets = list(found[0][0][0]), [part[1] for part in found[0]]
    rows = []
    for path in layers:
        scores = [
            linear_probe((parts[0][0][path], targets[0]), (parts[1][0][path], targets[1]), classes) for parts in found
        ]
        now, before = found[0][1][0][path], found[1][1][0][path]
        moved = 1 - cka(now.double(), before.double())
        rows.append(LayerProbe(path, now.shape[1], scores[0], scores[1], moved))
    judged = [found[0][1][0][path].double() for path in layers]
    return Probe(
        run=run.name,
        data=(data or recipe).data.name,
        metric="accuracy" if classes else "r2",
        samples=(len(targets[0]), len(targets[1])),
        layers=tuple(rows),
        alignment=tuple(tuple(cka(a, b) for b in judged) for a in judged),
    )


def _own_start(recipe: Recipe) -> Any:
    """The recipe's initialiser, unless it starts from another run: the comparison is with a net that knows nothing."""
    return None if recipe.initialise is not None and recipe.initialise.lineage else recipe.initialise


def _parts(data: Dataset) -> tuple[Split, Split]:
    second = next((data.splits[part] for part in ("test", "validation") if part in data.splits), None)
    if second is None:
        raise DataError("the data has neither a test nor a validation part to judge the probes on")
    return data.splits["train"], second


def layers_of(model: nn.Module) -> list[str]:
    """Paths of a net's layers: its children, with those of lists and sequences one by one; what has no output is left.

    >>> layers_of(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 1)))
    ['0.0', '0.1', '1']
    """
    found: list[str] = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += [f"{name}.{inside}" for inside, _ in child.named_children()]
        else:
            found.append(name)
    return found


def features(model: nn.Module, split: Split, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """The features that each layer gives for the first samples of a split, positions averaged, and the targets.

    ``(B, D, H, W)`` is averaged over the grid and ``(B, T, D)`` over positions; layers that were not called, or that
    give a single number or no tensor, are left out.
    """
    kept: dict[str, list[Tensor]] = {}
    targets: list[Tensor] = []
    count = 0
    for batch in questions(split, Classification(), 256, device, Layout()):
        with torch.no_grad(), _watched(model, kept):
            model(*batch.inputs)
        targets.append(batch.targets.cpu())
        count += len(batch)
        if count >= MOST_SAMPLES:
            break
    if not kept:
        raise RunError(f"no layer of {type(model).__name__} gives features")
    whole = {path: torch.cat(parts) for path, parts in kept.items()}
    return {path: x for path, x in whole.items() if len(x) == count}, torch.cat(targets)


@contextmanager
def _watched(model: nn.Module, kept: dict[str, list[Tensor]]) -> Iterator[None]:
    def note(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.is_floating_point() and first.ndim in (2, 3, 4):
                axes = {2: (), 3: (1,), 4: (2, 3)}[first.ndim]
                kept.setdefault(path, []).append((first.mean(axes) if axes else first).float().cpu())

        return hook

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in layers_of(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
