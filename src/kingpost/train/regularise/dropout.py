"""Dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Lt
from torch import nn

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique

ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.CELU, nn.PReLU, nn.ReLU6,
    nn.Mish, nn.Softplus, nn.Hardswish,
)  # fmt: skip


def set_dropout(model: nn.Module, p: float) -> int:
    """Set the rate of the model's dropout layers; if it has none, put one after each activation module.

    No parameter changes its name. Returns the number of dropout layers.

    >>> set_dropout(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), p=0.1)
    1
    """
    present = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in present:
        module.p = p
    if present or p == 0:
        return len(present)
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, ACTIVATIONS)
    ]
    for parent, name, child in places:
        setattr(parent, name, nn.Sequential(child, nn.Dropout(p)))
    return len(places)


@checked
class Dropout(Technique):
    """Set each activation to zero with probability ``p`` in training, and scale the rest by ``1 / (1 - p)``.

    Fails before or among batch norms (the variance shifts between training and use) and in nets that are too
    small for the data. Source: Srivastava et al., JMLR 15, 2014.
    """

    p: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability of a zero."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Each piece of a batch draws its own mask."""
        reason = "each piece of a batch draws its own mask, so only the expectation is the same"
        return {"accumulation": reason, "two processes": reason}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model drops activations."""
        if not set_dropout(assembly.model, self.p) and self.p > 0:
            raise RecipeError(
                "the model has neither nn.Dropout nor activation modules after which one could stand",
                mend="add nn.Dropout layers to the model; their rate is then set here",
            )
        return assembly
