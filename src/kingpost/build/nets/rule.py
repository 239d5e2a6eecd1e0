"""A net that knows rules: any other net, with declared rules as a penalty or as constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Loss, Objective, Slot
from kingpost.build.blocks.logic import Implication, LogicName
from kingpost.build.blocks.rules import Cost, RuleLayer
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size
from kingpost.option import Kind, checked, choose
from kingpost.source import DataFacts, Form
from kingpost.task import at_least_float32
from kingpost.technique import Technique


class RuleNet(nn.Module):
    """A net's scores, and with ``hard`` their correction by rules. Print it to see the rules.

    Args:
        base: gives scores ``(B, C)``.
        rules: the rules.
        hard: correct the scores so that the likeliest outputs satisfy the rules.

    >>> rules = RuleLayer(["age < 18 -> child"], outputs=["child", "adult"], features=["age"])
    >>> net = RuleNet(nn.Linear(1, 2), rules, hard=True)
    >>> net(torch.tensor([[5.0], [17.0]])).argmax(1)
    tensor([0, 0])
    """

    def __init__(self, base: nn.Module, rules: RuleLayer, hard: bool = False) -> None:
        super().__init__()
        if hard:
            rules.check_enforceable()
        self.base, self.rules, self.hard = base, rules, hard

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scores ``(B, C)``."""
        scores: Tensor = self.base(*inputs)
        return self.rules.enforced(inputs[0].flatten(1), at_least_float32(scores)) if self.hard else scores

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of classes (softmax) or labels (sigmoid), ``(B, C)``."""
        scores = at_least_float32(scores)
        return scores.softmax(-1) if self.rules.exclusive else scores.sigmoid()


def with_rules(objective: Objective, net: RuleNet, strength: float) -> Objective:
    """An objective with ``strength`` times the mean cost of the rules added."""

    def add(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        costs = net.rules.penalty(batch.inputs[0].flatten(1), net.probabilities(loss.outputs))
        # Scaled to items, so that the mean loss gets the mean cost over samples, whatever an item is.
        loss.data = loss.data + strength * costs.sum() * (loss.items / len(batch))
        return loss

    return add


@checked
class Rule(Net):
    """Fills ``model`` with a net whose outputs should satisfy declared rules, and adds their violation to the loss.

    Rules need no labels; where labels are few they stand for some. They speak of features in their own units, by the
    names of the columns, and of classes: ``"age < 17 -> '<=50K'"``. A rule that is false costs accuracy where labels
    are many: look at the mean truths (print the model, or its ``rules.report``). Source: Diligenti, Gori and Sacca,
    "Semantic-based regularization", 2017; Xu et al., "A Semantic Loss Function", arXiv 1711.11157; van Krieken et al.,
    arXiv 2002.06100.
    """

    rules: tuple[str, ...]
    """Such as ``"age < 17 -> '<=50K'"``, ``"exactly one of (a, b, c)"``, ``"degree = PhD -> p(rich) >= 0.5"``."""
    base: Annotated[Technique, Kind("model")] = field(default_factory=lambda: _net("mlp"))
    """The net that gives the scores."""
    strength: Annotated[float, Ge(0)] = 1.0
    """Factor on the mean cost of the rules, in units of the mean loss."""
    weights: tuple[Annotated[float, Ge(0)], ...] = ()
    """Of each rule; empty is 1 for all."""
    cost: Cost = "linear"
    """Of a rule: ``linear`` is 1 - truth, ``log`` is -ln truth."""
    hard: bool = False
    """Correct the outputs so that the likeliest satisfy the rules."""
    logic: LogicName = "product"
    """What 'and', 'or' and 'not' mean between 0 and 1."""
    implication: Implication = "strong"
    """``strong``, not a or b; or ``residuum``, the largest c with 'a and c' at most b."""
    softness: Annotated[float, Ge(0)] = 0.0
    """Width of the edge in comparisons of features, in standard deviations; 0 is sharp."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model", "objective"})
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label")
    reads: ClassVar[tuple[Form, ...]] = ("features", "table", "image")
    sizes: ClassVar[Mapping[str, Size]] = {
        "default": Size(
            data=DataFacts(task="classification", inputs=(((16,), torch.float32),), classes=("a", "b", "c")),
            fields={"rules": ("a -> not b",)},
        )
    }
    paper: ClassVar[str] = "Diligenti et al. 2017; Xu et al., arXiv 1711.11157; van Krieken et al., arXiv 2002.06100"
    example: ClassVar[Mapping[str, object]] = {
        "rules": ("not (b and c)", "p(a) >= 0.2", "exactly one of (a, b, c)"),
        "base": {"name": "mlp", "widths": [16]},
        "strength": 0.5,
    }

    def check_form(self, data: DataFacts) -> None:
        """What can be read is the business of the net below."""
        self._base().check_form(data)

    def make(self, data: DataFacts, outputs: int) -> RuleNet:
        """The network, sized to the data."""
        if len(data.classes) != outputs:
            raise RecipeError(
                f"rules are about classes or labels, but this data has {len(data.classes)} names for {outputs} outputs",
                path="rules",
                mend="use data with classes",
            )
        count = math.prod(data.inputs[0][0])
        named = len(data.features) >= count
        features = data.features[:count] if named else tuple(f"x{index}" for index in range(count))
        layer = RuleLayer(
            self.rules,
            data.classes,
            features,
            data.scales[:count],
            self.logic,
            self.implication,
            self.softness,
            self.weights,
            self.cost,
            exclusive=data.task != "multi-label",
        )
        return RuleNet(self._base().make(data, outputs), layer, self.hard)

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the net, and with the rules in its objective."""
        mounted = super().mount(assembly)
        assert isinstance(mounted.model, RuleNet)
        return mounted.with_(objective=with_rules(mounted.objective, mounted.model, self.strength))

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """What the net below derives."""
        return tuple(Figure(f"base: {f.name}", f.value, f.unit, f.reason) for f in self._base().derived(data))

    def _base(self) -> Net:
        if not isinstance(self.base, Net):
            raise RecipeError(f"'{self.base.name}' is no net of kingpost's", path="base", mend="use mlp or cnn")
        return self.base


def _net(name: str) -> Net:
    net = choose("model", name)
    assert isinstance(net, Net)
    return net
