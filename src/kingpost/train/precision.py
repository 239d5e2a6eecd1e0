"""Half precision by autocast."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import gradients


def autocast(objective: Objective, dtype: torch.dtype, device_type: str) -> Objective:
    """An objective whose matrix products run in ``dtype``; weights and the loss stay in 32 bits."""

    def cast(model: nn.Module, batch: Batch) -> Loss:
        with torch.autocast(device_type, dtype=dtype):
            return objective(model, batch)

    return cast


@checked
class BF16(Technique):
    """Run the model's matrix products in bfloat16: 8 bits of exponent, 8 of precision, no loss scaling.

    Fails to be faster on processors without bfloat16 units. Source: Kalamkar et al., arXiv 1905.12322.
    """

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    conflicts: ClassVar[dict[str, str]] = {"fp16": "a matrix product has one precision"}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective runs in bfloat16."""
        return assembly.with_(objective=autocast(assembly.objective, torch.bfloat16, assembly.setting.device.type))


LOWEST_SCALE = 2.0**-10  # a gradient that overflows even here is not the scale's fault, but NaN or Inf


class LossScale:
    """The factor on the loss that keeps half-precision gradients from vanishing.

    Halved when a gradient overflows (that step is skipped), doubled after ``patience`` steps without.
    """

    def __init__(self, scale: float, patience: int = 2000) -> None:
        self.scale, self.patience, self.good_steps = scale, patience, 0

    def unscale(self, grads: list[Tensor]) -> bool:
        """Divide the gradients by the scale; returns whether they may be used, and adapts the scale."""
        infinite = torch.zeros(1, dtype=torch.float32, device=grads[0].device)  # the kernel wants no other
        torch._amp_foreach_non_finite_check_and_unscale_(grads, infinite, torch.full_like(infinite, 1 / self.scale))
        finite = not infinite.item() or self.scale < LOWEST_SCALE
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good_steps == self.patience:
            self.scale, self.good_steps = self.scale * 2, 0
        return finite

    def state_dict(self) -> dict[str, float]:
        """Scale and number of steps since it changed."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with this scale."""
        self.scale, self.good_steps = state["scale"], int(state["good_steps"])


def scaled(gradient: Gradient, scale: LossScale) -> Gradient:
    """A gradient of the scaled loss, divided by the scale afterwards; ``finite`` is False if it overflowed."""

    def scale_and_unscale(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        factor = scale.scale

        def larger(model: nn.Module, batch: Batch) -> Loss:
            loss = objective(model, batch)
            loss.data, loss.penalty = loss.data * factor, loss.penalty * factor
            return loss

        loss = gradient(model, larger, batch, step)
        loss.data, loss.penalty = loss.data / factor, loss.penalty / factor
        loss.finite = scale.unscale(gradients(model)) and loss.finite
        step.log["loss_scale"] = factor
        return loss

    return scale_and_unscale


@checked
class FP16(Technique):
    """Run the model's matrix products in float16, with loss scaling: 5 bits of exponent, 11 of precision.

    Fails where activations pass 65,504; prefer bf16 where the hardware has it. The first steps may be skipped
    while the scale settles. Source: Micikevicius et al., arXiv 1710.03740.
    """

    scale: Annotated[float, Gt(0)] = 65536.0
    """Factor on the loss at the start."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective", "gradient", "state"})
    after: ClassVar[tuple[str, ...]] = ("accumulate",)
    example: ClassVar[dict[str, Any]] = {"scale": 1024.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective runs in float16 on a scaled loss."""
        scale = LossScale(self.scale)
        mounted = assembly.with_(
            objective=autocast(assembly.objective, torch.float16, assembly.setting.device.type),
            gradient=scaled(assembly.gradient, scale),
        )
        return mounted.with_state(self.name, scale)
