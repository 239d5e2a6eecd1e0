"""Penalties on derivatives with respect to the inputs: of the loss, and of the outputs.

Legend of shapes: ``B`` samples, ``F`` numbers of an input, ``K`` outputs of a sample.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, BatchTransform, Loss, Objective, Slot, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique

COMPILED = "torch.compile does not support a gradient of a gradient"


def _that_vary(batch: Batch) -> tuple[Batch, list[Tensor]]:
    """The batch with floating-point inputs that gradients can be taken for, and these.

    They are no leaves of the graph: torch's counter of FLOPs cannot follow those.
    """
    inputs = tuple(x.detach().requires_grad_().clone() if x.is_floating_point() else x for x in batch.inputs)
    return batch.with_(inputs=inputs), [x for x in inputs if x.requires_grad]


def _squared(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([g.square().sum() for g in gradients]).sum()


def with_gradient_penalty(objective: Objective, strength: float) -> Objective:
    """An objective with ``strength`` times the mean over samples of ``|d loss_i / d x_i|^2``."""

    def penalise(model: nn.Module, batch: Batch) -> Loss:
        with torch.enable_grad():
            batch, inputs = _that_vary(batch)
            loss = objective(model, batch)
            found = torch.autograd.grad(loss.data, inputs, create_graph=True)
        loss.data = loss.data + strength * _squared(found) * (loss.items / len(batch))
        return loss

    return penalise


def squared_jacobian(outputs_bk: Tensor, inputs: list[Tensor], directions_bk: Tensor) -> Tensor:
    """``sum_i |v_i^T J_i|^2``, scalar, where ``J_i = d outputs_i / d x_i`` and ``v_i`` is a row of the directions."""
    found = torch.autograd.grad(outputs_bk, inputs, directions_bk.to(outputs_bk), create_graph=True)
    return _squared(found)


def directions(outputs: Tensor, batch: Batch, step: Step, projection: int) -> Tensor:
    """Directions of length 1 in the space of outputs, ``(B, K)``; a sample's is the same in every piece and process."""
    draw = step.generator(f"jacobian-penalty {projection}", outputs.device)
    shape = (batch.total, outputs[0].numel())
    normal = torch.randn(shape, generator=draw, device=outputs.device, dtype=torch.float64)
    own = normal[batch.first : batch.first + len(batch)]
    unit: Tensor = own / torch.linalg.vector_norm(own, dim=1, keepdim=True)
    return unit.view(outputs.shape)


class Now:
    """The step that the loop is at; an objective is not told."""

    def __init__(self, seed: int) -> None:
        self.step = Step(index=0, seed=seed)

    def noted(self, inner: BatchTransform) -> BatchTransform:
        """A transform of batches that also notes the step."""

        def note(batch: Batch, step: Step) -> Batch:
            self.step = step
            return inner(batch, step)

        return note


def with_jacobian_penalty(objective: Objective, strength: float, projections: int, now: Now) -> Objective:
    """An objective with ``strength / 2`` times the mean over samples of ``|J|^2``, estimated by random projections."""

    def penalise(model: nn.Module, batch: Batch) -> Loss:
        with torch.enable_grad():
            batch, inputs = _that_vary(batch)
            loss = objective(model, batch)
            size = loss.outputs[0].numel()
            found = [
                squared_jacobian(loss.outputs, inputs, directions(loss.outputs, batch, now.step, number))
                for number in range(projections)
            ]
        mean = torch.stack(found).sum() * (size / projections)
        loss.data = loss.data + strength / 2 * mean * (loss.items / len(batch))
        return loss

    return penalise


def _check_inputs(assembly: Assembly) -> None:
    if not any(dtype.is_floating_point for _, dtype in assembly.setting.data.inputs):
        raise RecipeError("inputs are whole numbers, for which there is no gradient", mend="remove it")


@checked
class GradientPenalty(Technique):
    """Add ``strength`` times the mean of ``|d loss_i / d x_i|^2`` over samples: "double backpropagation".

    Costs about three times the compute of a plain step.
    Helps to make the loss change little with small changes of the input: smoother functions, some robustness.
    Fails with batch norm, through which samples see each other, and where inputs are on different scales.
    Source: Drucker and LeCun, "Improving generalization performance using double backpropagation", IEEE TNN 3, 1992.
    """

    strength: Annotated[float, Ge(0)] = 0.1
    """Factor of the penalty, in units of the loss for a squared unit of loss per unit of input."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    example: ClassVar[dict[str, Any]] = {"strength": 0.5}

    @property
    def exceptions(self) -> dict[str, str]:
        """It takes a gradient of a gradient."""
        return {"compile": COMPILED}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective is penalised."""
        _check_inputs(assembly)
        return assembly.with_(objective=with_gradient_penalty(assembly.objective, self.strength))


@checked
class JacobianPenalty(Technique):
    """Add ``strength / 2`` times the mean of ``|J_i|^2`` (Frobenius), ``J_i`` the outputs' derivative for sample i.

    Estimated without bias as ``K |v^T J|^2`` with random ``v`` of length 1, ``K`` outputs, once or more a step.
    Helps to widen the distance from samples to where the predicted class changes; on little data, and against noise.
    Fails with batch norm, through which samples see each other, and is noisy where outputs are many.
    Source: Hoffman, Roberts and Yaida, "Robust Learning with Jacobian Regularization", arXiv 1908.02729.
    """

    strength: Annotated[float, Ge(0)] = 0.01
    """Factor of the penalty."""
    projections: Annotated[int, Ge(1)] = 1
    """Random directions for each sample; each costs a backward pass."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"batch", "objective"})
    example: ClassVar[dict[str, Any]] = {"strength": 0.1}

    @property
    def exceptions(self) -> dict[str, str]:
        """It takes a gradient of a gradient."""
        return {"compile": COMPILED}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose objective is penalised."""
        _check_inputs(assembly)
        now = Now(assembly.setting.seed)
        return assembly.with_(
            batch=now.noted(assembly.batch),
            objective=with_jacobian_penalty(assembly.objective, self.strength, self.projections, now),
        )
