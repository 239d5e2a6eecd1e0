import gzip

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kingpost.data import tokens
from kingpost.data.text import SentencePairs, Text, TextSplit
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose
from kingpost.source import Order

PROSE = "the king post carries the truss, and the truss carries the roof.\n" * 40


def windows(text, context, phase, count):
    """The slow twin: one window at a time."""
    starts = [phase + number * context for number in range(count)]
    return [(text[s : s + context], text[s + 1 : s + 1 + context]) for s in starts]


@given(length=st.integers(2, 60), context=st.integers(1, 7), size=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_windows_equal_a_plain_loop(length, context, size):
    assume(length > context)
    split = TextSplit(torch.arange(length), context)
    expected = windows(list(range(length)), context, 0, (length - 1) // context)
    got = [
        (x.tolist(), y.tolist())
        for batch in split.batches(Order(batch_size=size))
        for x, y in zip(batch.inputs[0], batch.targets, strict=True)
    ]
    assert got == expected and len(split) == len(expected) and split.steps(size) == -(-len(expected) // size)


def test_the_phase_follows_from_seed_and_epoch():
    text = list(range(1000))
    split = TextSplit(torch.tensor(text), 10, phased=True)
    phases = set()
    for epoch in range(12):
        order = Order(batch_size=16, shuffle=True, seed=1, epoch=epoch)
        first, again = list(split.batches(order)), list(split.batches(order))
        assert all(a.inputs[0].equal(b.inputs[0]) for a, b in zip(first, again, strict=True))
        rows = sorted(row for batch in first for row in batch.inputs[0].tolist())
        phases.add(rows[0][0])
        assert rows == [x for x, _ in windows(text, 10, rows[0][0], 99)] == sorted(rows) and rows[0][0] < 10
    assert len(phases) > 3
    assert next(split.batches(Order(batch_size=1))).inputs[0][0, 0] == 0  # no phase where nothing is shuffled


def test_resume_is_the_tail_of_the_whole_pass():
    split = TextSplit(torch.arange(1000), 10, phased=True)
    order = {"batch_size": 16, "shuffle": True, "seed": 1, "epoch": 3}
    whole, tail = list(split.batches(Order(**order))), list(split.batches(Order(**order, start=3)))
    assert all(a.inputs[0].equal(b.inputs[0]) for a, b in zip(whole[3:], tail, strict=True)) and len(tail) == 4


def test_parts_follow_one_another_without_overlap(tmp_path):
    (tmp_path / "a.txt").write_text(PROSE[:1000])
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(PROSE[1000:].encode()))
    source = Text(path=[str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")], context=8, validation=0.2, test=0.1)
    opened = source.open()
    parts = {part: tokens.decode(split.text, opened.fitted) for part, split in opened.splits.items()}
    assert "".join(parts[part] for part in ("train", "validation", "test")) == PROSE
    assert len(parts["train"]) == int(len(PROSE) * 0.7) and len(parts["test"]) == len(PROSE) - int(len(PROSE) * 0.9)
    assert opened.facts.vocabulary == len(set(PROSE)) and opened.facts.inputs == (((8,), torch.int64),)
    assert choose("data", {"name": "text", **source.to_value()}) == source


def test_the_vocabulary_knows_the_training_part_only(tmp_path):
    (tmp_path / "a.txt").write_text("abab" * 20)
    (tmp_path / "b.txt").write_text("abxyabxy")
    values = {"path": tmp_path / "a.txt", "validation": str(tmp_path / "b.txt"), "context": 2}
    with pytest.raises(DataError, match=r"validation: 4 characters are not in the training text \('x', 'y'\)"):
        Text(**values).open()
    opened = Text(**values, unknown="token").open()
    assert opened.fitted == {
        "kind": "characters", "tokens": ["a", "b"], "unknown": True, "replaced": {"train": 0, "validation": 4}
    }  # fmt: skip
    assert opened.splits["validation"].text.tolist() == [0, 1, 2, 2, 0, 1, 2, 2]
    assert tokens.decode([0, 2], opened.fitted) == "a\N{REPLACEMENT CHARACTER}"
    assert opened.facts.vocabulary == 3


@given(text=st.text(max_size=60))
@settings(max_examples=40, deadline=None)
def test_encoding_and_back(text):
    vocabulary = tokens.fit_characters(text + "a")
    assert tokens.decode(tokens.encode(text, vocabulary), vocabulary) == text
    assert tokens.encode(text, vocabulary).tolist() == [vocabulary["tokens"].index(letter) for letter in text]


def test_byte_pairs_encode_everything_and_back(tmp_path):
    (tmp_path / "a.txt").write_text(PROSE)
    source = Text(path=tmp_path / "a.txt", vocabulary=280, context=8)
    opened, again = source.open(), source.open()
    assert opened.fitted == again.fitted and opened.facts.vocabulary == 280 == tokens.size_of(opened.fitted)
    strange = "žluťoučký kůň 🐎\n\n\tthe truss"
    assert tokens.decode(tokens.encode(strange, opened.fitted), opened.fitted) == strange
    assert len(tokens.encode(PROSE, opened.fitted)) < len(PROSE) * 0.6
    (tmp_path / "new.txt").write_text("the roof carries the king post")
    new = source.read(tmp_path / "new.txt", opened.fitted, opened.facts)
    assert tokens.decode(new.text, opened.fitted) == "the roof carries the king post"
    with pytest.raises(DataError, match=r"the training text gives \d+ tokens, not 5000; set data.vocabulary=\d+"):
        source.with_(vocabulary=5000).open()


def test_texts_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("short text")
    with pytest.raises(DataError, match=r"a part of 9 tokens holds no window of 8"):
        Text(path=tmp_path / "a.txt", context=8).open()
    with pytest.raises(DataError, match=r"no 'absent.txt' in"):
        Text(path="absent.txt").open()
    with pytest.raises(RecipeError, match=r"validation: got 2; expected a number >= 0 and < 1 \(a fraction"):
        Text(path="a.txt", validation=2)


@pytest.mark.parametrize("shared", [True, False])
def test_sentence_pairs(tmp_path, shared):
    english = [f"the {word} number {n} stands" for n, word in enumerate(["house", "roof", "beam", "post"] * 10)]
    german = [f"{word} Nummer {n} steht da" for n, word in enumerate(["Haus", "Dach", "Balken", "Pfosten"] * 10)]
    (tmp_path / "en").write_text("\n".join(english) + "\n")
    (tmp_path / "de").write_text("\n".join(german))
    source = SentencePairs(
        train=[str(tmp_path / "en"), str(tmp_path / "de")],
        vocabulary=270,
        shared=shared,
        length=24,
        validation_fraction=0.2,
    )
    opened = source.open()
    assert {part: len(split) for part, split in opened.splits.items()} == {"train": 32, "validation": 8}
    split = opened.splits["validation"]
    for row, line in enumerate(opened.indices["validation"].tolist()):
        given_source, shown, wanted = split.inputs[0][row], split.inputs[1][row], split.targets[row]
        count = int((wanted != -100).sum())
        assert english[line].startswith(tokens.decode(given_source, opened.fitted["source_vocabulary"]))
        assert shown[0] == opened.fitted["bos"] and wanted[count - 1] == opened.fitted["eos"]
        assert shown[1:count].equal(wanted[: count - 1])
        assert shown[count:].eq(opened.fitted["pad"]).all() and wanted[count:].eq(-100).all()
        written = tokens.decode(wanted[:count], opened.fitted["target_vocabulary"])
        assert german[line].startswith(written)
    assert choose("data", {"name": "sentence-pairs", **source.to_value()}) == source


def test_sentences_that_are_cut_are_counted_and_unaligned_ones_refused(tmp_path):
    (tmp_path / "a").write_text("one two three four five\n" * 20)
    (tmp_path / "b").write_text("x\n" * 20)
    files = (str(tmp_path / "a"), str(tmp_path / "b"))
    opened = SentencePairs(train=files, validation=files, vocabulary=262, length=4).open()
    assert opened.fitted["cut"] == {"train": 20, "validation": 20}
    (tmp_path / "b").write_text("x\n" * 19)
    with pytest.raises(DataError, match=r"a has 20 lines, .*b has 19; they must be aligned"):
        SentencePairs(train=files).open()


def test_facts_and_lengths_of_sentence_pairs(tmp_path):
    (tmp_path / "a").write_text("".join(f"{'one ' * (n % 5 + 1)}\n" for n in range(20)))
    (tmp_path / "b").write_text("".join(f"{'zwei ' * (n % 3 + 1)}\n" for n in range(20)))
    (tmp_path / "c").write_text("".join(f"{'far too long ' * 9}\n" for n in range(4)))
    train, test = (str(tmp_path / "a"), str(tmp_path / "b")), (str(tmp_path / "c"), str(tmp_path / "c"))
    opened = SentencePairs(train=train, test=test, vocabulary=264).open()
    longest = []
    for side, key in ((0, "source_vocabulary"), (1, "target_vocabulary")):
        lines = [opened.splits["train"].texts[row][side] for row in range(18)]
        longest.append(max(len(line) for line in tokens.encode_lines(lines, opened.fitted[key])) + 1)
    facts = opened.facts
    assert facts.inputs == (((longest[0],), torch.int64), ((longest[1],), torch.int64))
    assert (facts.task, facts.form, facts.target_shape) == ("sequence-to-sequence", "token-pair", (longest[1],))
    assert (facts.vocabulary, facts.target_vocabulary) == (264, 264)
    assert (facts.padding, facts.begin, facts.end) == (0, 1, 2)
    assert opened.fitted["cut"] == {"train": 0, "validation": 0, "test": 8}
    assert opened.splits["test"].texts[0] == ("far too long " * 9,) * 2  # the sentence as it is, never cut
    kept = [token for token in opened.splits["train"].targets[0].tolist() if token > 2]
    assert opened.decode(kept) == opened.splits["train"].texts[0][1]
    new = SentencePairs(train=train).read(tmp_path / "b", opened.fitted, facts)
    assert len(new) == 20 and not new.labelled and new.texts[1] == ("zwei zwei ", "")
    for row, line in enumerate(
        tokens.encode_lines([text for text, _ in new.texts], opened.fitted["source_vocabulary"])
    ):
        wanted = [*line[: longest[0] - 1], 2]
        assert new.inputs[0][row].tolist() == wanted + [0] * (longest[0] - len(wanted))
    assert new.inputs[1][:, 0].eq(1).all() and new.targets.eq(-100).all()
