"""Meta-training of the learned optimizer by persistent evolution strategies.

An inner problem is unrolled a window of K steps at a time. In each window every pair of nets is trained by the small
net theta + e and theta - e, with a new e. What a window costs depends on all the e since the problem began, so the
gradient of the mean cost is estimated with their sum, ``mean (L+ - L-) (e_1 + ... + e_now) / (2 sigma^2)``: unbiased
for the smoothed cost of the whole problem, whereas a plain window sees only its own e.

Legend of shapes: ``N`` pairs, ``D`` numbers of the small net.
Source: Vicol, Metz and Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent
Evolution Strategies", arXiv 2112.13835.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kingpost import seeds
from kingpost.errors import RunError
from kingpost.train import checkpoint
from kingpost.train.guards import StopRequest, stop_signals
from kingpost.train.optimise.learned import HIDDEN, MEMORIES, features, fresh, moved_moments, moves, save_learned
from kingpost.train.optimise.learned_tasks import Task, draw_task
from kingpost.train.progress import Display

PAIRS, WINDOW, PROBLEMS = 4, 10, 4  # nets are trained in pairs; steps of a window; inner problems at a time
SIGMA, RATE, MOST_NORM, AVERAGE = 0.05, 5e-3, 1.0, 0.98
WORST = 3.0  # costs more than three times a guess count as this: a diverged net says no more
SAVE_EVERY_SECONDS, CURVE_EVERY = 20.0, 25


def pes_gradient(plus_n: Tensor, minus_n: Tensor, noise_sum_nd: Tensor, sigma: float) -> Tensor:
    """The estimate of one window, ``(D,)``.

    Args:
        plus_n: cost of the window under ``theta + e``.
        minus_n: under ``theta - e``.
        noise_sum_nd: all ``e`` since the inner problem began, this window's included, added up.
        sigma: standard deviation of the ``e``.
    """
    return ((plus_n - minus_n)[:, None] * noise_sum_nd).mean(0) / (2 * sigma**2)


class Problem:
    """One inner problem under way, for all pairs; when it ends, the next one begins.

    Args:
        seed: of the meta-training.
        slot: number among those that are under way.
    """

    def __init__(self, seed: int, slot: int) -> None:
        self.seed, self.slot, self.episode = seed, slot, 0
        self._begin()

    def _begin(self) -> None:
        self.task: Task = draw_task(self.seed, self.slot, self.episode)
        start = self.task.start(PAIRS, seeds.generator(self.seed, self.slot, self.episode, "start"))
        self.parts = [part.repeat(2, 1) for part in start]  # both nets of a pair start alike
        self.moments = [[torch.zeros_like(part) for part in self.parts] for _ in range(len(MEMORIES) + 1)]
        self.noise_sum = torch.zeros(PAIRS, len(fresh(torch.Generator())))
        self.step = 0

    def window(self, theta: Tensor, noise: Tensor) -> tuple[Tensor, float]:
        """Go on by a window; returns the gradient of its cost ``(D,)``, and the mean cost."""
        if self.step >= self.task.steps:
            self.episode += 1
            self._begin()
        self.noise_sum += noise
        costs = self._unrolled(torch.cat([theta + noise, theta - noise]))
        plus, minus = costs.chunk(2)
        return pes_gradient(plus, minus, self.noise_sum, SIGMA), float(costs.mean())

    def _unrolled(self, thetas: Tensor) -> Tensor:
        """The mean cost of each net over the next steps, ``(2 N,)``."""
        total = torch.zeros(2 * PAIRS)
        for _ in range(WINDOW):
            self.step += 1
            generator = seeds.generator(self.seed, self.slot, self.episode, "batch", self.step)
            x, y = (drawn.repeat(2, *[1] * (drawn.ndim - 1)) for drawn in self.task.draw(PAIRS, generator))
            leaves = [part.requires_grad_() for part in self.parts]
            losses = self.task.losses(leaves, x, y)
            grads = torch.autograd.grad(losses.sum(), leaves)  # the nets know nothing of one another
            total += losses.detach().nan_to_num(WORST, WORST).clamp(max=WORST)
            self.parts = [part.detach() for part in leaves]
            self._move(thetas, grads)
        return total / WINDOW

    @torch.no_grad()
    def _move(self, thetas: Tensor, grads: tuple[Tensor, ...]) -> None:
        *momenta, squares = self.moments
        for index, (p, g) in enumerate(zip(self.parts, grads, strict=True)):
            own = [momentum[index] for momentum in momenta]
            moved_moments(g, own, squares[index])
            seen, adam = features(p, g, own, squares[index], self.step)
            p.sub_(moves(seen, adam, thetas))

    def state_dict(self) -> dict[str, Any]:
        """All that does not follow from the seed."""
        return {
            "episode": self.episode,
            "step": self.step,
            "parts": self.parts,
            "moments": self.moments,
            "noise_sum": self.noise_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.episode = state["episode"]
        self._begin()
        self.step, self.parts, self.moments = state["step"], state["parts"], state["moments"]
        self.noise_sum = state["noise_sum"]


class MetaTraining:
    """The small net in training, with all that a restart needs.

    Args:
        seed: of all draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.steps, self.seconds, self.curve = seed, 0, 0.0, list[list[float]]()
        self.theta = fresh(seeds.generator(seed, "small net"))
        self.average = self.theta.clone()
        self.optimizer = torch.optim.Adam([self.theta], lr=RATE)
        self.problems = [Problem(seed, slot) for slot in range(PROBLEMS)]
        self.recent = list[float]()

    def step(self) -> float:
        """One move of the small net, from a window of each problem; returns their mean cost."""
        gradients, costs = [], []
        for problem in self.problems:
            generator = seeds.generator(self.seed, "noise", problem.slot, self.steps)
            noise = SIGMA * torch.randn(PAIRS, len(self.theta), generator=generator)
            gradient, cost = problem.window(self.theta, noise)
            gradients.append(gradient)
            costs.append(cost)
        mean = torch.stack(gradients).mean(0)
        self.theta.grad = mean * (MOST_NORM / mean.norm().clamp(min=MOST_NORM))
        self.optimizer.step()
        self.steps += 1
        # A plain mean at first, so that the start does not linger.
        self.average.lerp_(self.theta, max(1 - AVERAGE, 1 / self.steps))
        self.recent = [*self.recent, sum(costs) / len(costs)][-CURVE_EVERY:]
        if self.steps % CURVE_EVERY == 0:
            self.curve.append([self.steps, sum(self.recent) / len(self.recent)])
        return self.recent[-1]

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        plain = {key: getattr(self, key) for key in ("seed", "steps", "seconds", "curve", "recent")}
        parts = [problem.state_dict() for problem in self.problems]
        return {**plain, "theta": self.theta, "average": self.average, "problems": parts,
                "optimizer": self.optimizer.state_dict()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for key in ("steps", "seconds", "curve", "recent"):
            setattr(self, key, state[key])
        self.theta.copy_(state["theta"])
        self.average.copy_(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for problem, own in zip(self.problems, state["problems"], strict=True):
            problem.load_state_dict(own)


@dataclass(frozen=True)
class Learning:
    """How far a meta-training has come.

    Args:
        path: of the small net.
        steps: meta-steps done.
        minutes: spent.
        cost: mean training loss over whole inner problems, lately, as a part of that of a guess.
        finished: whether the budget is spent; if not, it was asked to stop.
    """

    path: str
    steps: int
    minutes: float
    cost: float
    finished: bool

    def to_value(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def __str__(self) -> str:
        end = "" if self.finished else "; stopped, the same command goes on"
        return f"{self.path}: {self.steps} meta-steps, {self.minutes:.1f} minutes, cost {self.cost:.3f} of a guess{end}"


def learn_optimizer(
    output: Path | str,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    quiet: bool = False,
) -> Learning:
    """Meta-train an optimizer, and write it to a file that ``optimizer: {name: learned, weights: FILE}`` takes.

    What a restart needs is beside it in ``FILE.training``; the same call goes on from there, to the same bits.

    Args:
        output: the file, ``.safetensors``.
        minutes: how long in all; or
        steps: how many meta-steps in all.
        seed: of all draws; the result of a number of steps depends on nothing else.
        threads: of the processor.
        quiet: no progress on standard error.

    Raises:
        RunError: no budget or two, or the folder is of a training with another seed.
    """
    output = Path(output)
    if (minutes is None) == (steps is None):
        raise RunError("give a budget: either minutes or steps, for example --minutes 10")
    folder = output.with_name(output.name + ".training")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        training = MetaTraining(seed)
        state = checkpoint.load_newest(folder, torch.device("cpu"), lambda path, why: None)
        if state and state["seed"] != seed:
            raise RunError(f"{folder} is of seed {state['seed']}, not {seed}; use another file, or remove the folder")
        if state:
            training.load_state_dict(state)
        with Display(output.name, quiet) as display, stop_signals() as request:
            _train(training, minutes, steps, output, folder, display, request)
    finally:
        torch.set_num_threads(before)
    cost = sum(training.recent) / max(1, len(training.recent))
    return Learning(str(output), training.steps, training.seconds / 60, cost, not request.signal)


def _train(
    training: MetaTraining,
    minutes: float | None,
    steps: int | None,
    output: Path,
    folder: Path,
    display: Display,
    request: StopRequest,
) -> None:
    """Go on until the budget is spent or somebody asks to stop; save now and then, and at the end."""
    earlier, started = training.seconds, time.monotonic()
    saved = shown = started
    while not request.signal:
        training.seconds = earlier + time.monotonic() - started
        spent = training.seconds / 60 / minutes if minutes is not None else training.steps / (steps or 1)
        if spent >= 1:
            break
        training.step()
        now = time.monotonic()
        if now - shown > 10:
            cost, shown = sum(training.recent) / len(training.recent), now
            display.say(f"{spent:4.0%}  meta-step {training.steps}  cost {cost:.3f} of a guess")
        if now - saved > SAVE_EVERY_SECONDS:
            checkpoint.save(folder, training.steps, 0, training.state_dict(), keep=2)
            saved = now
    training.seconds = earlier + time.monotonic() - started
    checkpoint.save(folder, training.steps, 0, training.state_dict(), keep=2)
    about = {key: getattr(training, key) for key in ("seed", "steps", "curve")}
    settings = {"pairs": PAIRS, "window": WINDOW, "problems": PROBLEMS, "sigma": SIGMA, "rate": RATE}
    save_learned(output, training.average, {"hidden": HIDDEN, **about, "settings": settings})
