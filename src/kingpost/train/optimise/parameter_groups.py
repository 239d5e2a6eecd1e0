"""Learning rates and weight decay by the names of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import nn

from kingpost.assembly import Assembly, OptimizerFactory, Slot
from kingpost.errors import RecipeError, nearest
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.optimise.groups import split_groups


def factor_of(name: str, factors: Mapping[str, float]) -> float:
    """The factor of the last pattern that fits a name; 1 if none does.

    >>> factor_of("head.weight", {"*": 0.1, "head.*": 2.0})
    2.0
    """
    return next((factor for pattern, factor in reversed(list(factors.items())) if fnmatchcase(name, pattern)), 1.0)


def grouped(make: OptimizerFactory, rates: Mapping[str, float], decays: Mapping[str, float]) -> OptimizerFactory:
    """A factory whose optimizer has other rates and weight decay for parameters whose names fit a pattern.

    Raises:
        RecipeError: a pattern fits no trained parameter.
    """

    def made(model: nn.Module) -> torch.optim.Optimizer:
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        for key, patterns in (("lr", rates), ("weight_decay", decays)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise RecipeError(
                        f"no trained parameter is called '{pattern}'",
                        path=f"techniques.parameter-groups.{key}",
                        mend=nearest(pattern, names),
                    )
        return split_groups(make(model), model, lambda name: (factor_of(name, rates), factor_of(name, decays)))

    return made


@checked
class ParameterGroups(Technique):
    """Multiply learning rate and weight decay where a name fits a pattern: ``lr_p = lr * factor``.

    Patterns are those of file names (``head.*``, ``*.bias``); the last one that fits counts. Helps to train a new head
    faster than a net that was trained before. Fails to make a vector decay, since the optimizer leaves vectors out
    before the factor. A pattern that fits nothing is an error, with the nearest names.
    Source: common practice; torch.optim calls them parameter groups.
    """

    lr: dict[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """Factors on the learning rate, by pattern."""
    weight_decay: dict[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    """Factors on the weight decay, by pattern."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"optimizer"})
    neutral: ClassVar[dict[str, Any]] = {"lr": {}, "weight_decay": {}}
    example: ClassVar[dict[str, Any]] = {"lr": {"*": 0.5, "*bias": 2.0}}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose optimizer has these groups."""
        return assembly.with_(optimizer=grouped(assembly.optimizer, self.lr, self.weight_decay))
