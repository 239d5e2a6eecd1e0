"""Gradual unfreezing: the last layers learn first, the others join one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import nn

from kingpost.assembly import Assembly, Slot, Step, Update
from kingpost.errors import RecipeError
from kingpost.net import head_of
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.transfer.freeze import named_by


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Names of a model's parameters from its input to its head; lists and sequences of modules count one by one.

    >>> layer_groups(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
    [['0.weight', '0.bias'], ['2.weight', '2.bias']]
    """
    containers = {path for path, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and path}
    groups: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")[:-1]
        first = parts[0] if parts else ""
        place = ".".join(parts[:2]) if first in containers else first
        groups.setdefault(place, []).append(name)
    head = head_of(model)
    own = [name for names in groups.values() for name in names if name.startswith(f"{head}.")]
    rest = [[name for name in names if name not in own] for names in groups.values()]
    return [*(names for names in rest if names), *([own] if own else [])]


def waiting(groups: int, step: int, total_steps: int, span: float) -> int:
    """How many groups, counted from the input, are still frozen at a step.

    The last one is trained from the start; each next one joins after another ``1 / (groups - 1)`` of ``span``.

    >>> [waiting(3, step, 8, 0.5) for step in range(8)]
    [2, 2, 1, 1, 0, 0, 0, 0]
    """
    if groups < 2 or span == 0:
        return 0
    joined = int((step + 1e-9) * (groups - 1) / (span * total_steps))
    return max(0, groups - 1 - joined)


def unfreezing(update: Update, groups: Sequence[Sequence[str]], total_steps: int, span: float) -> Update:
    """An update that forgets the gradients of groups whose time has not come.

    An optimizer passes over parameters without a gradient: neither weight decay nor momentum moves them, and their
    state is made when they join. All follows from the number of the step, so there is nothing to restore.
    """

    def update_some(model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> None:
        frozen = waiting(len(groups), step.index, total_steps, span)
        step.log["groups_trained"] = float(len(groups) - frozen)
        named = dict(model.named_parameters())
        for group in groups[:frozen]:
            for name in group:
                named[name].grad = None
        update(model, optimizer, step)

    return update_some


def _for_late_comers(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same; torch's fused SGD cannot mix parameters that have a momentum with such that have none yet."""
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            group["fused"] = False
    return optimizer


@checked
class GradualUnfreezing(Technique):
    """Train the head first; one group of layers after another joins it, until all learn: ``g_k = 0`` for ``t < t_k``.

    Helps when a net starts from another run's weights: a head that begins at random sends gradients that would
    spoil the features below it. Costs no less time than full training, since gradients are computed and dropped.
    Fails in short runs, whose early layers then hardly learn, and does harm to a net that starts from nothing.
    Source: Howard and Ruder, "Universal Language Model Fine-tuning", arXiv 1801.06146, section 3.3.
    """

    span: Annotated[float, Ge(0), Le(1)] = 0.5
    """Part of all steps after which the whole net is trained; the groups join at equal distances."""
    groups: tuple[tuple[str, ...], ...] | None = None
    """Patterns of each group's parameters, from the input on; what none names joins the first. Null: the layers."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update", "optimizer"})
    after: ClassVar[tuple[str, ...]] = ("clip",)
    neutral: ClassVar[dict[str, Any]] = {"span": 0.0}
    example: ClassVar[dict[str, Any]] = {"span": 0.7}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose update leaves out groups that wait."""
        groups = layer_groups(assembly.model) if self.groups is None else self._named(assembly.model)
        if len(groups) < 2:
            raise RecipeError(f"found {len(groups)} group of layers, so nothing could join later", path="groups")
        make = assembly.optimizer

        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            return _for_late_comers(make(model)) if self.span else make(model)

        update = unfreezing(assembly.update, groups, assembly.setting.total_steps, self.span)
        return assembly.with_(update=update, optimizer=optimizer)

    def _named(self, model: nn.Module) -> list[list[str]]:
        names = [name for name, _ in model.named_parameters()]
        found = [named_by(names, patterns, f"groups.{index}") for index, patterns in enumerate(self.groups or ())]
        last = {name: index for index, group in enumerate(found) for name in group}
        return [[name for name in names if last.get(name, 0) == index] for index in range(len(found))]
