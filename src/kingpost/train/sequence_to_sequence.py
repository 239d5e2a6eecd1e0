"""The task of translating: one sequence of tokens is read, another is written.

Legend of shapes: ``B`` samples, ``S`` source positions, ``T`` target positions, ``V`` tokens of the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Batch
from kingpost.errors import MissingExtraError, RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset
from kingpost.task import Task, at_least_float32, check_shapes


@runtime_checkable
class Writer(Protocol):
    """A net that can write without being shown the target."""

    def generate(self, source: Tensor, *, begin: int, end: int, length: int, beams: int) -> Tensor:
        """Tokens ``(B, <= length)`` int64 for sources ``(B, S)``; after the first ``end``, anything may stand."""


@checked
class SequenceToSequence(Task):
    """The next token of the target, given the source and the true tokens before it: cross-entropy in nats per token.

    Outputs ``(B, T, V)`` raw scores; targets ``(B, T)`` int64, where -100 is left out. At the end, and by ``predict``,
    the model writes whole sentences by itself, and BLEU compares them with the true ones.
    """

    beams: Annotated[int, Ge(1)] = 1
    """Sentences that are followed up at once when writing; 1 takes the likeliest token each time."""

    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    target_dtype: ClassVar[torch.dtype | None] = torch.int64
    one_by_one: ClassVar[bool] = False
    writes: ClassVar[bool] = True

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, summed over the positions that count."""
        check_shapes(outputs, targets, outputs.shape[:2])
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)

    def items(self, targets: Tensor) -> int:
        """Positions that count."""
        return int((targets != -100).sum())

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One score a token of the target's vocabulary."""
        return data.target_vocabulary or data.vocabulary

    def metrics(self, data: DataFacts) -> Mapping[str, Any]:
        """Accuracy of the likeliest token, with the true tokens before it."""
        from torchmetrics.classification import MulticlassAccuracy

        return {"token_accuracy": MulticlassAccuracy(self.outputs_per_sample(data), average="micro", ignore_index=-100)}

    def predictions(self, outputs: Tensor) -> Tensor:
        """Raw scores with the tokens on axis 1, ``(B, V, T)``."""
        return at_least_float32(outputs).transpose(1, 2)

    def chance_loss(self, data: DataFacts) -> float | None:
        """``ln V``."""
        return math.log(self.outputs_per_sample(data))

    def generate(self, model: nn.Module, batch: Batch, dataset: Dataset) -> list[str]:
        """A sentence for each source.

        Raises:
            RecipeError: the model cannot write, or the data does not say with which tokens sentences begin and end.
        """
        facts = dataset.facts
        if not isinstance(model, Writer):
            raise RecipeError(
                f"{type(model).__name__} has no generate(source, *, begin, end, length, beams), so it cannot write",
                path="model",
                mend="give it one, or take another model",
            )
        if facts.begin is None or facts.end is None:
            raise RecipeError("the data names no tokens at which a sentence begins and ends", path="data")
        longest = facts.target_shape[0]
        written = model.generate(batch.inputs[0], begin=facts.begin, end=facts.end, length=longest, beams=self.beams)
        return [_sentence(row, facts, dataset) for row in written.tolist()]

    def text_scores(self, written: Sequence[str], wanted: Sequence[str]) -> Mapping[str, tuple[float, str]]:
        """BLEU over all sentences together, 0..100, with sacreBLEU's signature.

        Source: Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002; Post, "A
        call for clarity in reporting BLEU scores", 2018.

        Raises:
            MissingExtraError: sacrebleu is not installed.
        """
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError as error:
            raise MissingExtraError("sacrebleu", extra="text", purpose="BLEU") from error
        measure = BLEU()
        score = measure.corpus_score(list(written), [list(wanted)])
        return {"bleu": (float(score.score), str(measure.get_signature()))}


def _sentence(row: Sequence[int], facts: DataFacts, dataset: Dataset) -> str:
    """The text before the first token that ends a sentence; numbers, if the data has no words for them."""
    tokens = list(row)
    tokens = tokens[: tokens.index(facts.end)] if facts.end in tokens else tokens
    kept = [token for token in tokens if token not in (facts.begin, facts.padding)]
    return dataset.decode(kept) if dataset.decode else " ".join(map(str, kept))
