"""How many runs go on at a time on this machine."""

from __future__ import annotations

from kingpost.errors import RecipeError
from kingpost.prove.arms import Subject
from kingpost.prove.runner import cores
from kingpost.recipe import Recipe


def workers_for(subject: Subject, workers: int | None, threads: int) -> int:
    """How many runs go on at a time: as wished, or one for each accelerator, or as many as the cores have room for.

    Raises:
        RecipeError: the wish is below 1.
    """
    if callable(subject) and not isinstance(subject, Recipe):
        return 1
    if workers is not None:
        if workers < 1:
            raise RecipeError(f"got {workers}, expected 1 or more", path="workers")
        return workers
    ranks = 1
    if isinstance(subject, Recipe):
        if devices := devices_for(subject):
            return devices
        ranks = int(getattr(subject.layout, "data", 1))
    return max(1, len(cores()) // (threads * ranks))


def devices_for(recipe: Recipe) -> int:
    """The accelerators that runs of this recipe can be shared out to; 0 for the processor."""
    import torch

    device = getattr(recipe.layout, "device", "cpu")
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return 0
    return torch.cuda.device_count()
