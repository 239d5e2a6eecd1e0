"""What the speed run's contenders share: pictures, the default network, clock, judge. Plain PyTorch."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # several libraries load it when they first need it; imports are on nobody's clock
from torch import Tensor, nn

LEARNING_RATE = 1e-3
BATCH_SIZE = 128
CLASSES = 10
HELD_OUT = 10_000

Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, on what, and for how long."""

    seed: int
    """Of the initial weights and the order of the samples."""
    threads: int
    """Threads of one operation in torch."""
    epochs: int
    """Most passes over the training samples; a program without a length of its own stops at ``stop`` before."""
    stop: float
    """Accuracy at which such a program stops."""
    device: str
    """Where torch works: cpu, cuda, ..."""
    judge_on: str
    """``test``, trained on all 60,000; or ``validation``, trained on 50,000 and judged on the other 10,000."""
    recipe: str
    """For kingpost: changes of the recipe, as JSON."""


@dataclass
class Clock:
    """Seconds of training; it stands still while the model is judged, and keeps each verdict."""

    job: Job
    judged: Samples
    wall: float = 0.0
    cpu: float = 0.0
    running: bool = False
    verdicts: list[dict[str, float]] = field(default_factory=list)

    def go(self) -> None:
        """Start, or go on."""
        self.running, self._wall, self._cpu = True, time.perf_counter(), time.process_time()

    def halt(self) -> None:
        """Stand still."""
        if self.running:
            synchronise(self.job.device)
            self.wall += time.perf_counter() - self._wall
            self.cpu += time.process_time() - self._cpu
            self.running = False

    def judge(self, predict: Callable[[Tensor], Tensor], epoch: int) -> bool:
        """Note the accuracy after an epoch, off the clock; whether the program may stop.

        Args:
            predict: images ``(B, 1, 28, 28)`` to scores ``(B, 10)``, in eval mode.
            epoch: passes over the training samples so far.
        """
        self.halt()
        images, labels = self.judged
        with torch.no_grad():
            right = sum(
                int((predict(x).argmax(1) == y).sum())
                for x, y in zip(images.split(1000), labels.split(1000), strict=True)
            )
        accuracy = right / len(labels)
        self.note(epoch, accuracy)
        self.go()
        return accuracy >= self.job.stop

    def note(self, epoch: int, accuracy: float) -> None:
        """Keep a verdict, at the time that stands on the clock."""
        self.verdicts.append({"epoch": epoch, "seconds": self.wall, "cpu_seconds": self.cpu, "accuracy": accuracy})


def synchronise(device: str) -> None:
    """Wait until an accelerator has done all it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()


def load(job: Job) -> tuple[Samples, Samples]:
    """Training samples and those to be judged: standardised images ``(N, 1, 28, 28)`` and labels ``(N,)``."""
    train = _pair("train")
    if job.judge_on == "test":
        train, judged = train, _pair("t10k")
    else:
        order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))
        out, kept = order[:HELD_OUT], order[HELD_OUT:]
        train, judged = (train[0][kept], train[1][kept]), (train[0][out], train[1][out])
    mean, deviation = train[0].mean(), train[0].std()
    scaled = [((images - mean) / deviation, labels) for images, labels in (train, judged)]
    return scaled[0], scaled[1]


def _pair(part: str) -> Samples:
    folder = Path(os.environ["KINGPOST_DATA"]) / "fashion_mnist"
    images = _read(folder / f"{part}-images-idx3-ubyte", header_bytes=16).reshape(-1, 1, 28, 28)
    labels = _read(folder / f"{part}-labels-idx1-ubyte", header_bytes=8)
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


def _read(path: Path, header_bytes: int) -> np.ndarray:
    raw = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
    return np.frombuffer(raw, np.uint8, offset=header_bytes)


def two_convolutions(*_: object) -> nn.Module:
    """The network of the default programs, at torch's own starting weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, CLASSES),
    )  # fmt: skip


def evaluating(net: nn.Module, device: str) -> Callable[[Tensor], Tensor]:
    """A net's scores in eval mode; it is left in the mode that it had."""

    def predict(images: Tensor) -> Tensor:
        mode = net.training
        net.eval()
        scores: Tensor = net(images.to(device)).cpu()
        net.train(mode)
        return scores

    return predict


def main(train: Callable[[Job, Samples, Clock], None], note: str) -> None:
    """Run one contender as a program that prints one line of JSON."""
    parser = argparse.ArgumentParser(description="Run one contender once and print one line of JSON.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--stop", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--judge-on", choices=("test", "validation"), default="validation")
    parser.add_argument("--recipe", default="[]")
    job = Job(**vars(parser.parse_args()))
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    samples, judged = load(job)
    clock = Clock(job, judged)
    train(job, samples, clock)
    if torch.get_num_threads() != job.threads:
        raise RuntimeError(f"{torch.get_num_threads()} threads, {job.threads} wanted")
    versions = {"torch": torch.__version__}
    print(json.dumps({"status": "ok", **asdict(job), "verdicts": clock.verdicts, "versions": versions, "note": note}))
