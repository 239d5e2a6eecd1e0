"""Run by torchrun: trains every subject on two processes in one session. Argument: folder for the runs."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from contract.subjects import dtype_of, make, recipe_with, subjects
from kingpost.train.parallel import DataParallel, process_group
from kingpost.train.train import train


def main(folder: Path) -> None:
    with process_group(DataParallel(device="cpu", threads=1)):
        for kind, name in subjects():
            subject = make(kind, name)
            torch.set_default_dtype(getattr(torch, dtype_of(subject)))
            train(recipe_with(kind, subject, dtype_of(subject)), root=folder / f"{kind}-{name}", quiet=True)


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(Path(sys.argv[1]))
