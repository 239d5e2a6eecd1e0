"""The training loop. Read `fit`; everything it calls is one short thought, here or next door."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, Loss, Step
from kingpost.finding import Finding
from kingpost.recipe import Recipe
from kingpost.run import Row, Run
from kingpost.source import Dataset, Order
from kingpost.train import checkpoint
from kingpost.train.environment import peak_memory_mebibytes
from kingpost.train.evaluate import evaluate, shard
from kingpost.train.guards import (
    Statistics,
    StopRequest,
    explain_non_finite,
    gradient_norm,
    take_gradient,
)
from kingpost.train.history import StepLog
from kingpost.train.parallel import barrier
from kingpost.train.progress import Display

AGREE_EVERY_STEPS = 20  # how often several processes ask one another whether to stop


def fit(job: Job, request: StopRequest) -> None:
    """Train until the budget is spent, a technique says stop, or somebody asks to."""
    a, at, model = job.assembly, job.at, job.assembly.model
    seed, device, layout = a.setting.seed, a.setting.device, a.layout
    while not job.is_done():
        model.train()
        for batch in job.rest_of_epoch():
            step = Step(index=at.step, seed=seed, rank=layout.rank, ranks=layout.ranks)
            seeds.seed_default_generators(seeds.derive(seed, "forward", at.step, layout.rank), device)
            batch = a.batch(batch if batch.targets.device == device else batch.to(device), step)
            batch, step.items = job.own_part(batch)
            rate = job.set_learning_rates()

            with job.statistics.kept_on_error():
                loss, pieces = take_gradient(a, job.replica, batch, step, job.statistics)
                norm = gradient_norm(job.gradients())
                if loss.finite and not math.isfinite(norm):
                    raise explain_non_finite(a, batch, step)
            if loss.finite:
                a.update(model, job.optimizer, step)
            job.clear_gradients()

            job.record(step, batch.total, loss, norm, rate)
            if pieces:
                job.note_pieces(step, pieces)
            if job.is_done():
                break
            if job.must_stop(request):
                return
        job.end_epoch()


@dataclass
class Position:
    """Where a run stands: all that changes from step to step besides weights and technique state."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    items: float = 0.0
    samples: int = 0
    epoch_started_seconds: float = 0.0
    stalled: bool = False
    best_score: float = -math.inf
    best: Row = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass
