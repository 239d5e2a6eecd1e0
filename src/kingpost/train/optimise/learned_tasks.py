"""The small tasks on which an optimizer is meta-trained: random nets on random parts of data that is at hand.

Legend of shapes: ``P`` nets side by side, ``B`` samples, ``F`` features, ``C`` classes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kingpost import seeds
from kingpost.errors import MissingExtraError

SETS = ("digits", "wine", "breast_cancer")
ACTIVATIONS = (torch.relu, torch.tanh, F.gelu)


@functools.cache
def samples_of(name: str) -> tuple[Tensor, Tensor]:
    """One of scikit-learn's bundled sets: standardised features ``(N, F)`` and classes ``(N,)``."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="data", purpose="learning an optimizer") from error
    loaded = getattr(datasets, f"load_{name}")()
    x = torch.as_tensor(loaded.data, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    return x.float(), torch.as_tensor(loaded.target, dtype=torch.int64)


@dataclass(frozen=True)
class Task:
    """One inner problem: a net of some widths, and the samples that it learns.

    Args:
        x: ``(N, F)``.
        y: ``(N,)``.
        widths: units of all layers, input and output included.
        activation: index in ``ACTIVATIONS``.
        batch: samples a step.
        steps: how long it is trained.
        gain: factor on the usual starting weights.
    """

    x: Tensor
    y: Tensor
    widths: tuple[int, ...]
    activation: int
    batch: int
    steps: int
    gain: float

    def start(self, nets: int, generator: torch.Generator) -> list[Tensor]:
        """Starting weights: a matrix ``(P, inputs * outputs)`` and a bias ``(P, outputs)`` for each layer."""
        parts = []
        for inputs, outputs in itertools.pairwise(self.widths):
            scale = self.gain * inputs**-0.5
            parts += [torch.randn(nets, inputs * outputs, generator=generator) * scale, torch.zeros(nets, outputs)]
        return parts

    def draw(self, nets: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch for each net, ``(P, B, F)`` and ``(P, B)``."""
        index = torch.randint(len(self.y), (nets, self.batch), generator=generator)
        return self.x[index], self.y[index]

    def losses(self, parts: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of each net on its batch, ``(P,)``, in units of that of a guess, ``ln C``."""
        for index, (inputs, outputs) in enumerate(itertools.pairwise(self.widths)):
            matrix, bias = parts[2 * index], parts[2 * index + 1]
            x = torch.baddbmm(bias[:, None], x, matrix.view(-1, inputs, outputs))
            if index < len(self.widths) - 2:
                x = ACTIVATIONS[self.activation](x)
        return F.cross_entropy(x.transpose(1, 2), y, reduction="none").mean(1) / math.log(self.widths[-1])


def draw_task(*seed: int | str) -> Task:
    """A task that follows from a seed: data, classes, features, samples, net, batch and length are all drawn."""
    generator = seeds.generator(*seed, "task")

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def between(low: float, high: float) -> float:
        """Log-uniform."""
        return math.exp(math.log(low) + float(torch.rand((), generator=generator)) * math.log(high / low))

    x, y = samples_of(SETS[(0, 0, 1, 2)[pick(0, 3)]])
    classes = int(y.max()) + 1
    chosen = torch.randperm(classes, generator=generator)[: pick(2, classes)]
    rows = torch.isin(y, chosen).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=generator)[: max(40, pick(len(rows) // 3, len(rows)))]]
    columns = torch.randperm(x.shape[1], generator=generator)[: pick(x.shape[1] // 2, x.shape[1])]
    names = torch.full((classes,), -1).scatter(0, chosen, torch.arange(len(chosen)))
    x = x[rows][:, columns]
    if pick(0, 1):  # as in pictures and text: many inputs that hang together
        wide = round(between(64, 800))
        x = x @ (torch.randn(x.shape[1], wide, generator=generator) * x.shape[1] ** -0.5)
    hidden = [round(between(8, 64)) for _ in range(pick(1, 2))]
    return Task(
        x=x * between(0.3, 1.5),
        y=names[y[rows]],
        widths=(x.shape[1], *hidden, len(chosen)),
        activation=pick(0, len(ACTIVATIONS) - 1),
        batch=round(between(16, 64)),
        steps=round(between(50, 400)),
        gain=between(0.5, 2.0),
    )
