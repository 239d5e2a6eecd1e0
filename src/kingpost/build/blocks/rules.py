"""The rule layer: declared rules, how true they are of a batch, what their violation costs, and enforcing them.

Legend of shapes: ``B`` samples, ``F`` features, ``C`` outputs, ``R`` rules, ``A`` assignments of the outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kingpost.build.blocks.formulas import Formula, Values, Vocabulary
from kingpost.build.blocks.logic import Implication, Logic, LogicName
from kingpost.build.blocks.rule_language import parse
from kingpost.errors import RecipeError

Cost = Literal["linear", "log"]

SMALLEST_TRUTH = 1e-6
FORBIDDEN_BELOW = 20.0  # nats below the least likely class that is allowed: never chosen, and still finite
MOST_LABELS = 12


@dataclass(frozen=True)
class RuleReport:
    """What rules say of samples.

    Args:
        rules: their texts.
        truths: mean truth of each, of the probabilities as they are.
        violations: how many samples violate each, when the likeliest outputs are taken as said.
        samples: how many there are.
    """

    rules: tuple[str, ...]
    truths: tuple[float, ...]
    violations: tuple[int, ...]
    samples: int

    def __str__(self) -> str:
        lines = [f"{'mean truth':>10} {'violated by':>12}   rule ({self.samples:,} samples)"]
        for rule, truth, count in zip(self.rules, self.truths, self.violations, strict=True):
            lines.append(f"{truth:>10.4f} {count:>12,}   {rule}")
        return "\n".join(lines)


class RuleLayer(nn.Module):
    """Rules over named features and outputs; has no weights. See ``rule_language`` for how to write them.

    Args:
        rules: texts.
        outputs: names of classes or labels, ``C``.
        features: names of the columns of the input, ``F``.
        scales: mean and standard deviation that each feature was scaled with, so that rules speak in own units.
        logic: what the connectives mean between 0 and 1.
        implication: ``strong`` (not a or b) or ``residuum``.
        softness: width of the edge in comparisons of features, in standard deviations; 0 is sharp.
        weights: of each rule in the penalty; empty is 1 for all.
        cost: ``linear``, ``1 - truth``, or ``log``, ``-ln truth``.
        exclusive: outputs are classes, of which exactly one is true; else labels.

    Raises:
        RecipeError: a text is no rule, or holds an unknown name.

    >>> layer = RuleLayer(["age < 18 -> child"], outputs=["child", "adult"], features=["age"])
    >>> layer(torch.tensor([[10.0], [30.0]]), torch.tensor([[0.25, 0.75], [0.25, 0.75]]))
    tensor([[0.2500],
            [1.0000]])
    """

    def __init__(
        self,
        rules: Sequence[str],
        outputs: Sequence[str],
        features: Sequence[str] = (),
        scales: Sequence[tuple[float, float]] = (),
        logic: LogicName = "product",
        implication: Implication = "strong",
        softness: float = 0.0,
        weights: Sequence[float] = (),
        cost: Cost = "linear",
        exclusive: bool = True,
    ) -> None:
        super().__init__()
        self.rules, self.outputs, self.cost, self.exclusive = tuple(rules), tuple(outputs), cost, exclusive
        if not self.rules:
            raise RecipeError(
                "needs at least one rule, got none", path="rules", mend='for example ["age < 18 -> child"]'
            )
        if weights and len(weights) != len(rules):
            raise RecipeError(f"got {len(weights)} for {len(rules)} rules", path="weights", mend="give one a rule")
        self.weights = tuple(map(float, weights)) or (1.0,) * len(self.rules)
        self.logic = Logic(logic, implication)
        soft = Vocabulary(self.outputs, tuple(features), tuple(scales), softness)
        self.formulas = tuple(_parsed(rules, soft))
        sharp = Vocabulary(self.outputs, tuple(features), tuple(scales))
        self.sharp = tuple(_parsed(rules, sharp))

    def forward(self, features_bf: Tensor, outputs_bc: Tensor) -> Tensor:
        """How true each rule is, ``(B, R)``, of features as the model sees them and of probabilities."""
        values = Values(features_bf, outputs_bc, self.logic)
        truths = [formula.truth(values) for formula in self.formulas]
        shape = torch.broadcast_shapes(*(truth.shape for truth in truths))  # type: ignore[no-untyped-call]
        return torch.stack([truth.expand(shape) for truth in truths], -1)

    def penalty(self, features_bf: Tensor, outputs_bc: Tensor) -> Tensor:
        """The weighted cost of all rules for each sample, ``(B,)``; 0 where all hold."""
        truths = self(features_bf, outputs_bc)
        costs = 1 - truths if self.cost == "linear" else -truths.clamp(min=SMALLEST_TRUTH).log()
        weights = torch.tensor(self.weights, dtype=costs.dtype, device=costs.device)
        penalty_b: Tensor = (costs * weights).sum(-1)
        return penalty_b

    def enforced(self, features_bf: Tensor, scores_bc: Tensor) -> Tensor:
        """Scores (raw outputs) ``(B, C)`` whose likeliest outputs satisfy the rules as far as that is possible.

        All assignments of the outputs (classes: one true; labels: any) are tried. Those that violate the least, by
        weight, are allowed; the others are not. Classes that are not allowed get a score 20 below the lowest allowed
        one; labels take the likeliest allowed assignment, and where it differs their score changes its sign.

        Raises:
            RecipeError: a rule is about probabilities ``p(...)``, or there are more than 12 labels.
        """
        self.check_enforceable()
        assignments_ac = self._assignments(scores_bc)
        values = Values(features_bf.unsqueeze(1), assignments_ac.unsqueeze(0), self.logic)
        violated_ba = sum(
            (weight * (1 - formula.truth(values)) for weight, formula in zip(self.weights, self.sharp, strict=True)),
            scores_bc.new_zeros(scores_bc.shape[0], assignments_ac.shape[0]),
        )
        allowed_ba = violated_ba <= violated_ba.amin(1, keepdim=True) + 1e-6
        if self.exclusive:
            lowest = scores_bc.masked_fill(~allowed_ba, float("inf")).amin(1, keepdim=True)
            return torch.minimum(scores_bc, lowest - FORBIDDEN_BELOW).where(~allowed_ba, scores_bc)
        fit_ba = (scores_bc @ assignments_ac.T).masked_fill(~allowed_ba, -float("inf"))
        wanted_bc = assignments_ac[fit_ba.argmax(1)]
        return torch.where((scores_bc > 0) == (wanted_bc > 0.5), scores_bc, -scores_bc)

    def check_enforceable(self) -> None:
        """Refuse rules that no choice of outputs can satisfy or violate.

        Raises:
            RecipeError: a rule is about probabilities, or there are too many labels to try all assignments.
        """
        for index, (text, formula) in enumerate(zip(self.rules, self.sharp, strict=True)):
            if formula.is_of_probabilities():
                raise RecipeError(
                    f'"{text}" is about a probability, which cannot be enforced by choosing outputs',
                    path=f"rules.{index}",
                    mend="name the class without p(...), or use the rule as a penalty only",
                )
        if not self.exclusive and len(self.outputs) > MOST_LABELS:
            raise RecipeError(
                f"{len(self.outputs)} labels have too many assignments to try",
                path="hard",
                mend=f"at most {MOST_LABELS}",
            )

    def report(self, features_bf: Tensor, outputs_bc: Tensor) -> RuleReport:
        """Mean truths, and how many samples violate each rule; of probabilities ``(B, C)``.

        A rule about probabilities ``p(...)`` is violated where it is not quite true; any other where it is false of the
        likeliest outputs.
        """
        with torch.no_grad():
            truths = self(features_bf, outputs_bc).double()
            if self.exclusive:
                said = nn.functional.one_hot(outputs_bc.argmax(1), len(self.outputs)).to(outputs_bc.dtype)
            else:
                said = (outputs_bc > 0.5).to(outputs_bc.dtype)
            counts = []
            for formula in self.sharp:
                of_probabilities = formula.is_of_probabilities()
                values = Values(features_bf, outputs_bc if of_probabilities else said, self.logic)
                limit = 1 - SMALLEST_TRUTH if of_probabilities else 0.5
                counts.append(int((formula.truth(values).expand(len(outputs_bc)) < limit).sum()))
        return RuleReport(self.rules, tuple(truths.mean(0).tolist()), tuple(counts), len(outputs_bc))

    def extra_repr(self) -> str:
        """The rules, for printing."""
        lines = [f"logic={self.logic.name}, implication={self.logic.implication}, cost={self.cost}"]
        return "\n".join([*lines, *(f"{w:g} x  {rule}" for w, rule in zip(self.weights, self.rules, strict=True))])

    def _assignments(self, like: Tensor) -> Tensor:
        """All that the outputs can say, ``(A, C)`` of 0 and 1."""
        if self.exclusive:
            return torch.eye(len(self.outputs), dtype=like.dtype, device=like.device)
        every = list(itertools.product((0.0, 1.0), repeat=len(self.outputs)))
        return torch.tensor(every, dtype=like.dtype, device=like.device)


def _parsed(rules: Sequence[str], vocabulary: Vocabulary) -> list[Formula]:
    formulas = []
    for index, text in enumerate(rules):
        try:
            formulas.append(parse(text, vocabulary))
        except RecipeError as error:
            raise error.under(f"rules.{index}") from None
    return formulas
