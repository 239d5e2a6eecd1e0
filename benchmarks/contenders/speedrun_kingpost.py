"""The speed run's recipe, trained by kingpost."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

import kingpost as kp
from contenders.speedrun_common import CLASSES, Clock, Job, Samples, main
from kingpost.train.tasks import Classification  # noqa: F401  # imports are on nobody's clock

RECIPE = Path(__file__).parents[2] / "recipes" / "speedrun-fashion.yaml"


def train(job: Job, samples: Samples, clock: Clock) -> None:
    """Train the recipe with ``job.recipe``'s changes, on arrays in memory; judged once, at the end."""
    recipe = kp.Recipe.load(RECIPE).with_(
        data=kp.Arrays(inputs=samples[0], targets=samples[1], validation=0.0, test=clock.judged),
        layout=kp.DataParallel(device=job.device, threads=job.threads),
        save=kp.Save(report=False),
        seed=job.seed,
    )
    recipe = recipe.patched(*json.loads(job.recipe))
    steps: list[tuple[float, float]] = []

    def lap(*_: object) -> None:
        clock.halt()  # the last step's end is the end of training: what follows is judging and writing files
        steps.append((clock.wall, clock.cpu))
        clock.go()

    handle = register_optimizer_step_post_hook(lap)
    with tempfile.TemporaryDirectory() as folder:
        clock.go()
        summary = kp.train(recipe, root=folder, quiet=True).summary
        clock.halt()
    handle.remove()
    if len(steps) != summary["step"] or len(samples[1].unique()) != CLASSES:
        raise RuntimeError(f"{len(steps)} steps counted, kingpost says {summary['step']}")
    clock.wall, clock.cpu = steps[-1]
    clock.note(summary["epoch"], summary["test"]["accuracy"])


if __name__ == "__main__":
    main(train, note="the recipe of recipes/speedrun-fashion.yaml with the changes of the target; checkpoints on")
