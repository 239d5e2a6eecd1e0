"""Weights of classes, so that rare ones count as much as frequent ones.

Legend of shapes: ``C`` classes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.objectives.of_truth import balanced_weights, of_truth, replaced


def weighted_cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """``-sum w_y log p_y``, scalar; targets are classes ``(B,)`` or shares of classes ``(B, C)``.

    >>> weighted_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
    tensor(2.7726)
    """
    return of_truth(outputs, targets, torch.neg, weights)


@checked
class ClassWeights(Technique):
    """Multiply each sample's loss by the weight of its class: ``-w_y log p_y``, by default ``w_c = N / (C n_c)``.

    ``n_c`` is counted in the training part. The sum is divided by the number of samples, not by that of weights (as
    torch does), so that pieces of a batch add up; over the training part the mean weight is 1.
    Helps where classes are unequal in number, and all of them matter.
    Fails where probabilities must be those of the real mix of classes: they are shifted to the rare ones. A class of a
    few samples is learned by heart; ``power`` below 1 is milder.
    Source: King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 9, 2001, section 4.2.
    """

    weights: tuple[Annotated[float, Gt(0)], ...] | None = None
    """One for each class, in the order of the data's classes; null takes ``n_c ** -power``, scaled to mean 1."""
    power: Annotated[float, Ge(0), Le(1)] = 1.0
    """1 gives all classes the same sum of weights, 0 all samples the same weight."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    conflicts: ClassVar[dict[str, str]] = {
        "label-smoothing": "both replace the loss",
        "margin-loss": "both replace the loss",
        "balanced-sampling": "rare classes would be counted twice",
    }
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    example: ClassVar[dict[str, Any]] = {"weights": (1.0, 3.0, 0.5)}

    def __post_init__(self) -> None:
        if self.weights is not None and self.power != 1.0:
            raise RecipeError("given together with weights", path="power", mend="keep one of them")

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose loss is weighted."""
        data = assembly.setting.data
        if self.weights is not None and len(self.weights) != len(data.classes):
            raise RecipeError(
                f"got {len(self.weights)} for {len(data.classes)} classes", path="weights", mend="one for each class"
            )
        weights = balanced_weights(data, self.power) if self.weights is None else torch.tensor(self.weights)
        weights = weights.to(assembly.setting.device)
        return assembly.with_(
            objective=replaced(assembly.objective, lambda o, t: weighted_cross_entropy(o, t, weights))
        )
