"""Small run folders made by hand, one for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kingpost.files import write_json
from kingpost.recipe import Recipe
from kingpost.run import Run
from report.pages import MakeRun, Page, ReadPage

METRICS = {
    "classification": "accuracy",
    "regression": "r2",
    "multi-label": "average_precision",
    "language-modelling": "token_accuracy",
}


@pytest.fixture
def read_page() -> ReadPage:
    """Parses a page, and fails if its tags are not balanced."""
    return Page


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run folder: ``make_run(task, classes=[...], judged=(predictions, targets, inputs))``."""

    def make(
        task: str = "classification",
        classes: list[str] | None = None,
        judged: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        steps: int = 30,
        fitted: dict[str, Any] | None = None,
        **recipe: object,
    ) -> Run:
        keys: dict[str, Any] = {"name": "fake", "data": "digits", "model": "mlp", **recipe}
        run = Run.create(Recipe(**keys), tmp_path)
        loss = "squared_error" if task == "regression" else "nats"
        metric = METRICS[task]
        run.write_results(
            [
                {
                    "epoch": epoch,
                    "step": 10 * epoch,
                    f"train_loss_{loss}": 1 / epoch,
                    f"validation_loss_{loss}": 1.5 / epoch,
                }
                | {
                    f"validation_{metric}": 1 - 0.5 / epoch,
                    "samples_per_second": 100.0,
                    "peak_memory_mebibytes": 9.5,
                }
                for epoch in range(1, 4)
            ]
        )
        rows = [f"{step},1,{1 / step},0.001,{2 / step}" for step in range(1, steps + 1)]
        (run.folder / "steps.csv").write_text("\n".join(["step,epoch,loss,learning_rate,gradient_norm", *rows]) + "\n")
        write_json(run.folder / "data.json", _facts(task, classes or [], fitted or {}))
        write_json(run.folder / "environment.json", {"device": "cpu", "packages": {"torch": "2"}, "git_commit": None})
        run.write_findings([])
        if judged:
            save_file(_judged(*judged), run.folder / "judged.safetensors", metadata={"part": "test"})
        best = {"epoch": 3, "validation_loss": 0.5, f"validation_{metric}": 0.8}
        run.set_status(
            "finished",
            epoch=3,
            step=30,
            seconds=12.5,
            best=best,
            test={"loss": 0.6, metric: 0.75},
            message="",
        )
        return run

    return make


def _judged(predictions: torch.Tensor, targets: torch.Tensor, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of ``judged.safetensors``, with made-up losses."""
    losses = torch.linspace(0, 1, len(targets))
    worst = losses.topk(min(32, len(targets))).indices
    named = {"predictions": predictions, "targets": targets, "losses": losses, "worst": worst}
    return {key: value.contiguous() for key, value in {**named, "worst_inputs": inputs[worst]}.items()}


def _facts(task: str, classes: list[str], fitted: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": task,
        "inputs": [{"shape": [4], "dtype": "torch.float32"}],
        "target_shape": [],
        "classes": classes,
        "vocabulary": 65 if task == "language-modelling" else 0,
        "features": [],
        "samples": {"train": 100, "validation": 20, "test": 40},
        "fingerprint_sha256": "ab" * 32,
        "fitted": fitted,
    }
