"""Free adversarial training: the attack's gradient comes with that of the weights.

Legend of shapes: ``B`` samples; other axes are the sample's own.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.distributed as dist
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, BatchTransform, Gradient, Loss, Objective, Slot, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.source import Form
from kingpost.technique import Technique
from kingpost.train.adversarial.attack import ATTACKABLE, project
from kingpost.train.augment.augmentation import check_form, check_range, with_first


class Replay:
    """The batch that is being replayed, and the displacement that goes on from step to step.

    Args:
        shift: displacement of each sample of the global batch, ``(batch_size, ...)``.
    """

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift
        self.inputs: tuple[Tensor, ...] = ()
        self.targets = torch.zeros(0)

    def state_dict(self) -> dict[str, Any]:
        """The displacement, and the batch."""
        return {"shift": self.shift, "inputs": list(self.inputs), "targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with these."""
        device = self.shift.device
        self.shift = state["shift"].to(device, copy=True)
        self.inputs = tuple(x.to(device, copy=True) for x in state["inputs"])
        self.targets = state["targets"].to(device, copy=True)


def replayed(transform: BatchTransform, replay: Replay, times: int) -> BatchTransform:
    """A transform that gives each batch ``times`` times in a row, and leaves out those that come meanwhile."""

    def give(batch: Batch, step: Step) -> Batch:
        batch = transform(batch, step)
        if batch.total != len(batch):
            raise RecipeError(
                "with streamed data on several processes, none of them has the whole batch to replay",
                path="techniques.free-adversarial",
                mend="use fgsm, which costs about as little",
            )
        if step.index % times == 0 or not replay.inputs:
            replay.inputs, replay.targets = batch.inputs, batch.targets
        return Batch(replay.inputs, replay.targets, 0, len(replay.targets))

    return give


def free(
    gradient: Gradient, replay: Replay, epsilon: float, step_size: float, low: float | None, high: float | None
) -> Gradient:
    """A gradient at ``x + shift``, after which the shift moves up its own gradient: ``clip(shift + a sign(g))``."""

    def take(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        rows = slice(batch.first, batch.first + len(batch))
        x = batch.inputs[0]
        shift = replay.shift[rows].to(x.dtype).detach().requires_grad_()

        def shifted(model: nn.Module, piece: Batch) -> Loss:
            own = shift[piece.first - batch.first : piece.first - batch.first + len(piece)]
            whole = piece.inputs[0]
            if low is not None or high is not None:  # a number that is outside itself moves no further out
                top = None if high is None else whole.clamp(min=high)
                bottom = None if low is None else whole.clamp(max=low)
                return objective(model, with_first(piece, (whole + own).clamp(bottom, top)))
            return objective(model, with_first(piece, whole + own))

        loss = gradient(model, shifted, batch, step)
        if loss.finite and shift.grad is not None:
            moved = x + shift.detach() + step_size * shift.grad.sign()
            new = torch.zeros_like(replay.shift)
            new[rows] = (project(moved, x, epsilon, "linf", low, high) - x).clamp(-epsilon, epsilon).to(new.dtype)
            if step.ranks > 1 and dist.is_initialized():  # every process holds all rows, since only the first saves
                dist.all_reduce(new)
            new[batch.total :] = replay.shift[batch.total :]
            replay.shift = new
        return loss

    return take


@checked
class FreeAdversarial(Technique):
    """Replay each batch ``replays`` times, and move the attack with the very gradients that move the weights.

    ``d <- clip(d + epsilon * sign(gradient of the loss at x + d), -epsilon, epsilon)``; ``d`` is carried on to the next
    batch. Costs nothing per step; a pass over the data shows a random ``1 / replays`` of it, so the same number of
    epochs costs the same time, and learns from fewer different samples. Unlike other attacks, this one looks at the
    model in train mode. Helps where PGD is too dear. Fails at large epsilon or few replays, where PGD trains safer
    nets. Source: Shafahi et al., arXiv 1904.12843.
    """

    epsilon: Annotated[float, Ge(0)] = 0.1
    """Largest change of any number of the input, in its own unit (standard deviations, if standardised)."""
    replays: Annotated[int, Ge(1)] = 4
    """How often each batch is used in a row."""
    low: float | None = None
    """Smallest value that an input can have, in its own unit; null is no bound."""
    high: float | None = None
    """Largest value that an input can have; null is no bound."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"batch", "gradient", "state"})
    reads: ClassVar[tuple[Form, ...]] = ATTACKABLE
    after: ClassVar[tuple[str, ...]] = (
        "accumulate", "fp16", "flip", "crop", "rotate", "affine", "colour", "rand-augment", "cutmix", "cutout", "mixup",
        "random-erasing", "gaussian-blur", "gaussian-noise", "jitter", "scaling", "time-warp", "window-slice",
        "spec-augment", "feature-noise", "feature-swap",
    )  # fmt: skip
    conflicts: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            ("sam", "asam", "gradnorm"), "it takes several gradients a step, and the attack moves with each"
        ),
        **dict.fromkeys(("fgsm", "pgd", "trades"), "one attack is trained on"),
    }
    neutral: ClassVar[dict[str, Any]] = {"epsilon": 0.0, "replays": 1}
    example: ClassVar[dict[str, Any]] = {"replays": 2}

    def __post_init__(self) -> None:
        check_range(self.low, self.high)

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly that replays and attacks."""
        setting = assembly.setting
        check_form(setting.data, self.reads)
        shape, dtype = setting.data.inputs[0]
        replay = Replay(torch.zeros(setting.batch_size, *shape, dtype=dtype, device=setting.device))
        gradient = free(assembly.gradient, replay, self.epsilon, self.epsilon, self.low, self.high)
        return assembly.with_(
            batch=replayed(assembly.batch, replay, self.replays),
            gradient=gradient if self.epsilon > 0 else assembly.gradient,
        ).with_state(self.name, replay)
