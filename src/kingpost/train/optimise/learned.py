"""A learned optimizer: a small net, meta-trained on small tasks, turns two dials of Adam's step for each weight.

Legend of shapes: ``...`` nets that are moved at once (none in use, several in meta-training), ``n`` weights of a
tensor, ``F`` features, ``H`` hidden units, ``D`` numbers of the small net.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kingpost.assembly import Assembly
from kingpost.errors import RecipeError
from kingpost.files import write_atomically
from kingpost.option import checked
from kingpost.source import existing_file
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule, decay

MEMORIES = (0.5, 0.9, 0.99)  # of the momenta; the second is Adam's
SQUARE_MEMORY, EPS = 0.999, 1e-8
TIMES = (3, 10, 30, 100, 300, 1000, 3000, 10000)  # steps
FEATURES = 2 * len(MEMORIES) + 6 + len(TIMES)
HIDDEN = 8
BASE_RATE = 1e-3
SMALL = 1e-3  # biases start at zero, and weights do not differ below this
FORMAT = 1
BUNDLED = Path(__file__).with_name("learned.safetensors")


def sizes(hidden: int = HIDDEN) -> list[tuple[int, int]]:
    """Inputs and outputs of the small net's three layers."""
    return [(FEATURES, hidden), (hidden, hidden), (hidden, 2)]


def numbers(hidden: int = HIDDEN) -> int:
    """How many numbers the small net has.

    >>> numbers()
    258
    """
    return sum(inputs * outputs + outputs for inputs, outputs in sizes(hidden))


def fresh(generator: torch.Generator, hidden: int = HIDDEN) -> Tensor:
    """A small net that leaves Adam's step as it is, since its last layer is zero, ``(D,)``."""
    parts = []
    for index, (inputs, outputs) in enumerate(sizes(hidden)):
        scale = 0.0 if index == 2 else (2 / inputs) ** 0.5
        parts += [torch.randn(inputs * outputs, generator=generator) * scale, torch.zeros(outputs)]
    return torch.cat(parts)


def layers(theta: Tensor, hidden: int = HIDDEN) -> Iterator[tuple[Tensor, Tensor]]:
    """Matrices ``(..., inputs, outputs)`` and biases ``(..., 1, outputs)`` from the numbers ``(..., D)``."""
    start = 0
    for inputs, outputs in sizes(hidden):
        stop = start + inputs * outputs
        matrix, bias = theta[..., start:stop], theta[..., stop : stop + outputs]
        yield matrix.reshape(*theta.shape[:-1], inputs, outputs), bias[..., None, :]
        start = stop + outputs


def moved_moments(g: Tensor, momenta: Sequence[Tensor], square: Tensor) -> None:
    """Count a gradient in the running means of it, at several memories, and of its square; in place."""
    for momentum, memory in zip(momenta, MEMORIES, strict=True):
        momentum.lerp_(g, 1 - memory)
    square.mul_(SQUARE_MEMORY).addcmul_(g, g, value=1 - SQUARE_MEMORY)


def features(p: Tensor, g: Tensor, momenta: Sequence[Tensor], square: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """What the small net sees of each weight, ``(..., n, F)``, and Adam's direction, ``(..., n)``.

    The features are the weight, the gradient and the momenta (each over its root mean square in the tensor); gradient
    and momenta over the root of the second moment; the logarithm of that root, less its mean; how large the tensor is,
    and how large its weights are; and the time.

    Args:
        p: weights, ``(..., n)``.
        g: their gradient.
        momenta: running means of it, this gradient included.
        square: running mean of its square, likewise.
        step: number of the step, from 1.
    """
    means = [m / (1 - memory**step) for m, memory in zip(momenta, MEMORIES, strict=True)]
    root = (square / (1 - SQUARE_MEMORY**step)).sqrt() + EPS
    ratios = [x / root for x in (g, *means)]
    log = root.log()
    by_size = [x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-20) for x in (p, g, *means)]
    rms = (p.square().mean(-1, keepdim=True) + SMALL**2).sqrt()
    of_tensor = [torch.full_like(p, math.log(p.shape[-1]) / 8), (rms.log() / 2 + 1).expand_as(p)]
    seen = [*by_size, *(ratio.clamp(-10, 10) for ratio in ratios), (log - log.mean(-1, keepdim=True)) / 4, *of_tensor]
    clock = torch.tensor([step / time - 1 for time in TIMES], dtype=p.dtype, device=p.device).tanh()
    stacked = torch.stack(seen, -1)
    return torch.cat([stacked, clock.expand(*stacked.shape[:-1], -1)], -1), ratios[1 + MEMORIES.index(0.9)]


