"""Schedule-free learning: an average of the iterates takes the place of a falling learning rate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule


class ScheduleFree(Rule):
    """Base: the model holds ``y``, where gradients are taken; ``z`` is the state; ``x``, their average, is judged.

    ``z = z - lr * d(y)``, ``x = (1 - c) x + c z``, ``y = (1 - beta) z + beta x``, where ``c`` weighs a step by the
    square of the largest rate so far.
    """

    placed = False

    @abstractmethod
    def direction(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """What ``z`` moves along; weight decay comes on top."""

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        lr, beta = group["lr"], group["beta"]
        group["largest_lr"] = max(lr, group["largest_lr"])
        weight = group["largest_lr"] ** 2
        group["weights"] += weight
        c = weight / group["weights"] if group["weights"] else 0.0
        for p in params:
            if "z" not in self.state[p]:
                self.state[p]["z"] = p.detach().clone(memory_format=torch.preserve_format)
        (z,) = self.kept(params, "z")
        steps = self.direction(group, params, grads)
        if group["weight_decay"]:
            steps = list(torch._foreach_add(steps, params, alpha=group["weight_decay"]))
        torch._foreach_lerp_(params, z, c)
        torch._foreach_add_(params, steps, alpha=lr * (beta * (1 - c) - 1))
        torch._foreach_sub_(z, steps, alpha=lr)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average ``x`` in the model, and exactly ``y`` again afterwards; inside another, it changes nothing."""
        held = [] if self.placed else [(p, g["beta"]) for g in self.param_groups for p in g["params"]]
        saved = [(p, p.detach().clone(), beta) for p, beta in held if "z" in self.state[p]]
        outermost, self.placed = not self.placed, True
        with torch.no_grad():
            for p, _, beta in saved:
                p.lerp_(self.state[p]["z"], 1 - 1 / beta)
        try:
            yield
        finally:
            self.placed = not outermost
            with torch.no_grad():
                for p, own, _ in saved:
                    p.copy_(own)


class ScheduleFreeSGDRule(ScheduleFree):
    """The optimizer alone, for any loop: judge and save inside ``with optimizer.averaged()``.

    >>> w = nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = ScheduleFreeSGDRule([w], lr=0.1)
    >>> w.square().sum().backward(); _ = optimizer.step()
    >>> with optimizer.averaged():
    ...     print(w.data)
    tensor([0.8000])
    """

    def __init__(self, params: object, lr: float, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        defaults = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "largest_lr": 0.0, "weights": 0.0}
        super().__init__(params, defaults)  # type: ignore[arg-type]

    def direction(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """The gradient."""
        return grads


class ScheduleFreeAdamWRule(ScheduleFree):
    """The optimizer alone, for any loop: judge and save inside ``with optimizer.averaged()``.

    >>> w = nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = ScheduleFreeAdamWRule([w], lr=0.1)
    >>> w.square().sum().backward(); _ = optimizer.step()
    >>> with optimizer.averaged():
    ...     print(w.data)
    tensor([0.9000])
    """

    def __init__(
        self,
        params: object,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "beta": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "largest_lr": 0.0, "weights": 0.0})  # type: ignore[arg-type]

    def direction(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """The gradient over the root of its mean square."""
        times, beta2 = self.counted(params), group["beta2"]
        (squares,) = self.kept(params, "square")
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        roots = torch._foreach_div(squares, [1 - beta2**t for t in times])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        return list(torch._foreach_div(grads, roots))


@checked
class ScheduleFreeOption(OptimizerOption):
    """Base of the two: the average is what is judged and kept."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"optimizer", "evaluate"})
    conflicts: ClassVar[dict[str, str]] = {
        "ema": "both choose the weights that are judged; schedule-free keeps an average of its own",
        "swa": "both choose the weights that are judged",
        "swag": "both choose the weights that are judged",
        "lookahead": "both choose the weights that are judged",
    }

    @abstractmethod
    def make(self, model: nn.Module) -> ScheduleFree:
        """The optimizer of a model."""

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer, whose evaluation sees the average."""
        made: list[ScheduleFree] = []

        def make(model: nn.Module) -> torch.optim.Optimizer:
            made[:] = [self.make(model)]
            return made[0]

        def evaluate(model: nn.Module) -> AbstractContextManager[object]:
            return made[0].averaged()

        return assembly.with_(optimizer=make, evaluate=evaluate)


@checked
class ScheduleFreeSGD(ScheduleFreeOption):
    """SGD on ``z``, with gradients at ``y = (1 - beta) z + beta x``, where x, the average of z, is what is judged.

    Helps when the length of the run is open: the model is as good as after a schedule, at any time. Use the schedule
    ``constant``, with a warm-up. Fails with batch norm if its running statistics, which are those at y, differ from
    those at x; and where the rate is not tuned: it wants a larger one than SGD with momentum.
    Source: Defazio et al., "The Road Less Scheduled", arXiv 2405.15682.
    """

    lr: Annotated[float, Gt(0)] = 1.0
    """Learning rate."""
    beta: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Place of y between z (0) and the average x (1)."""

    example: ClassVar[dict[str, object]] = {"lr": 0.3}

    def make(self, model: nn.Module) -> ScheduleFree:
        """The optimizer of a model."""
        return ScheduleFreeSGDRule(self.groups(model), lr=self.lr, beta=self.beta)


@checked
class ScheduleFreeAdamW(ScheduleFreeOption):
    """AdamW's step on ``z`` from gradients at ``y = (1 - beta1) z + beta1 x``; x, the average of z, is what is judged.

    Helps when the length of the run is open: the model is as good as after a schedule, at any time. Use the schedule
    ``constant``, with a warm-up; rates are one to ten times AdamW's. Fails with batch norm if its running statistics,
    which are those at y, differ from those at x. Source: Defazio et al., arXiv 2405.15682.
    """

    lr: Annotated[float, Gt(0)] = 2.5e-3
    """Learning rate."""
    beta1: Annotated[float, Gt(0), Lt(1)] = 0.9
    """Place of y between z (0) and the average x (1)."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Memory of the mean squared gradient."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to the root, in units of the gradient."""

    def make(self, model: nn.Module) -> ScheduleFree:
        """The optimizer of a model."""
        betas = (self.beta1, self.beta2)
        return ScheduleFreeAdamWRule(self.groups(model), lr=self.lr, betas=betas, eps=self.eps)
