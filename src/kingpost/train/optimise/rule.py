"""What our own optimizers have in common, and the recipe option that every optimizer extends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.optimise.groups import decay_groups

Group = dict[str, Any]


class Rule(torch.optim.Optimizer):
    """Base of optimizers that move one group of parameters at a time; a subclass says how.

    State is tensors and plain numbers under each parameter, so a checkpoint can hold it.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient; returns what ``closure``, called first, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.before()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.move(group, params, [p.grad for p in params])
        return loss

    def before(self) -> None:
        """What is done once a step, before the groups; nothing, in most."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from this state, in memory of our own: where tensors lie can change a product's last bits."""
        super().load_state_dict(state_dict)
        for held in self.state.values():
            for key, value in held.items():
                if isinstance(value, Tensor):
                    held[key] = value.clone(memory_format=torch.preserve_format)

    @abstractmethod
    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """Move these parameters of a group in place; the gradients stay as they are."""

    def kept(self, params: list[Tensor], *names: str) -> tuple[list[Tensor], ...]:
        """The state of so many names for each parameter; zeros at first."""
        for p in params:
            for name in names:
                if name not in self.state[p]:
                    self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return tuple([self.state[p][name] for p in params] for name in names)

    def counted(self, params: list[Tensor]) -> list[int]:
        """How many steps each parameter has made, this one included."""
        for p in params:
            self.state[p]["step"] = self.state[p].get("step", 0) + 1
        return [cast(int, self.state[p]["step"]) for p in params]


def decay(params: list[Tensor], group: Group) -> None:
    """Decoupled weight decay, ``w = w - lr * weight_decay * w``, in place."""
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])


def adamw(rule: Rule, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
    """AdamW's step in place, for optimizers that leave it some of the parameters."""
    steps, (beta1, beta2) = rule.counted(params), group["betas"]
    means, squares = rule.kept(params, "mean", "square")
    decay(params, group)
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [(1 - beta2**t) ** 0.5 for t in steps])
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_addcdiv_(params, means, roots, [-group["lr"] / (1 - beta1**t) for t in steps])


@checked
class OptimizerOption(Technique):
    """Base of the optimizers that a recipe can name: all treat weight decay alike."""

    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Pull towards zero, on matrices and kernels only."""
    decay_embeddings: bool = True
    """Whether embeddings, and heads tied to them, decay too."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"optimizer"})

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The model's parameters: those that decay, and those that do not."""
        return decay_groups(model, self.weight_decay, self.decay_embeddings)

    @abstractmethod
    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer."""
        return assembly.with_(optimizer=self.make)
