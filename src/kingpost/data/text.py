"""Text: windows of one long text for language modelling, and aligned sentences for translation.

Legend of shapes: ``B`` samples, ``T`` tokens of a window or of a target sentence, ``S`` of a source sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from kingpost import seeds
from kingpost.assembly import Batch
from kingpost.data import tokens
from kingpost.data.padded import padded
from kingpost.data.parts import FilePath, Names, Part, Seed, divide, fractions
from kingpost.data.reading import read_text
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Order, Source, Split, existing_file, fingerprint

SPECIAL = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)
LEFT_OUT = -100  # a target that the loss leaves out


class TextSplit(Split):
    """Windows of ``T`` tokens that follow one another; targets are the inputs, one token later.

    Args:
        text: all tokens, ``(N,)``; kept in 32 bits.
        context: ``T``.
        phased: in shuffled passes, shift all windows by an offset below ``T``, from (seed, epoch), so that
            a token is not always at the same place of its window; costs at most one window.

    >>> split = TextSplit(torch.arange(7), context=3)
    >>> [(batch.inputs[0].tolist(), batch.targets.tolist()) for batch in split.batches(Order(batch_size=2))]
    [([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])]
    """

    sharded = False

    def __init__(self, text: Tensor, context: int, phased: bool = False) -> None:
        self.text, self.context, self.phased = text.to(torch.int32), context, phased
        if len(self) < 1:
            raise DataError(
                f"a part of {len(text)} tokens holds no window of {context}; "
                "make data.context smaller or the part larger"
            )

    def __len__(self) -> int:
        return (len(self.text) - (self.context if self.phased else 1)) // self.context

    def batches(self, order: Order) -> Iterator[Batch]:
        """Global batches, ``(B, T)`` inputs and targets."""
        phase = seeds.derive(order.seed, "phase", order.epoch) % self.context if self.phased and order.shuffle else 0
        windows = self.text[phase:].unfold(0, self.context + 1, self.context)[: len(self)]
        for rows in torch.split(order.indices(len(self)), order.batch_size)[order.start :]:
            both = windows[rows].long()
            yield Batch((both[:, :-1].contiguous(),), both[:, 1:].contiguous(), 0, len(rows))


@checked
class Text(Source):
    """Text files for language modelling; the first part is trained on, the end is held out.

    Inputs ``(T,)`` int64, targets ``(T,)`` the same, one token later.
    """

    path: Names
    """One file, or several that are joined in this order; UTF-8, ``.gz`` or not."""
    context: Annotated[int, Ge(1)] = 256
    """Tokens in a window."""
    vocabulary: Annotated[int, Ge(tokens.BYTES)] | None = None
    """Number of tokens of a byte-pair encoding learned from the training part; null: a token a character."""
    validation: Part = 0.1
    """Fraction of the characters, after the training part; or a file."""
    test: Part = 0.0
    """Fraction of the characters, at the end; or a file."""
    unknown: Literal["error", "token"] = "error"
    """What to do with characters that the training part lacks: refuse them, or give them one token."""
    phase: bool = True
    """Shift the training windows by a new offset in each epoch."""

    def open(self) -> Dataset:
        """Read, divide, learn the vocabulary from the training part, and encode."""
        whole = "".join(read_text(existing_file(path)) for path in self.path)
        validation, test = fractions(self.validation, self.test)
        if validation + test >= 1:
            raise DataError(f"validation {validation} and test {test} leave nothing to train on; make them smaller")
        edges = [
            0,
            *(int(len(whole) * round(part, 12)) for part in (1 - validation - test, 1 - test)),
            len(whole),
        ]
        cut = {part: whole[a:b] for part, a, b in zip(("train", "validation", "test"), edges, edges[1:], strict=False)}
        texts = {part: text for part, text in cut.items() if text}
        for part in ("validation", "test"):
            if isinstance(file := getattr(self, part), str):
                texts[part] = read_text(existing_file(file, where=f"data.{part}"))
        if "train" not in texts:
            raise DataError(f"{', '.join(self.path)}: no text to train on")
        fitted = self._fit(texts)
        coded = {part: _encoded(text, fitted, part) for part, text in texts.items()}
        return Dataset(
            facts=DataFacts(
                task="language-modelling",
                inputs=(((self.context,), torch.int64),),
                target_shape=(self.context,),
                vocabulary=tokens.size_of(fitted),
            ),
            splits={p: TextSplit(text, self.context, self.phase and p == "train") for p, text in coded.items()},
            fingerprint=fingerprint(texts.values()),
            fitted=fitted,
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> Split:
        """The windows of another text, in order."""
        return TextSplit(_encoded(read_text(path), fitted, str(path)), facts.inputs[0][0][0])

    def _fit(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """The vocabulary, and where characters got the token for unknown ones, how many."""
        if self.vocabulary is not None:
            return tokens.fit_bpe(tokens.lines_of(texts["train"]), self.vocabulary)
        fitted = tokens.fit_characters(texts["train"], unknown=self.unknown == "token")
        if not fitted["unknown"]:
            return fitted
        return fitted | {"replaced": {part: tokens.unknown_characters(text, fitted) for part, text in texts.items()}}


def _encoded(text: str, fitted: Mapping[str, Any], where: str) -> Tensor:
    try:
        return tokens.encode(text, fitted)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


Pair = tuple[FilePath, FilePath]


@checked
class SentencePairs(Source):
    """Line-aligned sentences of two languages; byte-pair vocabularies learned from the training part.

    Inputs: source ``(S,)`` ending in <eos>, and target ``(T,)`` that begins with <bos>; padded with <pad>.
    Targets: the target sentence ``(T,)`` ending in <eos>, and -100 where there is only padding. Scores of whole
    sentences compare with those in the files, which are never cut.
    """

    train: Pair
    """Files of source and target sentences, UTF-8, one a line, ``.gz`` or not."""
    validation: Pair | None = None
    """Such files; null holds out ``validation_fraction`` of the training pairs."""
    test: Pair | None = None
    """Such files; null if there is no test part."""
    validation_fraction: Annotated[float, Ge(0)] = 0.1
    """Part of the training pairs that is held out if there are no validation files."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""
    vocabulary: Annotated[int, Ge(tokens.BYTES + len(SPECIAL))] = 8000
    """Number of tokens of each vocabulary."""
    shared: bool = True
    """One vocabulary for both languages, else one for each."""
    length: Annotated[int, Ge(2)] | None = None
    """Tokens of a sentence with its <eos>; longer ones are cut, and counted in ``fitted["cut"]``. Null: as many as
    the longest source and the longest target sentence of the training part have."""

    def open(self) -> Dataset:
        """Read, divide, learn the vocabularies, encode and pad."""
        given = {part: _read_pair(pair) for part in ("train", "validation", "test") if (pair := getattr(self, part))}
        sources, targets = given["train"]
        held = 0.0 if "validation" in given else self.validation_fraction
        indices = divide(len(sources), held, 0.0, self.split_seed)
        pairs = {part: ([sources[i] for i in at], [targets[i] for i in at]) for part, at in indices.items()}
        pairs.update({part: pair for part, pair in given.items() if part != "train"})
        fitted = self._fit(*pairs["train"])
        splits = {part: self._split(pair, fitted, part) for part, pair in pairs.items()}
        return Dataset(
            facts=DataFacts(
                task="sequence-to-sequence",
                inputs=tuple(((length,), torch.int64) for length in fitted["lengths"]),
                target_shape=(fitted["lengths"][1],),
                vocabulary=self.vocabulary,
                target_vocabulary=self.vocabulary,
                padding=PAD,
                begin=BOS,
                end=EOS,
            ),
            splits=splits,
            fingerprint=fingerprint("\n".join(lines) for pair in given.values() for lines in pair),
            fitted=fitted,
            indices=indices if len(indices) > 1 else {},
            decode=partial(tokens.decode, fitted=fitted["target_vocabulary"]),
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> TensorSplit:
        """The source sentences of another file, one a line; nobody knows their translations."""
        sources = _lines(path)
        if not sources:
            raise DataError(f"{path}: no sentences")
        source = _ended(tokens.encode_lines(sources, fitted["source_vocabulary"]), fitted["lengths"][0], PAD)
        length = fitted["lengths"][1]
        shown, targets = padded([[BOS]] * len(sources), length, PAD), padded([[]] * len(sources), length, LEFT_OUT)
        return _with_texts(TensorSplit((source, shown), targets, labelled=False), sources, [""] * len(sources))

    def _fit(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
        """The vocabularies and the two lengths, from the training sentences."""
        if self.shared:
            both = tokens.fit_bpe([*sources, *targets], self.vocabulary, SPECIAL)
            vocabularies = [both, both]
        else:
            vocabularies = [tokens.fit_bpe(lines, self.vocabulary, SPECIAL) for lines in (sources, targets)]
        both_lines = zip((sources, targets), vocabularies, strict=True)
        longest = [self.length or _longest(lines, vocabulary) for lines, vocabulary in both_lines]
        return {
            "source_vocabulary": vocabularies[0],
            "target_vocabulary": vocabularies[1],
            "lengths": longest,
            "pad": PAD,
            "bos": BOS,
            "eos": EOS,
            "cut": {},
        }

    def _split(self, pair: tuple[list[str], list[str]], fitted: dict[str, Any], part: str) -> TensorSplit:
        sources = tokens.encode_lines(pair[0], fitted["source_vocabulary"])
        targets = tokens.encode_lines(pair[1], fitted["target_vocabulary"])
        lengths = fitted["lengths"]
        several = zip((sources, targets), lengths, strict=True)
        fitted["cut"][part] = sum(len(line) >= length for lines, length in several for line in lines)
        source = _ended(sources, lengths[0], PAD)
        shown = padded([[BOS, *line[: lengths[1] - 1]] for line in targets], lengths[1], PAD)
        return _with_texts(TensorSplit((source, shown), _ended(targets, lengths[1], LEFT_OUT)), *pair)


def _with_texts(split: TensorSplit, sources: Sequence[str], targets: Sequence[str]) -> TensorSplit:
    split.texts = list(zip(sources, targets, strict=True))
    return split


def _longest(lines: Sequence[str], vocabulary: Mapping[str, Any]) -> int:
    """Tokens of the longest line, with its <eos>."""
    return max(map(len, tokens.encode_lines(lines, vocabulary))) + 1


def _ended(lines: Sequence[Sequence[int]], length: int, filler: int) -> Tensor:
    """Rows that end in <eos>, and are filled up."""
    return padded([[*line[: length - 1], EOS] for line in lines], length, filler)


def _lines(path: Path) -> list[str]:
    return [line.rstrip("\r\n") for line in tokens.lines_of(read_text(path))]


def _read_pair(pair: Pair) -> tuple[list[str], list[str]]:
    sources, targets = (_lines(existing_file(path)) for path in pair)
    if len(sources) != len(targets):
        raise DataError(f"{pair[0]} has {len(sources)} lines, {pair[1]} has {len(targets)}; they must be aligned")
    return sources, targets
