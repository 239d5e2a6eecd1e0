"""Losses for labels of which some are wrong: generalised cross-entropy, and bootstrapping.

Legend of shapes: ``B`` samples, ``...`` positions, ``C`` classes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.task import at_least_float32
from kingpost.technique import Technique
from kingpost.train.objectives.confidence import entropy
from kingpost.train.objectives.of_truth import CLASSES, IGNORED, of_truth, replaced

ONE_LOSS = "both replace the loss"
OTHERS = dict.fromkeys(("label-smoothing", "margin-loss", "class-weights", "focal-loss", "poly-loss"), ONE_LOSS)


def generalised_cross_entropy(outputs: Tensor, targets: Tensor, q: float) -> Tensor:
    """``sum (1 - p_t^q) / q``, scalar: cross-entropy as ``q`` goes to 0, the mean absolute error at 1.

    >>> float(generalised_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), q=1.0))
    0.5
    """
    return of_truth(outputs, targets, lambda log_p: -(q * log_p).expm1() / q)


def bootstrapped(outputs: Tensor, targets: Tensor, beta: float, kind: Literal["soft", "hard"]) -> Tensor:
    """Cross-entropy with ``beta * label + (1 - beta) * own guess``, scalar.

    Args:
        outputs: ``(B, ..., C)`` raw scores.
        targets: classes ``(B, ...)``, -100 is left out; or shares of classes ``(B, ..., C)``.
        beta: part of the label.
        kind: the guess is the predicted distribution (``soft``), or the likeliest class (``hard``).
    """
    labelled = of_truth(outputs, targets, torch.neg)
    if kind == "soft":
        return beta * labelled + (1 - beta) * entropy(outputs, targets)
    guess = at_least_float32(outputs).argmax(-1)
    if not targets.is_floating_point():
        guess = guess.where(targets != IGNORED, IGNORED)
    return beta * labelled + (1 - beta) * of_truth(outputs, guess, torch.neg)


@checked
class GeneralisedCrossEntropy(Technique):
    """Replace the loss by ``(1 - p_t^q) / q``, ``p_t`` the probability of the labelled class.

    The gradient is that of cross-entropy times ``p_t^q``: samples whose label the net does not believe count less.
    Validation losses are still those of the task.
    Helps where a part of the labels is wrong.
    Fails to learn hard classes on clean labels, and learns slowly from the start, where no label is believed; with many
    classes take a smaller ``q``. (The paper's truncated form, which drops samples, is not here.)
    Source: Zhang and Sabuncu, arXiv 1805.07836.
    """

    q: Annotated[float, Gt(0), Le(1)] = 0.7
    """Near 0 as cross-entropy, at 1 as the mean absolute error."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    conflicts: ClassVar[dict[str, str]] = {**OTHERS, "bootstrapping": ONE_LOSS}
    tasks: ClassVar[tuple[str, ...]] = CLASSES

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this loss."""
        loss = replaced(assembly.objective, lambda o, t: generalised_cross_entropy(o, t, self.q))
        return assembly.with_(objective=loss)


@checked
class Bootstrapping(Technique):
    """Replace targets by ``beta * label + (1 - beta) * own guess`` in the cross-entropy.

    The guess is the predicted distribution (``soft``), through which the gradient also flows, or the likeliest class
    (``hard``). Validation losses are still those of the task.
    Helps where a part of the labels is wrong: the net may disagree.
    Fails at the start, where guesses mean nothing, and lets the net agree with its own mistakes; ``soft`` pushes to
    certainty, the opposite of ``confidence-penalty``.
    Source: Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping", arXiv 1412.6596.
    """

    beta: Annotated[float, Ge(0), Le(1)] = 0.95
    """Part of the label; the paper takes 0.95 for soft and 0.8 for hard guesses."""
    kind: Literal["soft", "hard"] = "soft"
    """What the guess is."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"objective"})
    conflicts: ClassVar[dict[str, str]] = {**OTHERS, "generalised-cross-entropy": ONE_LOSS}
    tasks: ClassVar[tuple[str, ...]] = CLASSES
    example: ClassVar[dict[str, Any]] = {"beta": 0.6}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this loss."""
        loss = replaced(assembly.objective, lambda o, t: bootstrapped(o, t, self.beta, self.kind))
        return assembly.with_(objective=loss)
