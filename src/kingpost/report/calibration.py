"""The reliability diagram of a run that was calibrated."""

from __future__ import annotations

import json

import numpy as np

from kingpost.report import figures
from kingpost.report.curves import Drawings
from kingpost.run import Run


def draw_calibration(run: Run) -> Drawings | None:
    """How sure the net is, and how right, from ``calibration.json``; None if the run was not calibrated."""
    path = run.folder / "calibration.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    part = next(part for part in ("test", "validation") if part in found["bins"])
    before, after = (
        np.array([[one[key] for key in ("confidence", "right", "samples")] for one in found["bins"][part][when]])
        for when in ("before", "after")
    )
    drawings = Drawings()
    errors = [found["figures"][part][when]["calibration_error"] for when in ("before", "after")]
    losses = [found["figures"][part][when]["nll_nats"] for when in ("before", "after")]
    drawings.add(
        figures.reliability(before, after, found["temperature"]),
        f"On the {part} part, {found['weights']} weights; larger marks stand for more samples.",
        f"Temperature {found['temperature']:.4g}, fitted on validation:",
        f"expected calibration error {errors[0]:.4f} without and {errors[1]:.4f} with it,",
        f"negative log likelihood {losses[0]:.4f} and {losses[1]:.4f} nats.",
    )
    return drawings
