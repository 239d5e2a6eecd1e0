"""What every contender shares: job, data, networks, clock. Plain PyTorch, nothing of kingpost."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")

LEARNING_RATE = 1e-3
CLASSES = 10
STEPS_TO_LEARN = 40  # in fewer, a sound run may end above the loss of another start (Keras draws its own)
SIGNAL = 0.1  # weight of the class's pattern in the noise: learnable, and not at once
BATCH_SIZE = {"mlp": 64, "cnn": 128}
# With overhead.py's default steps one epoch each, so that every timed window has one epoch's end.
SAMPLES = {"mlp": 60_000, "cnn": 19_200}


class NotRunnableError(Exception):
    """The contender cannot run here, for a reason that belongs in the table."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train and for how long."""

    workload: str
    """'mlp' or 'cnn'."""
    warmup_steps: int
    """Optimizer steps before the clock starts."""
    timed_steps: int
    """Optimizer steps on the clock."""
    threads: int
    """Threads of one operation in torch."""
    seed: int
    """Of the initial weights and the order of the samples; the data are always the same."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps, warm-up included."""
        return self.warmup_steps + self.timed_steps

    @property
    def batch_size(self) -> int:
        """Samples a step."""
        return BATCH_SIZE[self.workload]

    @property
    def epochs(self) -> int:
        """Epochs that hold all steps, and one to spare, as some libraries drop the last batch."""
        return 1 + math.ceil(self.total_steps * self.batch_size / SAMPLES[self.workload])


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a contender hands back, so that it can be checked."""

    predict: Callable[[Tensor], Tensor]
    """Images ``(B, 1, 28, 28)`` to scores ``(B, 10)``."""
    steps: int
    """Optimizer steps by the library's own count."""


class StepClock:
    """Seconds between the end of the last warm-up step and the end of the last timed step.

    So setting up and tearing down are outside, and everything that a library does once a step is inside.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.steps = 0
        self.when_done: Callable[[], None] | None = None
        self.marks: list[tuple[float, float]] = []

    def tick(self, *_: object) -> None:
        """Count one optimizer step, just done."""
        self.steps += 1
        if self.steps in (self.job.warmup_steps, self.job.total_steps):
            self.marks.append((time.perf_counter(), time.process_time()))
        if self.steps == self.job.total_steps and self.when_done is not None:
            self.when_done()

    def seconds(self) -> tuple[float, float]:
        """Wall seconds and processor seconds of the timed steps."""
        (wall, cpu), (wall_end, cpu_end) = self.marks
        return wall_end - wall, cpu_end - cpu


def make_data(job: Job) -> tuple[Tensor, Tensor]:
    """Standardised noise with a weak pattern per class: images ``(N, 1, 28, 28)`` and labels ``(N,)``."""
    generator = torch.Generator().manual_seed(0)
    samples = SAMPLES[job.workload]
    patterns = torch.randn(CLASSES, 1, 28, 28, generator=generator)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    images = torch.randn(samples, 1, 28, 28, generator=generator).add_(patterns[labels], alpha=SIGNAL)
    return images.sub_(images.mean()).div_(images.std()), labels


def make_net(job: Job) -> nn.Module:
    """The network with PyTorch's own initial weights, the same for every contender."""
    torch.manual_seed(job.seed)
    if job.workload == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 256), nn.ReLU(),
            nn.Linear(256, 128), nn.ReLU(),
            nn.Linear(128, CLASSES),
        )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, CLASSES),
    )  # fmt: skip


def first_steps(batches: Iterable[T], job: Job) -> Iterator[T]:
    """As many batches as the job has steps, passing over ``batches`` again and again."""
    return islice(chain.from_iterable(repeat(batches)), job.total_steps)


@torch.no_grad()
def mean_loss(predict: Callable[[Tensor], Tensor], job: Job) -> float:
    """Cross-entropy over the first 2048 samples."""
    images, labels = make_data(job)
    return nn.functional.cross_entropy(predict(images[:2048]), labels[:2048]).item()


def main(
    train: Callable[[Job, StepClock], Trained],
    *,
    libraries: tuple[str, ...] = (),
    torch_optimizer: bool = True,
    note: str = "",
) -> None:
    """Run one contender as a program that prints one line of JSON.

    Args:
        train: does the job's steps, ticking the clock after each one.
        libraries: distributions whose versions are reported; the first is the contender itself.
        torch_optimizer: the optimizer is one of ``torch.optim``, so that torch itself can tick the clock.
        note: how the contender differs from the others at its defaults.
    """
    job = _parse_job()
    with contextlib.redirect_stdout(sys.stderr):  # a chatty library must not spoil the line
        try:
            result = _measure(train, job, torch_optimizer=torch_optimizer)
        except NotRunnableError as reason:
            result = {"status": "not runnable", "reason": str(reason)}
        except ModuleNotFoundError as error:
            result = {"status": "not installed", "reason": str(error)}
    print(json.dumps({**asdict(job), **result, "versions": _versions(libraries), "note": note}))


def _measure(train: Callable[[Job, StepClock], Trained], job: Job, *, torch_optimizer: bool) -> dict[str, object]:
    torch.set_num_threads(job.threads)
    before = mean_loss(make_net(job), job)
    clock = StepClock(job)
    if torch_optimizer:
        register_optimizer_step_post_hook(clock.tick)
    trained = train(job, clock)
    _check(clock.steps == job.total_steps, f"{clock.steps} optimizer steps counted, {job.total_steps} wanted")
    _check(trained.steps == job.total_steps, f"the library counts {trained.steps}, {job.total_steps} wanted")
    _check(torch.get_num_threads() == job.threads, f"{torch.get_num_threads()} threads, {job.threads} wanted")
    after = mean_loss(trained.predict, job)
    _check(
        after < before or job.total_steps < STEPS_TO_LEARN,
        f"the loss did not fall: {before:.4f} to {after:.4f}",
    )
    wall, cpu = clock.seconds()
    return {"status": "ok", "seconds": wall, "cpu_seconds": cpu, "loss_before": before, "loss_after": after}


def _check(fine: bool, problem: str) -> None:
    # not `assert`: a benchmark run with python -O must not lose its checks
    if not fine:
        raise RuntimeError(problem)


def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (*libraries, "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {**found, "torch": torch.__version__}


def _parse_job() -> Job:
    parser = argparse.ArgumentParser(description="Run one contender once and print one line of JSON.")
    parser.add_argument("--workload", choices=sorted(BATCH_SIZE), default="mlp")
    parser.add_argument("--warmup-steps", type=int, default=50)
    parser.add_argument("--timed-steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return Job(**vars(parser.parse_args()))