class Job:
    """Everything that :func:`fit` works with, made ready by :func:`kingpost.train.train.prepare`."""

    run: Run
    recipe: Recipe
    dataset: Dataset
    assembly: Assembly
    optimizer: torch.optim.Optimizer
    replica: nn.Module
    base_rates: list[float]
    display: Display
    first: bool
    at: Position = field(default_factory=Position)
    findings: list[Finding] = field(default_factory=list)
    log: StepLog | None = None
    resumed_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        model = self.assembly.model
        self.statistics = Statistics(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]  # walking the modules takes its time

    def is_done(self) -> bool:
        """Whether the budget is spent or a technique said stop."""
        at, budget = self.at, self.recipe.budget
        if at.stalled:
            return True
        if budget.epochs is not None:
            return at.epoch >= budget.epochs
        return at.step >= budget.steps if budget.steps is not None else self._progress() >= 1

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches of this epoch that are not yet done."""
        at, layout = self.at, self.assembly.layout
        order = Order(
            batch_size=self.recipe.batch_size,
            shuffle=True,
            seed=self.recipe.seed,
            epoch=at.epoch,
            start=at.batch,
            rank=layout.rank,
            ranks=layout.ranks,
        )
        return self.dataset.splits["train"].batches(self.assembly.order(order))

    def own_part(self, batch: Batch) -> tuple[Batch, int | float]:
        """The rows of the batch that are this process's, and the number of items in the whole of it."""
        layout, task = self.assembly.layout, self.assembly.setting.task
        items = task.items(batch.targets)
        if layout.ranks == 1:
            return batch, items
        if self.dataset.splits["train"].sharded:
            return batch, layout.total(items)
        return shard(batch, layout), items

    def set_learning_rates(self) -> float:
        """Apply the schedule to every parameter group; returns the first group's rate."""
        factor = self.assembly.schedule(self.at.step, self._total_steps())
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        return self.base_rates[0] * factor

    def gradients(self) -> list[Tensor]:
        """The gradients that this step has filled."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def clear_gradients(self) -> None:
        """Forget them, so that the next step starts from nothing."""
        for p in self.parameters:
            p.grad = None

    def record(self, step: Step, samples: int, loss: Loss, norm: float, rate: float) -> None:
        """Count the step, and write it down."""
        at, layout = self.at, self.assembly.layout
        data = loss.data.item() if layout.ranks == 1 else layout.total(loss.data.item())
        mean = data / step.items + float(loss.penalty)
        at.loss_sum, at.items = at.loss_sum + mean * step.items, at.items + step.items
        at.step, at.batch = at.step + 1, at.batch + 1
        at.samples += samples
        if not self.first:
            return
        assert self.log is not None
        self.log.add((at.step, at.epoch + 1, mean, rate, norm), step.log)
        if self.display.due():
            seconds, progress = self._seconds(), self._progress()
            speed = at.samples / max(1e-9, seconds - at.epoch_started_seconds)
            self.display.step(progress, at.epoch, at.loss_sum / at.items, speed, seconds * (1 / progress - 1))

    def note_pieces(self, step: Step, pieces: int) -> None:
        """Say that memory ran out, and what was done about it."""
        finding = Finding(
            symptom=f"memory ran out; from here on each batch is worked through in {pieces} pieces",
            severity="note",
            cause="the batch does not fit the memory at once; the sum of gradients stays the same, except for layers "
            "that look across the batch (batch norm) or draw at random (dropout)",
            place=f"step {step.index}",
            evidence={"pieces": pieces, "batch_size_samples": self.recipe.batch_size},
        )
        self.findings.append(finding)
        self.display.say(str(finding))

    def must_stop(self, request: StopRequest) -> bool:
        """Save a checkpoint if one is due; whether somebody asked to stop, on any process."""
        ranks, save = self.assembly.layout.ranks, self.recipe.save
        asked = bool(request.signal)
        if ranks > 1:
            agree = self.at.step % AGREE_EVERY_STEPS == 0
            asked = agree and self.assembly.layout.total(float(asked)) > 0
        due = save.every_steps is not None and self.at.step % save.every_steps == 0
        overdue = save.every_seconds is not None and time.monotonic() - self.saved_at >= save.every_seconds
        if asked:
            self.save()
            barrier()  # all processes end together, or the first would be killed while it writes
        elif (due or overdue) and self.first:  # the others wait for it in their next exchange of gradients
            self.save()
        return asked

    def end_epoch(self) -> None:
        """Judge the model, keep its weights, write a row, and save."""
        at, save = self.at, self.recipe.save
        mean = at.loss_sum / at.items
        seconds = self._seconds()
        row: Row = {
            "epoch": at.epoch + 1,
            "step": at.step,
            f"train_loss_{self.assembly.setting.task.unit}": mean,
        }
        speed = at.samples / max(1e-9, seconds - at.epoch_started_seconds)
        at.epoch, at.batch, at.loss_sum, at.items, at.samples = at.epoch + 1, 0, 0.0, 0.0, 0
        if at.epoch % save.evaluate_every_epochs == 0 or self.is_done():
            row |= self._judge(row)
        row |= {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": self._seconds(),
            "samples_per_second": speed,
            "peak_memory_mebibytes": peak_memory_mebibytes(self.assembly.setting.device),
        }
        at.rows.append(row)
        at.epoch_started_seconds = self._seconds()
        if self.first:
            self.display.row(row)
            self.run.write_results(at.rows)
        self.save()

    def _judge(self, row: Row) -> Row:
        """Scores on the validation part (with averaged weights, if a technique keeps such); keeps the weights."""
        at, a = self.at, self.assembly
        with a.evaluate(a.model):
            figures: dict[str, float] = {}
            if "validation" in self.dataset.splits:
                figures = self.judge("validation")
                score = a.setting.task.score(figures)
            else:  # without a validation part the last weights count as the best
                score = float(at.epoch)
            if undefined := [key for key, value in figures.items() if not math.isfinite(value)]:
                self._note_undefined(row, undefined)
            score = score if math.isfinite(score) else -math.inf
            at.scores.append(score)
            better = self._keep_best(score, {"epoch": row["epoch"]}, figures)
            if self.first:
                folder = self.run.folder / "weights"
                checkpoint.save_weights(folder / "last.safetensors", a.model)
                if better:
                    checkpoint.save_weights(folder / "best.safetensors", a.model)
        at.stalled = bool(figures) and a.stop(at.scores)
        unit = a.setting.task.unit
        return {f"validation_{key}" + (f"_{unit}" if key == "loss" else ""): value for key, value in figures.items()}

    def _keep_best(self, score: float, where: Row, figures: Mapping[str, float]) -> bool:
        """Whether this is the best score so far; of equal scores, the one with the lower loss."""
        at = self.at
        before = (at.best_score, -at.best.get("validation_loss", 0.0))
        if at.best and (score, -figures.get("loss", 0.0)) <= before:
            return False
        at.best_score = score
        at.best = where | {f"validation_{key}": value for key, value in figures.items()}
        return True

    def _note_undefined(self, row: Row, figures: list[str]) -> None:
        """Say once that figures of the validation part are NaN or Inf."""
        symptom = f"not finite on the validation part: {', '.join(figures)}"
        if any(finding.symptom == symptom for finding in self.findings):
            return
        finding = Finding(
            symptom=symptom,
            severity="warning",
            cause="the training has diverged, or the metric is not defined on so few samples",
            place=f"epoch {row['epoch']}",
            evidence={"samples": len(self.dataset.splits["validation"])},
        )
        self.findings.append(finding)
        self.display.say(str(finding))

    def judge(self, part: str) -> dict[str, float]:
        """Loss and metrics of the weights now in the model, on one part of the data."""
        a, data = self.assembly, self.dataset
        size = 4 * self.recipe.batch_size  # no gradients, so more fits
        return evaluate(
            a.model,
            data.splits[part],
            a.setting.task,
            data.facts,
            data.fitted,
            size,
            a.setting.device,
            a.layout,
        )

    def save(self) -> None:
        """Write a checkpoint; in a run of several processes, only the first one does."""
        at = self.at
        at.seconds, self.resumed_at = self._seconds(), time.monotonic()
        self.saved_at = time.monotonic()
        if self.first:
            assert self.log is not None
            self.log.flush()
            self.run.write_findings(self.findings)
            checkpoint.save(self.run.folder / "checkpoints", at.step, at.epoch, self.state(), self.recipe.save.keep)
            self.run.set_status("running", epoch=at.epoch, step=at.step, seconds=at.seconds, best=at.best)

    def state(self) -> dict[str, Any]:
        """All that a restart needs."""
        assert self.log is not None
        return {
            "model": self.assembly.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "techniques": {name: part.state_dict() for name, part in self.assembly.state.items()},
            "position": dataclasses.asdict(self.at),
            "findings": [finding.to_value() for finding in self.findings],
            "log_rows": self.log.rows,
        }

    def load(self, state: dict[str, Any]) -> int:
        """Go on from a saved state; returns how many rows of the step history belong to it."""
        self.assembly.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, part in self.assembly.state.items():
            part.load_state_dict(state["techniques"][name])
        self.at = Position(**state["position"])
        self.findings = [Finding.from_value(value) for value in state["findings"]]
        return int(state["log_rows"])

    def _seconds(self) -> float:
        return self.at.seconds + time.monotonic() - self.resumed_at

    def _progress(self) -> float:
        """Part of the budget that is spent, 0..1."""
        budget, at = self.recipe.budget, self.at
        if budget.seconds is not None:
            return min(1.0, self._seconds() / budget.seconds)
        return max(1e-9, at.step / self._total_steps())

    def _total_steps(self) -> int:
        """Of the whole run; for a budget in seconds, estimated from the speed so far."""
        if self.recipe.budget.seconds is None:
            return self.assembly.setting.total_steps
        if (progress := self._progress()) < 0.01:  # too early to tell
            return max(self.at.step + 1, self.assembly.setting.total_steps)
        return max(self.at.step + 1, round(self.at.step / progress))
