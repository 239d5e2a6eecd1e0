"""Formulas about features and outputs, evaluated on batches: what rules are made of.

Legend of shapes: ``F`` features, ``C`` outputs; the axes before them are the batch's, and broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kingpost.build.blocks.logic import Logic

ROUNDING = 1e-6  # of a scaled feature that is scaled back, as a part of its size


@dataclass(frozen=True)
class Vocabulary:
    """What the names in rules stand for.

    Args:
        outputs: names of classes or labels.
        features: names of the columns of the input; one of a category is ``column=category``.
        scales: mean and standard deviation that each feature was scaled with; empty if none was.
        softness: width of a comparison of features, in standard deviations; 0 is a sharp edge.
    """

    outputs: tuple[str, ...]
    features: tuple[str, ...] = ()
    scales: tuple[tuple[float, float], ...] = ()
    softness: float = 0.0

    def scale(self, index: int) -> tuple[float, float]:
        """Mean and standard deviation of a feature."""
        return self.scales[index] if self.scales else (0.0, 1.0)


@dataclass(frozen=True)
class Values:
    """What a formula is evaluated on: features ``(..., F)``, truths of outputs ``(..., C)``, and the logic."""

    features: Tensor
    outputs: Tensor
    logic: Logic


class Formula:
    """Base of all formulas."""

    def truth(self, values: Values) -> Tensor:
        """Between 0 and 1, of the shape of the values without their last axis."""
        return self._truth(values)

    def is_of_probabilities(self) -> bool:
        """Whether it speaks of probabilities themselves, ``p(...)``."""
        return self._names_probabilities() or any(part.is_of_probabilities() for part in self._parts())

    def _truth(self, values: Values) -> Tensor:
        raise NotImplementedError

    def _parts(self) -> tuple[Formula, ...]:
        return ()

    def _names_probabilities(self) -> bool:
        return False


@dataclass(frozen=True)
class Constant(Formula):
    """``true`` or ``false``."""

    value: bool

    def _truth(self, values: Values) -> Tensor:
        return torch.full_like(values.outputs[..., 0], float(self.value))


@dataclass(frozen=True)
class Output(Formula):
    """A class or label."""

    index: int

    def _truth(self, values: Values) -> Tensor:
        return values.outputs[..., self.index]


@dataclass(frozen=True)
class Indicator(Formula):
    """A feature that is 0 or 1."""

    index: int

    def _truth(self, values: Values) -> Tensor:
        return values.features[..., self.index].clamp(0, 1).to(values.outputs.dtype)


@dataclass(frozen=True)
class Not(Formula):
    """``1 - a``."""

    inner: Formula

    def _truth(self, values: Values) -> Tensor:
        return 1 - self.inner.truth(values)

    def _parts(self) -> tuple[Formula, ...]:
        return (self.inner,)


@dataclass(frozen=True)
class Pair(Formula):
    """Two formulas and what is between them: ``and``, ``or``, ``->`` or ``<->``."""

    sign: str
    left: Formula
    right: Formula

    def _truth(self, values: Values) -> Tensor:
        a, b, logic = self.left.truth(values), self.right.truth(values), values.logic
        if self.sign == "and":
            return logic.both(a, b)
        if self.sign == "or":
            return logic.either(a, b)
        if self.sign == "->":
            return logic.implies(a, b)
        return logic.both(logic.implies(a, b), logic.implies(b, a))

    def _parts(self) -> tuple[Formula, ...]:
        return (self.left, self.right)


@dataclass(frozen=True)
class Counted(Formula):
    """``exactly``, ``at least`` or ``at most`` so many of several formulas."""

    kind: str
    count: int
    inner: tuple[Formula, ...]

    def _truth(self, values: Values) -> Tensor:
        truths, logic = [part.truth(values) for part in self.inner], values.logic
        if self.kind == "least":
            return logic.at_least(self.count, truths)
        most = 1 - logic.at_least(self.count + 1, truths)
        if self.kind == "most":
            return most
        if logic.name == "product":  # 'at least' and 'at most' are not independent: the chance of exactly so many
            return logic.at_least(self.count, truths) - logic.at_least(self.count + 1, truths)
        return logic.both(logic.at_least(self.count, truths), most)

    def _parts(self) -> tuple[Formula, ...]:
        return self.inner


@dataclass(frozen=True)
class Term:
    """``factor`` times a feature in its own unit, or times the truth of an output."""

    factor: float
    of_feature: bool
    index: int
    probability: bool = False


@dataclass(frozen=True)
class Sum:
    """Terms and a constant."""

    terms: tuple[Term, ...] = ()
    constant: float = 0.0

    def less(self, other: Sum) -> Sum:
        """``self - other``."""
        turned = tuple(Term(-t.factor, t.of_feature, t.index, t.probability) for t in other.terms)
        return Sum(self.terms + turned, self.constant - other.constant)


@dataclass(frozen=True)
class Comparison(Formula):
    """``sum sign 0``.

    Of features alone: 1 or 0, or with softness ``sigmoid(sum / (softness * spread))``; 0 if a feature in it is missing.
    With outputs in it: 1 where it holds, and less by as much as it is violated, ``max(0, 1 - violation)``.
    """

    sum: Sum
    sign: str
    vocabulary: Vocabulary = field(repr=False)

    def _truth(self, values: Values) -> Tensor:
        total = torch.full_like(values.outputs[..., 0], self.sum.constant)
        size = torch.full_like(total, abs(self.sum.constant))
        spread, missing = 0.0, []
        for term in self.sum.terms:
            if not term.of_feature:
                total = total + term.factor * values.outputs[..., term.index]
                continue
            mean, std = self.vocabulary.scale(term.index)
            part = term.factor * (values.features[..., term.index] * std + mean)
            total, size, spread = total + part, size + part.abs(), spread + abs(term.factor) * std
            size = size + abs(term.factor * mean)
            name = f"{self.vocabulary.features[term.index]} is missing"
            missing += [self.vocabulary.features.index(name)] if name in self.vocabulary.features else []
        truth = self._of_outputs(total) if self._has_outputs() else self._of_features(total, size, spread)
        for index in missing:
            truth = truth * (1 - values.features[..., index])
        return truth.to(values.outputs.dtype)

    def _names_probabilities(self) -> bool:
        return any(term.probability for term in self.sum.terms)

    def _has_outputs(self) -> bool:
        return any(not term.of_feature for term in self.sum.terms)

    def _of_outputs(self, total: Tensor) -> Tensor:
        if self.sign in ("=", "!="):
            equal = (1 - total.abs()).clamp(min=0)
            return equal if self.sign == "=" else 1 - equal
        return (1 - (total if self.sign in ("<", "<=") else -total).clamp(min=0)).clamp(min=0)

    def _of_features(self, total: Tensor, size: Tensor, spread: float) -> Tensor:
        rounding = ROUNDING * size
        if self.sign in ("=", "!="):
            equal = total.abs() <= rounding
            return (equal if self.sign == "=" else ~equal).to(total.dtype)
        upwards = total if self.sign in (">", ">=") else -total
        if self.vocabulary.softness > 0:
            return (upwards / (self.vocabulary.softness * spread)).sigmoid()
        return (upwards >= -rounding if len(self.sign) == 2 else upwards > rounding).to(total.dtype)
