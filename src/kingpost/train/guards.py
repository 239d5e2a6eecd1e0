"""Guards of the loop: numbers that are not finite, memory that runs out, and the wish to stop."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Loss, Step
from kingpost.errors import NonFiniteError, TrainingError
from kingpost.train.gradients.backward import clear_gradients


def gradient_norm(grads: list[Tensor]) -> float:
    """The L2 norm over all gradients together; not finite if any number in them is not.

    >>> gradient_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    5.0
    """
    if not grads:
        return 0.0
    norms = torch._foreach_norm(grads)
    if grads[0].device.type == "cpu":
        return math.sqrt(sum(norm.item() ** 2 for norm in norms))
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))


def explain_non_finite(assembly: Assembly, batch: Batch, step: Step) -> NonFiniteError:
    """Run the step once more and find the first module, or else operation, that made a NaN or Inf."""
    model = assembly.model
    place = _first_bad_weight(model) or _first_bad_input(batch)
    if not place:
        with torch.compiler.set_stance("force_eager"):
            place = _first_bad_output(assembly, batch) or _first_bad_gradient(assembly, batch, step)
    clear_gradients(model)
    return NonFiniteError(
        f"step {step.index}: {place or 'a NaN or Inf that did not show again when the step was repeated'}. "
        "The weights were not changed, and the state before this step is saved. Lower optimizer.lr, add the technique "
        "'clip', or mend the operation."
    )


def _first_bad_weight(model: nn.Module) -> str:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and not value.isfinite().all():
            return f"'{name}' itself holds {_kind(value)}"
    return ""


def _first_bad_input(batch: Batch) -> str:
    for index, x in enumerate(batch.inputs):
        if x.is_floating_point() and not x.isfinite().all():
            row = int((~x.isfinite().reshape(len(x), -1).all(1)).nonzero()[0])
            return f"input {index} of the batch holds {_kind(x)}, first in sample {row} of the batch"
    if batch.targets.is_floating_point() and not batch.targets.isfinite().all():
        return f"the targets of the batch hold {_kind(batch.targets)}"
    return ""


def _first_bad_output(assembly: Assembly, batch: Batch) -> str:
    found: list[str] = []

    def look(name: str, module: nn.Module, output: object) -> None:
        tensors = output if isinstance(output, tuple | list) else (output,)
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all() and not found:
                found.append(f"the first {_kind(tensor)} came out of module '{name}' ({type(module).__name__})")

    hooks = [
        module.register_forward_hook(lambda m, _, output, name=name: look(name or "the model", m, output))
        for name, module in assembly.model.named_modules()
    ]
    try:
        with torch.no_grad():
            loss = assembly.objective(assembly.model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not found and not torch.as_tensor(loss.mean()).isfinite():
        found.append(f"all modules gave finite outputs, but the loss is {float(loss.mean())}")
    return found[0] if found else ""


def _first_bad_gradient(assembly: Assembly, batch: Batch, step: Step) -> str:
    clear_gradients(assembly.model)
    operation = ""
    try:
        with _anomaly_mode():
            assembly.gradient(assembly.model, assembly.objective, batch, step)
    except RuntimeError as error:
        operation = f" (operation: {str(error).splitlines()[0]})"
        clear_gradients(assembly.model)
        assembly.gradient(assembly.model, assembly.objective, batch, step)  # what was raised left gradients unfilled
    # The backward pass goes from last to first, so the last module with a bad gradient is where it arose.
    for name, p in reversed(list(assembly.model.named_parameters())):
        if p.grad is not None and not p.grad.isfinite().all():
            return f"the outputs are finite, but the gradient of '{name}' holds {_kind(p.grad)}{operation}"
    return f"the outputs are finite, but the gradient is not{operation}" if operation else ""


@contextmanager
def _anomaly_mode() -> Iterator[None]:
    """Torch names the operation that made a NaN; its warnings would only say that this is on, and where."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly(check_nan=True):
            yield


class Statistics:
    """A model's buffers (running statistics), which a forward pass moves also when the step then fails."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers = list(model.buffers())
        self.saved: list[Tensor] = []

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Put them back if what happens inside raises."""
        self.saved = [buffer.clone() for buffer in self.buffers]
        try:
            yield
        except BaseException:
            self.put_back()
            raise

    @torch.no_grad()
    def put_back(self) -> None:
        """As they were when the context began."""
        for buffer, old in zip(self.buffers, self.saved, strict=True):
            buffer.copy_(old)


def _kind(value: Tensor) -> str:
    return "NaN" if value.isnan().any() else "Inf"


def take_gradient(
    assembly: Assembly, replica: nn.Module, batch: Batch, step: Step, statistics: Statistics
) -> tuple[Loss, int]:
    """The gradient of a batch; if memory runs out, in twice as many pieces, until it fits.

    Returns the loss, and the number of pieces if it was raised, else 0.

    Raises:
        TrainingError: a single sample does not fit, or several processes share the batch.
    """
    backward, raised = assembly.state["backward"], 0
    while True:
        try:
            return assembly.gradient(replica, assembly.objective, batch, step), raised
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            pieces = 2 * backward.state_dict()["pieces"]
            if step.ranks > 1 or pieces >= 2 * len(batch):
                advice = "add the technique 'accumulate'" if step.ranks > 1 else "use a smaller model"
                raise TrainingError(f"step {step.index}: out of memory; {advice}") from error
            raised = pieces
            backward.load_state_dict({"pieces": pieces})
        clear_gradients(assembly.model)  # outside `except`, so that the failed pass's tensors are gone
        statistics.put_back()
        if assembly.setting.device.type != "cpu":
            torch.accelerator.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on any device, says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class StopRequest:
    """Whether somebody asked the process to stop, and how."""

    def __init__(self) -> None:
        self.signal = 0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Inside, SIGTERM and the first Ctrl-C only leave a note; a second Ctrl-C interrupts at once."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        request.signal = number

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: signals are somebody else's business
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
