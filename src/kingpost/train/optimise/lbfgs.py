"""L-BFGS: quasi-Newton steps with a line search, all on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step, Update
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.gradients.backward import clear_gradients, gradients
from kingpost.train.optimise.curvature import starts_step
from kingpost.train.regularise.sam import frozen_statistics


class Replay:
    """The gradient calls of the present step, which can be made again at other weights.

    Args:
        gradient: what is called.
        total: the sum of a number over all processes that share the batch.
    """

    def __init__(self, gradient: Gradient, total: Callable[[float], float]) -> None:
        self.gradient, self.total = gradient, total
        self.calls: list[tuple[nn.Module, Objective, Batch, Step]] = []
        self.losses: list[Loss] = []
        self.left: list[Tensor] = []

    def take(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
        """The gradient, remembered."""
        if starts_step(model):
            self.calls, self.losses = [], []
        loss = self.gradient(model, objective, batch, step)
        self.calls.append((model, objective, batch, step))
        self.losses.append(loss)
        self.left = [g.clone() for g in gradients(model)]
        return loss

    def again(self, model: nn.Module) -> float:
        """Take the gradient of the same batch at the present weights; returns its mean loss."""
        step = self.calls[0][3]
        clear_gradients(model)
        device = next(model.parameters()).device
        seeds.seed_default_generators(seeds.derive(step.seed, "forward", step.index, step.rank), device)  # same dropout
        with frozen_statistics(model):
            self.losses = [self.gradient(*call) for call in self.calls]
        return self.loss()

    def loss(self) -> float:
        """The mean loss of the batch, over all processes, when the gradient was last taken."""
        data = self.total(sum(float(loss.data) for loss in self.losses))
        return data / self.calls[0][3].items + float(self.losses[-1].penalty)

    def check(self, model: nn.Module) -> None:
        """Refuse a gradient that something has changed since: the search would look at another function.

        Raises:
            RecipeError: it is not what :meth:`take` left.
        """
        now = gradients(model)
        if len(now) != len(self.left) or not all(torch.equal(a, b) for a, b in zip(now, self.left, strict=True)):
            raise RecipeError(
                "a technique changes the gradient after it is taken, and the line search cannot follow that",
                path="optimizer",
                mend="remove clipping and its like from techniques, or use another optimizer than lbfgs",
            )


def searching(update: Update, replay: Replay) -> Update:
    """An update that lets the optimizer take the batch's gradient as often as it wants."""

    def search(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        replay.check(model)
        evaluations = 0

        def closure() -> float:
            nonlocal evaluations
            evaluations += 1
            return replay.loss() if evaluations == 1 else replay.again(model)

        optimizer.step(closure)
        step.log["evaluations"] = evaluations

    return search


def state_bytes(optimizer: torch.optim.LBFGS) -> int:
    """What its state can grow to: steps and changes of the gradient, and three vectors."""
    group = optimizer.param_groups[0]
    vectors = 2 * int(group["history_size"]) + 3
    return sum(vectors * p.numel() * p.element_size() for p in group["params"])


@checked
class LBFGS(Technique):
    """Steps along ``-H g``, where H is built from the last ``history`` steps, as long as a strong-Wolfe search finds.

    Each step makes up to ``iterations`` of these on its batch, and takes the gradient anew for each try (column
    ``evaluations`` of steps.csv). One rate for all parameters, and no weight decay of its own (``l2`` does that).
    Helps small, smooth problems with all samples in one batch, where it is exact to many digits.
    Fails with small batches: the change of the gradient is then one of the batch, not of the weights.
    Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", Math. Programming 1989.
    """

    lr: Annotated[float, Gt(0)] = 1.0
    """First length that the search tries, in units of the quasi-Newton step."""
    iterations: Annotated[int, Ge(1)] = 4
    """Most steps on each batch."""
    evaluations: Annotated[int, Ge(1)] | None = None
    """Most gradients on each batch; null: 5/4 of the iterations, though a search that has begun may pass it."""
    history: Annotated[int, Ge(1)] = 10
    """How many steps H is built from; two numbers a weight each."""
    gradient_tolerance: Annotated[float, Ge(0)] = 1e-7
    """End when no slope is larger."""
    change_tolerance: Annotated[float, Ge(0)] = 1e-9
    """End when neither loss nor weights change by more."""
    line_search: bool = True
    """Search along each direction by the strong Wolfe conditions; if not, go lr."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"optimizer", "gradient", "update"})
    conflicts: ClassVar[dict[str, str]] = {
        "sam": "the line search would look at the loss at w, and SAM's gradient is another one's",
        "asam": "the line search would look at the loss at w, and ASAM's gradient is another one's",
        "drop-connect": "its gradient is taken at other weights than the line search moves",
        "weight-noise": "its gradient is taken at other weights than the line search moves",
        "free-adversarial": "it takes several gradients of a batch, and the line search would see the last alone",
        "gradnorm": "the line search looks at one loss, and GradNorm changes its weights",
        "fp16": "the line search would see the scaled loss; use bf16",
        "parameter-groups": "L-BFGS has one rate for all parameters",
        "layerwise-rates": "L-BFGS has one rate for all parameters",
        "mu-parametrisation": "L-BFGS has one rate for all parameters",
    }
    example: ClassVar[dict[str, Any]] = {"iterations": 2}

    @property
    def exceptions(self) -> Mapping[str, str]:
        """A search decides by small differences."""
        return {"autocast": "the line search follows the rounding of half precision, so the two curves part sooner"}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer, whose update takes the gradient of its batch again."""
        replay = Replay(assembly.gradient, assembly.layout.total)
        return assembly.with_(optimizer=self._make, gradient=replay.take, update=searching(assembly.update, replay))

    def _make(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            [p for p in model.parameters() if p.requires_grad],
            lr=self.lr,
            max_iter=self.iterations,
            max_eval=self.evaluations,
            tolerance_grad=self.gradient_tolerance,
            tolerance_change=self.change_tolerance,
            history_size=self.history,
            line_search_fn="strong_wolfe" if self.line_search else None,
        )
