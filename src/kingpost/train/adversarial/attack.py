"""What attacks share: where they look, how far they may go, and how a model is trained on them.

An attack changes inputs within a small ball so that the loss rises. It looks at the model as it is in use (eval mode:
no dropout, batch norms with their running statistics, which it does not move), so that a sample's attack does not
depend on the others of its batch; the weights are then trained on what it found, in train mode. No gradient of the
attack is left in the weights.

All lengths are in the input's own unit. For standardised data that is standard deviations: for 8 of 255 levels of
pixels in 0..1 whose deviation is 0.25, write ``epsilon: 0.125``, which is ``8 / 255 / 0.25``.

Legend of shapes: ``B`` samples; other axes are the sample's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.source import Form
from kingpost.task import at_least_float32
from kingpost.technique import Technique
from kingpost.train.augment.augmentation import check_form, normal, over, uniform, with_first

Norm = Literal["linf", "l2"]
Perturb = Callable[[nn.Module, Objective, Batch, Step], Batch]
ATTACKABLE: tuple[Form, ...] = ("image", "features", "table", "series", "clip")  # the first input is what is changed
TINY = 1e-12  # below every length that is divided by


@contextmanager
def in_use(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside, every module in the mode that it had afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        if any(isinstance(module, nn.RNNBase) for module, _ in modes):  # cuDNN has no gradient of these in eval mode
            cudnn = torch.backends.cudnn
            flags = cudnn.flags(False, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, cudnn.allow_tf32)
            stack.enter_context(flags)
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def bare(model: nn.Module) -> nn.Module:
    """The model without what exchanges its gradients: a second pass must not announce a second exchange."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def input_gradient(model: nn.Module, objective: Objective, batch: Batch, x: Tensor) -> Tensor:
    """The gradient of the summed loss with respect to the first input, at ``x``; the weights get none."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        # A view, since hooks that count operations cannot stand on a leaf whose gradient is asked for.
        loss = objective(model, with_first(batch, x.view_as(x)))
        (gradient,) = torch.autograd.grad(loss.data, x)
    return gradient


def length(x: Tensor) -> Tensor:
    """The L2 norm of each sample, shaped to stand over ``x``."""
    return over(x.flatten(1).norm(dim=1), x)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest way up within a ball of size 1: the sign, or the gradient at length 1."""
    return gradient.sign() if norm == "linf" else gradient / length(gradient).clamp(min=TINY)


def project(moved: Tensor, x: Tensor, epsilon: float, norm: Norm, low: float | None, high: float | None) -> Tensor:
    """The nearest point within ``epsilon`` of ``x`` that lies in ``low..high``.

    A number of ``x`` that is itself outside the range may stay, but moves no further out.
    """
    if norm == "l2":
        moved = x + (moved - x) * (epsilon / length(moved - x).clamp(min=TINY)).clamp(max=1)
    lower, upper = (x - epsilon, x + epsilon) if norm == "linf" else (None, None)
    if low is not None:
        floor = x.clamp(max=low)
        lower = floor if lower is None else torch.maximum(lower, floor)
    if high is not None:
        ceiling = x.clamp(min=high)
        upper = ceiling if upper is None else torch.minimum(upper, ceiling)
    moved = moved if lower is None else torch.maximum(moved, lower)
    return moved if upper is None else torch.minimum(moved, upper)


def within_ball(step: Step, purpose: str, batch: Batch, epsilon: float, norm: Norm) -> Tensor:
    """A displacement for each sample, drawn uniformly from the ball, in the shape of the first input."""
    x = batch.inputs[0]
    shape = x.shape[1:]
    if norm == "linf":
        return epsilon * (2 * uniform(step, purpose, batch, *shape, dtype=x.dtype) - 1)
    pointing = direction(normal(step, purpose, batch, *shape, dtype=x.dtype), "l2")
    radius = uniform(step, f"{purpose} radius", batch, dtype=x.dtype) ** (1 / shape.numel())
    return epsilon * over(radius, x) * pointing


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q)`` of the probabilities behind two sets of raw scores ``(B, C)``, summed over samples; scalar."""
    log_p, log_q = (at_least_float32(scores).log_softmax(-1) for scores in (p, q))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def away_from(reference: Tensor, objective: Objective) -> Objective:
    """An objective that is the divergence of what the model says now from ``reference`` ``(B, C)``."""

    def measure(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        return Loss(divergence(reference, loss.outputs), loss.items, loss.outputs)

    return measure


def outputs_in_use(model: nn.Module, objective: Objective, batch: Batch) -> Tensor:
    """What the model says in eval mode, without a graph."""
    with in_use(model), torch.no_grad():
        return objective(model, batch).outputs


def trained_on(gradient: Gradient, perturb: Perturb) -> Gradient:
    """A gradient that is taken at the attacked batch, in place of the batch itself."""

    def attack_and_take(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        def at_attacked(model: nn.Module, piece: Batch) -> Loss:
            return objective(model, perturb(bare(model), objective, piece, step))

        return gradient(model, at_attacked, batch, step)

    return attack_and_take


class Attack(Technique):
    """Base of attacks: to train on, and to judge a trained model by (:func:`kingpost.robust_accuracy`)."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"gradient"})
    reads: ClassVar[tuple[Form, ...]] = ATTACKABLE

    @abstractmethod
    def perturb(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Batch:
        """The batch with a first input that raises the loss; draws from ``step`` only."""

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly that trains on attacked batches."""
        check_form(assembly.setting.data, self.reads)
        return assembly.with_(gradient=trained_on(assembly.gradient, self.perturb))
