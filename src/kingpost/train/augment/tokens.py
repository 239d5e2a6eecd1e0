"""Noise on sequences of tokens: dropped, swapped and replaced ones.

Padding, and the tokens that begin and end a sequence, are never touched and never drawn. Of pairs of sequences, only
the source is changed.

Legend of shapes: ``B`` sequences, ``T`` positions.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from kingpost.assembly import Batch, Step
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Form
from kingpost.train.augment.augmentation import Augmentation, uniform, whole, with_first

SEQUENCES: tuple[Form, ...] = ("tokens", "token-pair")


def words(tokens_bt: Tensor, data: DataFacts) -> Tensor:
    """Where a token stands for something: neither padding nor the beginning or end; ``(B, T)`` bool.

    >>> facts = DataFacts(task="classification", inputs=(((4,), torch.int64),), vocabulary=9, padding=0, end=2)
    >>> words(torch.tensor([[5, 6, 2, 0]]), facts).tolist()
    [[True, True, False, False]]
    """
    found = torch.ones_like(tokens_bt, dtype=torch.bool)
    for special in (data.padding, data.begin, data.end):
        if special is not None:
            found &= tokens_bt != special
    return found


def drop_tokens(tokens_bt: Tensor, words_bt: Tensor, drawn_bt: Tensor, p: float, by: int) -> Tensor:
    """Words replaced by ``by`` where the number drawn is below ``p``; each sequence keeps at least one word.

    Args:
        tokens_bt: sequences.
        words_bt: what may be replaced, bool.
        drawn_bt: in [0, 1); the word with the largest one always stays.
        p: probability.
        by: the token that comes instead.
    """
    mine = drawn_bt.masked_fill(~words_bt, -1.0)
    last = mine == mine.amax(1, keepdim=True)
    return tokens_bt.masked_fill(words_bt & (drawn_bt < p) & ~last, by)


def swap_words(tokens_bt: Tensor, words_bt: Tensor, offset_b: Tensor, chosen_bt: Tensor) -> Tensor:
    """Neighbours exchanged: positions ``t`` and ``t + 1`` for ``t = offset, offset + 2, ...``.

    Args:
        tokens_bt: sequences.
        words_bt: what may move, bool; a pair is exchanged only if both may.
        offset_b: 0 or 1, where each sequence's first pair begins.
        chosen_bt: whether the pair that begins here is exchanged, bool.
    """
    places = torch.arange(tokens_bt.shape[1], device=tokens_bt.device)
    both = words_bt & words_bt.roll(-1, 1) & (places < tokens_bt.shape[1] - 1)
    begins = both & chosen_bt & ((places - offset_b[:, None]) % 2 == 0) & (places >= offset_b[:, None])
    ends = begins.roll(1, 1)
    return torch.where(begins, tokens_bt.roll(-1, 1), torch.where(ends, tokens_bt.roll(1, 1), tokens_bt))


def unigram_noise(tokens_bt: Tensor, words_bt: Tensor, chosen_bt: Tensor, drawn_bt: Tensor) -> Tensor:
    """Chosen words replaced by words drawn from all words of the batch, each place equally likely.

    Args:
        tokens_bt: sequences.
        words_bt: what may be replaced and drawn, bool.
        chosen_bt: what is replaced if it is a word, bool.
        drawn_bt: in [0, 1), which word of the batch comes instead.
    """
    all_words = tokens_bt.flatten()[words_bt.flatten().long().argsort(descending=True, stable=True)]
    count = words_bt.sum()
    picked = all_words[(drawn_bt * count).long().clamp(max=(count - 1).clamp(min=0))]
    return torch.where(words_bt & chosen_bt, picked, tokens_bt)


@checked
class TokenDropout(Augmentation):
    """Replace each word with probability ``p`` by the padding token, or by the token ``by``; one word always stays.

    Nets with attention and recurrent nets skip or read past padding, so the word is gone. Helps where classifiers lean
    on single words. Fails where a single word decides ("not"). Source: Iyyer et al., "Deep Unordered Composition Rivals
    Syntactic Methods", ACL 2015 (word dropout); Xie et al., arXiv 1703.02573 ("blank noising").
    """

    p: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability of each word."""
    by: Annotated[int, Ge(0)] | None = None
    """The token that comes instead (in text-lines of words, 1 is <unknown>); null takes the padding token."""

    reads: ClassVar[tuple[Form, ...]] = SEQUENCES
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    example: ClassVar[dict[str, Any]] = {"p": 0.4}
    example_model: ClassVar[str] = "encoder"

    def check(self, data: DataFacts) -> None:
        """There must be a token to put there."""
        if self.by is None and data.padding is None:
            raise RecipeError("this data has no padding token", path="by", mend="name a token that comes instead")
        if self.by is not None and self.by >= data.vocabulary:
            raise RecipeError(f"got {self.by}", path="by", mend=f"the tokens are 0..{data.vocabulary - 1}")

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Sequences with fewer words."""
        tokens = batch.inputs[0]
        by = self.by if self.by is not None else data.padding
        assert by is not None
        drawn = uniform(step, "token-dropout", batch, tokens.shape[1])
        return with_first(batch, drop_tokens(tokens, words(tokens, data), drawn, self.p, by))


@checked
class WordSwap(Augmentation):
    """Exchange neighbours: with probability ``p`` for each pair, of pairs that begin at an even or an odd place.

    Which of the two is drawn for each sequence. Helps where the order of words means little (topics). Fails where it
    means much; not for language models, whose input would show the word that is to be predicted.
    Source: Artetxe et al., arXiv 1710.11041 (section 3.2); Lample et al., arXiv 1711.00043.
    """

    p: Annotated[float, Ge(0), Le(1)] = 0.1
    """Probability of each pair."""

    reads: ClassVar[tuple[Form, ...]] = SEQUENCES
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    example: ClassVar[dict[str, Any]] = {"p": 0.5}
    example_model: ClassVar[str] = "recurrent"  # its answer depends on the order
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label", "sequence-to-sequence")

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Sequences in another order."""
        tokens = batch.inputs[0]
        chosen = uniform(step, "word-swap", batch, tokens.shape[1]) < self.p
        offset = whole(step, "word-swap offset", batch, 2)
        return with_first(batch, swap_words(tokens, words(tokens, data), offset, chosen))


@checked
class UnigramNoise(Augmentation):
    """Replace each word with probability ``p`` by a word drawn from all words of the batch, frequent ones more often.

    The words of the batch stand in for the distribution of single words in the data. Helps language models and
    classifiers on little text, as smoothing of n-grams does. Fails where a single word decides. With streamed data on
    several devices, words come from the same device. Source: Xie et al., "Data Noising as Smoothing in Neural Network
    Language Models", arXiv 1703.02573.
    """

    p: Annotated[float, Ge(0), Le(1)] = 0.1
    """Probability of each word."""

    reads: ClassVar[tuple[Form, ...]] = SEQUENCES
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    example: ClassVar[dict[str, Any]] = {"p": 0.4}
    example_model: ClassVar[str] = "encoder"

    def change(self, batch: Batch, step: Step, data: DataFacts) -> Batch:
        """Sequences with other words."""
        tokens = batch.inputs[0]
        length = tokens.shape[1]
        chosen = uniform(step, "unigram-noise", batch, length) < self.p
        drawn = uniform(step, "unigram-noise word", batch, length, dtype=torch.float64)
        return with_first(batch, unigram_noise(tokens, words(tokens, data), chosen, drawn))
