"""Texts with a class each: one a line with a file of labels beside it, or rows of a CSV file.

Legend of shapes: ``T`` tokens of a text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from kingpost.data import tokens
from kingpost.data.padded import padded
from kingpost.data.parts import FilePath, Fraction, Names, Seed, divide
from kingpost.data.reading import read_text
from kingpost.data.tensors import TensorSplit
from kingpost.errors import DataError, RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Source, existing_file, fingerprint

TEXT, LABEL, UNUSED = "text", "label", "-"  # what a column of a CSV file holds
MOST_CLASSES = 1000  # more different labels are most likely no classes
FIELD_CHARACTERS = 2**24  # of one value of a CSV file


@dataclass(frozen=True)
class Lines:
    """Texts, and the label of each as the file has it."""

    texts: Sequence[str]
    labels: Sequence[str]

    def at(self, indices: Tensor) -> Lines:
        """Some of them."""
        chosen = indices.tolist()
        return Lines([self.texts[i] for i in chosen], [self.labels[i] for i in chosen])


@checked
class TextLines(Source):
    """Texts that are classified: a text and a label a line in two files, or rows of one CSV file.

    Inputs ``(T,)`` int64, filled up with the token 0 (``facts.padding``) at the end; an empty text is one token 1
    (``<unknown>``). The vocabulary is learned from the training part alone.
    """

    train: Names
    """A file of texts, one a line, and one of their labels; or one CSV file, see ``columns``. UTF-8, ``.gz`` or not."""
    validation: Names = ()
    """Such files; none holds out ``validation_fraction`` of the training texts."""
    test: Names = ()
    """Such files; none holds out ``test_fraction`` of the training texts."""
    validation_fraction: Fraction = 0.1
    """Part of the training texts held out (the same of each class) if there are no validation files."""
    test_fraction: Fraction = 0.0
    """Part of the training texts held out (the same of each class) if there are no test files."""
    split_seed: Seed = 0
    """Seed of the split; not that of the run."""
    columns: tuple[Literal["text", "label", "-"], ...] = ()
    """What the columns of a CSV file hold, in order; ``-`` is not used, several texts are joined by a space."""
    header: bool = False
    """Whether the first row of a CSV file holds names, and is left out."""
    mapping: FilePath | None = None
    """File of the classes' names: lines of label, tab, name; or a name a line, in the order of the labels."""
    tokens: Literal["words", "byte-pairs"] = "words"
    """What a token is: a word or punctuation mark, or a piece of a word (no text is unknown then)."""
    vocabulary: Annotated[int, Ge(3)] = 10_000
    """Number of tokens, special ones included: at most for words, exactly for byte pairs."""
    min_count: Annotated[int, Ge(1)] = 2
    """Words that are rarer in the training part are unknown; has no meaning for byte pairs."""
    lowercase: bool = True
    """Take capital letters as small ones."""
    length: Annotated[int, Ge(1)] | None = None
    """Tokens of a text; longer ones are cut, and counted in ``fitted["cut"]``. Null: of the longest training text."""

    def __post_init__(self) -> None:
        wanted = 1 if self.columns else 2
        for part in ("train", "validation", "test"):
            if (files := getattr(self, part)) and len(files) != wanted:
                mend = "give one CSV file" if self.columns else "give [texts, labels], or columns for a CSV file"
                raise RecipeError(f"got {len(files)} files, expected {wanted}", path=part, mend=mend)
        if not self.train:
            raise RecipeError("no files to train on", path="train", mend="give [texts, labels], or one CSV file")
        if self.columns and (TEXT not in self.columns or self.columns.count(LABEL) != 1):
            raise RecipeError(f"got {list(self.columns)}", path="columns", mend="one 'label' and at least one 'text'")
        if self.header and not self.columns:
            raise RecipeError("has no effect on files of lines", path="header", mend="give columns, or header=false")
        if self.tokens == "byte-pairs" and self.vocabulary < (least := tokens.BYTES + len(tokens.FILLED_UP)):
            raise RecipeError(f"got {self.vocabulary}", path="vocabulary", mend=f"byte pairs need at least {least}")

    def open(self) -> Dataset:
        """Read, divide, learn the vocabulary from the training part, encode and fill up."""
        given = {part: self._lines(files) for part in ("train", "validation", "test") if (files := getattr(self, part))}
        validation = 0.0 if "validation" in given else self.validation_fraction
        test = 0.0 if "test" in given else self.test_fraction
        groups = np.array(given["train"].labels)
        indices = divide(len(groups), validation, test, self.split_seed, groups)
        parts = {part: given["train"].at(index) for part, index in indices.items()}
        parts |= {part: lines for part, lines in given.items() if part != "train"}
        labels = _in_order({label for lines in parts.values() for label in lines.labels})
        fitted = self._fit(parts["train"].texts) | {"names": self._names(labels)}
        splits = {part: self._split(lines, labels, fitted, part) for part, lines in parts.items()}
        return Dataset(
            facts=DataFacts(
                task="classification",
                inputs=(((fitted["length"],), torch.int64),),
                classes=tuple(fitted["names"].values()),
                vocabulary=tokens.size_of(fitted["vocabulary"]),
                padding=tokens.PAD,
            ),
            splits=splits,
            fingerprint=fingerprint("\n".join(column) for x in given.values() for column in (x.texts, x.labels)),
            fitted=fitted,
            indices=indices if len(indices) > 1 else {},
        )

    def read(self, path: Path, fitted: Mapping[str, Any], facts: DataFacts) -> TensorSplit:
        """New texts, one a line; for a recipe with ``columns``, a file named ``.csv`` has those, labels included."""
        if self.columns and ".csv" in path.suffixes:
            lines = self._rows(path)
            number = {label: index for index, label in enumerate(fitted["names"])}
            if strange := sorted(set(lines.labels) - set(number)):
                raise DataError(f"{path}: label '{strange[0]}' is unknown; in training there are: {', '.join(number)}")
            targets = torch.tensor([number[label] for label in lines.labels])
            return TensorSplit((self._encoded(lines.texts, fitted, {}, str(path)),), targets)
        texts = _lines_of_file(path)
        inputs = self._encoded(texts, fitted, {}, str(path))
        return TensorSplit((inputs,), torch.zeros(len(texts), dtype=torch.int64), labelled=False)

    def _lines(self, files: Sequence[str]) -> Lines:
        if self.columns:
            return self._rows(existing_file(files[0], where="data.train"))
        texts, labels = (_lines_of_file(existing_file(file, where="data.train")) for file in files)
        if len(texts) != len(labels):
            raise DataError(f"{files[0]} has {len(texts)} lines, {files[1]} has {len(labels)}; they must be aligned")
        return _labelled(Lines(texts, [label.strip() for label in labels]), files[1])

    def _rows(self, path: Path) -> Lines:
        before = csv.field_size_limit(FIELD_CHARACTERS)
        try:
            rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))[int(self.header) :]
        except csv.Error as error:
            raise DataError(f"{path}: not a readable CSV file ({error})") from error
        finally:
            csv.field_size_limit(before)
        if not rows:
            raise DataError(f"{path}: no rows")
        for number, row in enumerate(rows, 1 + int(self.header)):
            if len(row) != len(self.columns):
                raise DataError(f"{path}: row {number} has {len(row)} values, data.columns names {len(self.columns)}")
        at = [place for place, kind in enumerate(self.columns) if kind == TEXT]
        label = self.columns.index(LABEL)
        texts = [" ".join(row[place] for place in at) for row in rows]
        return _labelled(Lines(texts, [row[label].strip() for row in rows]), str(path))

    def _fit(self, texts: Sequence[str]) -> dict[str, Any]:
        """The vocabulary and the length, from the training texts."""
        texts = self._in_case(texts)
        if self.tokens == "words":
            vocabulary = tokens.fit_words(texts, self.vocabulary, self.min_count)
        else:
            vocabulary = tokens.fit_bpe(texts, self.vocabulary, tokens.FILLED_UP)
        length = self.length or max(1, *(len(line) for line in tokens.encode_lines(texts, vocabulary)))
        return {"vocabulary": vocabulary, "length": length, "cut": {}, "unknown": {}}

    def _split(self, lines: Lines, labels: Sequence[str], fitted: dict[str, Any], part: str) -> TensorSplit:
        number = {label: index for index, label in enumerate(labels)}
        targets = torch.tensor([number[label] for label in lines.labels], dtype=torch.int64)
        return TensorSplit((self._encoded(lines.texts, fitted, fitted, part),), targets)

    def _encoded(self, texts: Sequence[str], fitted: Mapping[str, Any], counts: Mapping[str, Any], part: str) -> Tensor:
        """Rows of tokens; notes under ``counts`` how many texts were cut, and how many words were unknown."""
        if not texts:
            raise DataError(f"{part}: no texts")
        lines = tokens.encode_lines(self._in_case(texts), fitted["vocabulary"])
        if counts:
            counts["cut"][part] = sum(len(line) > fitted["length"] for line in lines)
            counts["unknown"][part] = sum(line.count(tokens.UNKNOWN) for line in lines)
        return padded([line[: fitted["length"]] or [tokens.UNKNOWN] for line in lines], fitted["length"], tokens.PAD)

    def _in_case(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() for text in texts] if self.lowercase else list(texts)

    def _names(self, labels: Sequence[str]) -> dict[str, str]:
        """The class that each label stands for, in order: itself, or what the file of names says."""
        if not 2 <= len(labels) <= MOST_CLASSES:
            raise DataError(
                f"{self.train[-1]}: {len(labels)} different labels, first '{labels[0]}'; expected 2 to {MOST_CLASSES}"
            )
        if self.mapping is None:
            return {label: label for label in labels}
        lines = [line for line in _lines_of_file(existing_file(self.mapping, where="data.mapping")) if line]
        if all("\t" in line for line in lines):
            names = dict(line.split("\t", 1) for line in lines)
        elif len(lines) == len(labels):
            names = dict(zip(labels, lines, strict=True))
        else:
            raise DataError(
                f"{self.mapping}: {len(lines)} names for {len(labels)} labels; "
                "write a name for each label in order, or lines of label, tab, name"
            )
        if absent := [label for label in labels if label not in names]:
            raise DataError(f"{self.mapping}: no name for the label '{absent[0]}'; it has: {', '.join(names)}")
        return {label: names[label] for label in labels}


def _labelled(lines: Lines, where: str) -> Lines:
    """The same lines, once it is sure that each has a label."""
    if "" in lines.labels:
        raise DataError(f"{where}: line {lines.labels.index('') + 1} has no label")
    return lines


def _lines_of_file(path: Path) -> list[str]:
    return [line.rstrip("\r\n") for line in tokens.lines_of(read_text(path))]


def _in_order(labels: set[str]) -> list[str]:
    """Numbers by their value, other labels by code points."""
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)
