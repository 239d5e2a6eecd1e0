"""Data parallel: every process holds the whole model and takes its part of each batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from annotated_types import Ge
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kingpost.assembly import Assembly, Layout, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique

T = TypeVar("T")
LAUNCHED = "KINGPOST_LAUNCHED"


@checked
class DataParallel(Technique):
    """Replicas on ``data`` processes; each takes its rows of every batch, and gradients are averaged.

    The result is that of one process on the same batch, up to rounding. Fails to pay where a step is shorter than
    the exchange of all gradients. Source: Li et al., "PyTorch Distributed", VLDB 2020.
    """

    data: Annotated[int, Ge(1)] = 1
    """Number of processes, one device each."""
    device: str = "auto"
    """``auto`` (an accelerator if there is one, else cpu), or a torch device: cpu, cuda, cuda:1, mps, xpu."""

    threads: Annotated[int, Ge(1)] | None = None
    """Processor threads of each process; null leaves torch's choice. A small net is fastest with 1."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"layout"})
    neutral: ClassVar[dict[str, Any]] = {"data": 1}

    def __post_init__(self) -> None:
        self.torch_device(0)

    def torch_device(self, local_rank: int) -> torch.device:
        """The device of a process.

        Raises:
            RecipeError: there is no such device on this machine.
        """
        if self.device == "auto":
            found = torch.accelerator.current_accelerator(check_available=True)
            kind = found.type if found is not None else "cpu"
            return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        try:
            device = torch.device(self.device)
            if device.type not in ("cpu", "meta") and not torch.get_device_module(device).is_available():
                raise RuntimeError("this machine has none, or this build of torch cannot use it")
        except (RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(f"got '{self.device}': {reason}", path="device", mend="use auto or cpu") from error
        return torch.device("cuda", local_rank) if self.device == "cuda" else device

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model is replicated, if this process is one of several."""
        if not dist.is_initialized():
            return assembly.with_(layout=Layout(ranks=self.data))
        layout = Layout(
            rank=dist.get_rank(),
            ranks=dist.get_world_size(),
            replicate=_replicate,
            local=_no_sync,
            total=_total,
        )
        return assembly.with_(layout=layout)


def _replicate(model: nn.Module) -> nn.Module:
    if not any(p.requires_grad for p in model.parameters()):
        return model
    # A kernel of one input channel has two equal layouts; torch takes them for different ones and warns of a copy.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def _no_sync(model: nn.Module) -> AbstractContextManager[object]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _total(number: float) -> float:
    total = torch.tensor(number, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return float(total)


def launched_ranks() -> int:
    """How many processes torchrun has started; 1 if it has not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(layout: Technique) -> Iterator[torch.device]:
    """The device of this process; its process group exists inside the context, if torchrun has started several."""
    assert isinstance(layout, DataParallel)
    if layout.threads is not None:
        torch.set_num_threads(layout.threads)
    device = layout.torch_device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)
    if launched_ranks() == 1 or dist.is_initialized():
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def was_launched() -> bool:
    """Whether :func:`launch` in another process started this one; that other one reports the outcome."""
    return LAUNCHED in os.environ


def is_rank_zero() -> bool:
    """The same by what torchrun says, also outside the process group."""
    return os.environ.get("RANK", "0") == "0"


def from_first(value: T) -> T:
    """The first process's value, on every process."""
    if not dist.is_initialized():
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held)
    shared: T = held[0]
    return shared


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def launch(folder: Path, ranks: int, words: Sequence[str] = ()) -> int:
    """Start torchrun on this machine to go on with the run in ``folder``; returns its exit code.

    A signal to stop is passed on, so that the processes save before they end.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {
        **os.environ,
        LAUNCHED: "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(ranks))),
    }
    in_charge = threading.current_thread() is threading.main_thread()  # elsewhere signals are somebody else's business
    # In a session of their own, a Ctrl-C at the terminal reaches them once, from here, and not also directly.
    process = subprocess.Popen(
        [*command, "-m", "kingpost", "resume", str(folder), *words], env=environment, start_new_session=in_charge
    )
    numbers = (signal.SIGTERM, signal.SIGINT) if in_charge else ()
    previous = {number: signal.signal(number, lambda n, _: process.terminate()) for number in numbers}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _threads(ranks: int) -> int:
    return max(1, torch.get_num_threads() // ranks)