def moves(seen: Tensor, adam: Tensor, theta: Tensor, hidden: int = HIDDEN) -> Tensor:
    """By how much each weight goes down at ``lr = 1``: ``0.001 * exp(a) * (adam + d)``, ``(..., n)``.

    ``a`` and ``d`` are the small net's outputs; with zeros there, this is Adam at a rate of 0.001.
    """
    x = seen
    for index, (matrix, bias) in enumerate(layers(theta, hidden)):
        x = x @ matrix + bias
        x = x.relu() if index < 2 else x
    return BASE_RATE * x[..., 0].clamp(-7, 7).exp() * (adam + x[..., 1])


class LearnedRule(Rule):
    """The learned optimizer as torch wants it.

    Args:
        groups: of parameters.
        lr: factor on every move.
        theta: numbers of the small net.
        hidden: its units.
    """

    def __init__(self, groups: list[Group], lr: float, theta: Tensor, hidden: int = HIDDEN) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.theta, self.hidden = theta, hidden

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """Each tensor by itself: the features are relative to the tensor."""
        steps = self.counted(params)
        names = [f"momentum_{memory}" for memory in MEMORIES]
        *momenta, squares = self.kept(params, *names, "square")
        decay(params, group)
        for p, g, step, square, *ms in zip(params, grads, steps, squares, *momenta, strict=True):
            moved_moments(g, ms, square)
            flat = [x.reshape(-1) for x in (p, g, square, *ms)]
            seen, adam = features(flat[0], flat[1], flat[3:], flat[2], step)
            down = moves(seen, adam, self.theta.to(p), self.hidden)
            p.sub_(down.view_as(p), alpha=group["lr"])


def save_learned(path: Path, theta: Tensor, about: dict[str, Any]) -> None:
    """Write the small net's numbers, and as JSON what is known of its training."""
    metadata = {"kingpost": json.dumps({"format": FORMAT, "features": FEATURES, **about})}
    write_atomically(path, lambda temporary: save_file({"theta": theta.contiguous()}, temporary, metadata=metadata))


def load_learned(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """The small net's numbers, and what is known of its training.

    Raises:
        RecipeError: the file is none of a learned optimizer, or of another version.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # torch's own reader does not work inside a plan
            about = json.loads((file.metadata() or {})["kingpost"])
            theta = torch.tensor(file.get_tensor("theta"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise RecipeError(
            f"{path} holds no learned optimizer ({error})", mend="make one with: kingpost learn-optimizer"
        ) from error
    if (about["format"], about["features"]) != (FORMAT, FEATURES):
        raise RecipeError(f"{path} is of another version of kingpost", mend="make one with: kingpost learn-optimizer")
    return theta, about


@checked
class Learned(OptimizerOption):
    """Steps of ``lr * 0.001 * exp(a) * (m / sqrt(v) + d)``, with a and d from a small meta-trained net for each weight.

    The net sees the weight, its gradient, momenta at three memories, the second moment and the step; with zero outputs
    it is Adam at 0.001. ``kingpost learn-optimizer`` trains one; without a file, the one that comes with kingpost.
    Helps where there is no time to tune a rate, on tasks like those that it has seen: small nets on small data.
    Fails on what is far from them (long runs, large nets), and costs several times Adam's time and memory: four numbers
    a weight are kept, and twenty are computed. Measured: benchmarks/results/learned-optimizer.md.
    Source: Metz et al., arXiv 2009.11243 and arXiv 2203.11860; the step around Adam's from Harrison, Metz and
    Sohl-Dickstein, arXiv 2209.11208.
    """

    lr: Annotated[float, Gt(0)] = 1.0
    """Factor on every step; 1 is what was learned."""
    weights: str | None = None
    """File with the small net, as ``kingpost learn-optimizer`` writes it; null takes kingpost's own."""

    example: ClassVar[dict[str, Any]] = {}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        path = existing_file(self.weights, where="optimizer.weights") if self.weights else BUNDLED
        try:
            theta, about = load_learned(path)
        except RecipeError as error:
            raise error.under("optimizer.weights") from error
        return LearnedRule(self.groups(model), self.lr, theta, about["hidden"])

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer."""
        return assembly.with_(optimizer=self.make)
