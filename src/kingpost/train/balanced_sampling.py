"""Balanced sampling: every class as often as any other."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique


@checked
class BalancedSampling(Technique):
    """Draw training samples so that each class has the same part of an epoch: ``N / C`` samples each.

    All samples of a class are taken once before one is taken twice, in a new order each epoch; of a frequent class some
    are left out, others the next time. An epoch is as long as before. The order follows from (seed, epoch).
    Helps where classes are unequal in number and all of them matter; steadier than ``class-weights``, whose few heavy
    samples make the gradient noisy.
    Fails where probabilities must be those of the real mix of classes, and where a class has a few samples, which are
    then learned by heart. Data must be in memory.
    Source: Japkowicz and Stephen, "The class imbalance problem", Intelligent Data Analysis 6, 2002; Buda, Maki and
    Mazurowski, arXiv 1710.05381.
    """

    touches: ClassVar[frozenset[Slot]] = frozenset({"order"})
    conflicts: ClassVar[dict[str, str]] = {"class-weights": "rare classes would be counted twice"}
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose training passes are balanced."""
        inner = assembly.order
        if not assembly.setting.data.class_counts:
            raise RecipeError(
                "the data does not say how many training samples each class has", mend="use data held in memory"
            )
        return assembly.with_(order=lambda order: dataclasses.replace(inner(order), balanced=True))
