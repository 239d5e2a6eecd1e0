"""Vocabularies: text to token numbers and back, with a vocabulary that is plain values.

A vocabulary is a mapping: ``{"kind": "characters", "tokens": [...], "unknown": bool}``,
``{"kind": "words", "tokens": [...]}`` whose tokens begin with ``<pad>`` and ``<unknown>``, or
``{"kind": "bpe", "tokenizer": {...}}`` as the ``tokenizers`` library writes it.
Source: Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units", 2016;
on bytes, as in Radford et al., "Language models are unsupervised multitask learners", 2019.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kingpost.errors import DataError, MissingExtraError

Vocabulary = Mapping[str, Any]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTES = 256  # tokens that a byte-pair vocabulary starts from
PAD, UNKNOWN = 0, 1  # of a vocabulary of words
FILLED_UP = ("<pad>", "<unknown>")  # the special tokens of texts that are filled up to one length
WORD = re.compile(r"\w+|[^\w\s]")


def fit_characters(text: str, unknown: bool = False) -> dict[str, Any]:
    """One token for each distinct character, by code point; with ``unknown``, one more for all others.

    >>> fit_characters("abba")
    {'kind': 'characters', 'tokens': ['a', 'b'], 'unknown': False}
    """
    return {"kind": "characters", "tokens": sorted(set(text)), "unknown": unknown}


def fit_bpe(texts: Iterable[str], size: int, special: Sequence[str] = ()) -> dict[str, Any]:
    """Byte-pair encoding learned from texts; every text can be encoded, as single bytes at worst.

    Args:
        texts: what to learn from.
        size: number of tokens, special ones included.
        special: tokens that never stand for text; they are numbered first, from 0.

    Raises:
        DataError: the texts do not yield that many tokens.
    """
    tokenizers = _library()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (got := tokenizer.get_vocab_size()) != size:
        raise DataError(f"data.vocabulary: the training text gives {got} tokens, not {size}; set data.vocabulary={got}")
    return {"kind": "bpe", "tokenizer": json.loads(tokenizer.to_str())}


def fit_words(texts: Iterable[str], size: int, min_count: int = 1) -> dict[str, Any]:
    """One token for each frequent word or punctuation mark, the commonest first, ties by code points.

    Args:
        texts: what to learn from.
        size: number of tokens at most, the two special ones included.
        min_count: rarer words are left to ``<unknown>``.

    >>> fit_words(["a b, b", "b a"], size=4)
    {'kind': 'words', 'tokens': ['<pad>', '<unknown>', 'b', 'a']}
    """
    counts = Counter(word for text in texts for word in WORD.findall(text))
    kept = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
    return {"kind": "words", "tokens": [*FILLED_UP, *kept[: size - len(FILLED_UP)]]}


def size_of(vocabulary: Vocabulary) -> int:
    """Number of tokens.

    >>> size_of(fit_characters("abba", unknown=True))
    3
    """
    if vocabulary["kind"] == "characters":
        return len(vocabulary["tokens"]) + int(vocabulary["unknown"])
    if vocabulary["kind"] == "words":
        return len(vocabulary["tokens"])
    return int(_tokenizer(vocabulary).get_vocab_size())


def encode(text: str, fitted: Vocabulary) -> Tensor:
    """Token numbers ``(T,)`` int64 of a text.

    Args:
        text: any text.
        fitted: a vocabulary, or ``Dataset.fitted`` of a text.

    Raises:
        DataError: characters that are not in the vocabulary, which has no token for unknown ones.

    >>> encode("bab", fit_characters("abba"))
    tensor([1, 0, 1])
    """
    if fitted["kind"] == "characters":
        return _encode_characters(text, fitted)
    return torch.tensor([token for line in encode_lines(lines_of(text), fitted) for token in line], dtype=torch.int64)


def encode_lines(lines: Sequence[str], vocabulary: Vocabulary) -> list[list[int]]:
    """Token numbers of each line, in a vocabulary of words or byte pairs."""
    if vocabulary["kind"] == "words":
        number = {word: index for index, word in enumerate(vocabulary["tokens"])}
        return [[number.get(word, UNKNOWN) for word in WORD.findall(line)] for line in lines]
    return [encoded.ids for encoded in _tokenizer(vocabulary).encode_batch(list(lines), add_special_tokens=False)]


def decode(tokens: Tensor | Sequence[int], fitted: Vocabulary) -> str:
    """The text that tokens stand for; unknown ones become U+FFFD, special ones are left out.

    >>> decode([1, 0, 1], fit_characters("abba"))
    'bab'
    """
    numbers = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
    if fitted["kind"] == "characters":
        return "".join(map([*fitted["tokens"], REPLACEMENT].__getitem__, numbers))
    if fitted["kind"] == "words":
        names = [REPLACEMENT if n == UNKNOWN else fitted["tokens"][n] for n in numbers if n != PAD]
        return " ".join(names)
    return str(_tokenizer(fitted).decode(numbers))


def lines_of(text: str) -> list[str]:
    r"""The text cut after each line feed; joined, the pieces are the text.

    >>> lines_of("a\n\nb")
    ['a\n', '\n', 'b']
    """
    *ended, last = text.split("\n")
    return [line + "\n" for line in ended] + ([last] if last else [])


def unknown_characters(text: str, vocabulary: Vocabulary) -> int:
    """How many characters of a text a character vocabulary does not know."""
    return int((_encode_characters(text, {**vocabulary, "unknown": True}) == len(vocabulary["tokens"])).sum())


def _encode_characters(text: str, vocabulary: Vocabulary) -> Tensor:
    known, codes = _code_points("".join(vocabulary["tokens"])), _code_points(text)
    places = np.searchsorted(known, codes).clip(max=len(known) - 1)
    strange = known[places] != codes
    if strange.any() and not vocabulary["unknown"]:
        shown = ", ".join(repr(chr(code)) for code in np.unique(codes[strange])[:5])
        raise DataError(
            f"{int(strange.sum())} characters are not in the training text ({shown}); "
            "set data.unknown=token to give them one token, or data.vocabulary=1000 (byte pairs)"
        )
    places[strange] = len(known)
    return torch.from_numpy(places.astype(np.int64))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _tokenizer(vocabulary: Vocabulary) -> Any:
    return _library().Tokenizer.from_str(json.dumps(vocabulary["tokenizer"]))


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise MissingExtraError("tokenizers", extra="data", purpose="byte-pair encoding") from error
    return tokenizers
