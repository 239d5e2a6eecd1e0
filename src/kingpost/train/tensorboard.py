"""TensorBoard events, written from a run's history once it is over."""

from __future__ import annotations

import shutil

from kingpost.errors import MissingExtraError
from kingpost.run import Run


def write_events(run: Run) -> None:
    """Write the folder ``tensorboard`` of a run from ``steps.csv`` and ``results.csv``; one made earlier is replaced.

    Raises:
        MissingExtraError: the extra 'tensorboard' is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", extra="tensorboard", purpose="save.tensorboard") from error
    folder = run.folder / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for kind, rows in (("step", run.steps), ("epoch", run.results)):
            for row in rows:
                for column in row.keys() - {"step", "epoch"}:
                    writer.add_scalar(f"{kind}/{column}", row[column], row["step"])
