"""Estimates of curvature beside the gradient, from the same batch: Hutchinson's, and that of Gauss, Newton, Bartlett.

Legend of shapes: ``B`` samples, ``T`` places, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Step, Update
from kingpost.errors import RecipeError
from kingpost.task import Task, at_least_float32
from kingpost.train.regularise.sam import frozen_statistics

# Reasons for `conflicts`, common to all optimizers that look at curvature.
CONFLICTS = {
    "fp16": "the scale of the loss would be taken for curvature; use bf16",
    "gradnorm": "it takes the gradient of one head at a time, so the curvature would be that of the last one",
}


def hutchinson(loss: Tensor, params: Sequence[Tensor], signs: Sequence[Tensor]) -> list[Tensor]:
    """``v * H v``, whose mean over random signs ``v`` is the diagonal of the Hessian ``H``.

    Args:
        loss: scalar with a graph.
        params: what it is differentiated by.
        signs: ``v``, of the shapes of ``params``.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hutchinson((w**3).sum(), [w], [torch.tensor([1.0, -1.0])])[0]
    tensor([ 6., 12.])
    """
    first: Sequence[Tensor | None] = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    pairs = [(g, v) for g, v in zip(first, signs, strict=True) if g is not None and g.requires_grad]
    if not pairs:  # linear in all of them
        return [torch.zeros_like(p) for p in params]
    slopes, draws = [g for g, _ in pairs], [v for _, v in pairs]
    products = torch.autograd.grad(
        slopes, params, grad_outputs=draws, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return [v * product for v, product in zip(signs, products, strict=True)]


def random_signs(params: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """-1 or 1 for each weight."""
    device = generator.device
    return [
        (2 * torch.randint(0, 2, p.shape, generator=generator, device=device) - 1).to(p.device, p.dtype) for p in params
    ]


def drawn_targets(task: Task, outputs: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """Targets drawn from what the model itself predicts, for this batch's rows; what is hidden stays so.

    Values are drawn with variance 1/2, for which the squared error is the negative log-likelihood.
    """
    p = at_least_float32(outputs.detach())
    shape = p.shape[:-1] if task.name in ("classification", "language-modelling") else p.shape
    rows = (batch.total, *shape[1:])
    mine = slice(batch.first, batch.first + len(batch))
    if task.name == "regression":
        noise = torch.randn(rows, generator=generator, dtype=p.dtype, device=generator.device)
        return p + noise[mine].to(p.device) / 2**0.5
    draw = torch.rand(rows, generator=generator, dtype=p.dtype, device=generator.device)[mine].to(p.device)
    if task.name == "multi-label":
        return (draw < p.sigmoid()).to(outputs.dtype)
    drawn = (p.softmax(-1).cumsum(-1) < draw[..., None]).sum(-1).clamp(max=p.shape[-1] - 1)
    hidden = batch.targets == -100 if batch.targets.shape == drawn.shape else torch.zeros_like(drawn, dtype=torch.bool)
    return torch.where(hidden, -100, drawn)


DRAWABLE = ("classification", "language-modelling", "multi-label", "regression")


def check_drawable(task: Task, field: str, mend: str) -> None:
    """Refuse a task whose predictions are not a distribution that targets can be drawn from.

    Raises:
        RecipeError: it is none of the four.
    """
    if task.name not in DRAWABLE:
        raise RecipeError(
            f"draws targets from the model's predictions, which the task '{task.name}' has no rule for",
            path=field,
            mend=mend,
        )


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Inside, a pass is eager, kernels that have no second derivative are left out, and batch norms do not count."""
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        was_on = torch.backends.mkldnn.set_flags(False)[0]  # type: ignore[no-untyped-call]
        stack.callback(torch.backends.mkldnn.set_flags, was_on)
        stack.enter_context(frozen_statistics(model))
        yield


def bare(model: nn.Module) -> nn.Module:
    """The model itself, out of its replica."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def summed(tensors: Sequence[Tensor]) -> None:
    """Add up over all processes that share the batch, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def starts_step(model: nn.Module) -> bool:
    """Whether no gradient has been taken in this step so far: pieces of a batch come one after another."""
    return all(p.grad is None for p in model.parameters())


Sums = dict[Tensor, Tensor]


class Estimate:
    """The diagonal of a curvature, added up over the pieces of a batch.

    Args:
        task: of the run, for drawn targets.
        drawn: the squared gradient for targets drawn from the model, times the items; if not, Hutchinson's estimate.
        samples: how many sets of signs to average over.
        pieces: into how many parts memory makes us split what comes.
    """

    def __init__(self, task: Task, drawn: bool, samples: int, pieces: Callable[[], int]) -> None:
        self.task, self.drawn, self.samples, self.pieces = task, drawn, samples, pieces
        self.sums: Sums = {}
        self.items = 0.0

    def add(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> None:
        """Count a piece of the batch."""
        params = [p for p in model.parameters() if p.requires_grad]
        self.items = step.items
        with twice_differentiable(model):
            for piece in batch.split(self.pieces()):
                loss = objective(model, piece)
                for p, value in zip(params, self._of(model, params, loss, piece, step), strict=True):
                    self.sums[p] = self.sums[p] + value if p in self.sums else value

    def _of(self, model: nn.Module, params: Sequence[Tensor], loss: Loss, batch: Batch, step: Step) -> list[Tensor]:
        device = params[0].device
        if self.drawn:
            targets = drawn_targets(self.task, loss.outputs, batch, step.generator("drawn targets", device))
            data = self.task.criterion(loss.outputs, targets) / step.items
            return list(torch.autograd.grad(data, params, allow_unused=True, materialize_grads=True))
        scalar = loss.data / step.items + loss.penalty * (loss.items / step.items)
        draw = step.generator("hutchinson", device)
        found = [torch.zeros_like(p) for p in params]
        for _ in range(self.samples):
            torch._foreach_add_(found, hutchinson(scalar, params, random_signs(params, draw)), alpha=1 / self.samples)
        return found

    def take(self) -> Sums:
        """The estimate of the whole batch, over all processes; empty if none was made in this step."""
        sums, self.sums = self.sums, {}
        summed(list(sums.values()))
        return {p: self.items * x.square() for p, x in sums.items()} if self.drawn else sums


def estimating(gradient: Gradient, estimate: Estimate, every: int) -> Gradient:
    """A gradient that each ``every`` steps also estimates the curvature at the same weights."""

    def take(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        if starts_step(model):
            estimate.sums = {}
        loss = gradient(model, objective, batch, step)
        if step.index % every == 0:
            estimate.add(bare(model), objective, batch, step)
        return loss

    return take


def giving(update: Update, take: Callable[[], Mapping[Tensor, object]]) -> Update:
    """An update that first hands the estimate to the optimizer."""

    def give(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        optimizer.curvature = take()  # type: ignore[attr-defined]
        update(model, optimizer, step)

    return give


def with_estimate(assembly: Assembly, drawn: bool, samples: int, every: int) -> Assembly:
    """The assembly whose optimizer is given the diagonal of the curvature."""
    backward = assembly.state["backward"]
    estimate = Estimate(assembly.setting.task, drawn, samples, lambda: int(backward.state_dict()["pieces"]))
    return assembly.with_(
        gradient=estimating(assembly.gradient, estimate, every), update=giving(assembly.update, estimate.take)
    )
