"""The gradient itself, and how it adds up over pieces of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kingpost.assembly import Batch, Loss, Objective, Step, Update


def backward(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
    """Add the gradient of this batch's share of the mean loss to ``.grad``.

    The loss is a sum over items, so the gradients of pieces of a batch add up to that of the whole: each is
    divided by the items of the *global* batch. Processes average their gradients, hence the factor ``ranks``.
    """
    loss = objective(model, batch)
    share = step.ranks / step.items
    roots, weights = [loss.data], [_like(loss.data, share)]
    if isinstance(loss.penalty, Tensor):
        roots.append(loss.penalty)
        weights.append(_like(loss.penalty, share * loss.items))
    torch.autograd.backward(roots, weights)
    loss.data, loss.outputs = loss.data.detach(), loss.outputs.detach()
    if isinstance(loss.penalty, Tensor):
        loss.penalty = loss.penalty.detach()
    return loss


def _like(tensor: Tensor, value: float | Tensor) -> Tensor:
    return torch.scalar_tensor(float(value), dtype=tensor.dtype, device=tensor.device)


class Backward:
    """The innermost gradient of a run. It can be told to work through a batch in more, smaller pieces.

    The loop raises ``pieces`` when memory runs out; it survives a restart, since pieces change the rounding.
    """

    def __init__(self) -> None:
        self.pieces = 1

    def __call__(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        """The gradient of the batch, in so many pieces."""
        if self.pieces == 1:
            return backward(model, objective, batch, step)
        return merged([backward(model, objective, piece, step) for piece in batch.split(self.pieces)])

    def state_dict(self) -> dict[str, int]:
        """The number of pieces."""
        return {"pieces": self.pieces}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with so many pieces."""
        self.pieces = state["pieces"]


def merged(losses: Sequence[Loss]) -> Loss:
    """The loss of a whole batch from those of its pieces; penalties do not depend on the piece."""
    if len(losses) == 1:
        return losses[0]
    return Loss(
        data=torch.stack([loss.data for loss in losses]).sum(),
        items=sum(loss.items for loss in losses),
        outputs=losses[-1].outputs,
        penalty=losses[-1].penalty,
        finite=all(loss.finite for loss in losses),
    )


def gradients(model: nn.Module) -> list[Tensor]:
    """The gradients that a step has filled."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def clear_gradients(model: nn.Module) -> None:
    """Forget the gradients, whether or not an optimizer holds the parameters."""
    for p in model.parameters():
        p.grad = None


def after(change: Callable[[nn.Module, Step], object], update: Update) -> Update:
    """An update that begins with a change of the gradients, made in place."""

    def change_then_update(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        change(model, step)
        update(model, optimizer, step)

    return change_then_update
