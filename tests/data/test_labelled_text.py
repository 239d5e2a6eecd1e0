import gzip
import random
import re

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer

from kingpost.data import tokens
from kingpost.data.labelled_text import TextLines
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose

PATTERN = r"\w+|[^\w\s]"


def sentences(count, seed):
    draw = random.Random(seed)
    words = ["Roof", "roof", "beam", "POST", "oak", "truss,", "don't", "#1", "größe", "!!"]
    return [" ".join(draw.choices(words, k=draw.randint(1, 7))) for _ in range(count)]


@pytest.fixture
def files(tmp_path):
    given = {}
    for part, count in (("train", 40), ("validation", 12)):
        texts, labels = sentences(count, part), [str(n % 3) for n in range(count)]
        (tmp_path / f"{part}.txt").write_text("\n".join(texts) + "\n")
        (tmp_path / f"{part}.labels.gz").write_bytes(gzip.compress("\n".join(labels).encode()))
        given[part] = [str(tmp_path / f"{part}.txt"), str(tmp_path / f"{part}.labels.gz")]
    (tmp_path / "names.txt").write_text("0\tred\n1\tgreen\n2\tblue")
    return given | {"mapping": str(tmp_path / "names.txt")}


def test_texts_are_as_a_slow_loop_makes_them(files):
    source = TextLines(**files, min_count=3)
    opened = source.open()
    assert opened.facts.classes == ("red", "green", "blue") and opened.facts.padding == 0
    assert opened.facts.form == "tokens" and opened.facts.vocabulary == len(opened.fitted["vocabulary"]["tokens"])
    known = opened.fitted["vocabulary"]["tokens"]
    longest = max(len(re.findall(PATTERN, text)) for text in sentences(40, "train"))
    for part, count in (("train", 40), ("validation", 12)):
        split = opened.splits[part]
        for row, text in enumerate(sentences(count, part)):
            numbers = [known.index(w) if w in known else 1 for w in re.findall(PATTERN, text.lower())][:longest]
            assert split.inputs[0][row].tolist() == numbers + [0] * (longest - len(numbers))
        assert split.targets.tolist() == [n % 3 for n in range(count)]
    assert choose("data", {"name": "text-lines", **source.to_value()}) == source


def test_the_vocabulary_is_that_of_scikit_learn(files):
    opened = TextLines(**files, min_count=3).open()
    counter = CountVectorizer(token_pattern=PATTERN, lowercase=True)
    counts = np.asarray(counter.fit_transform(sentences(40, "train")).sum(0))[0]
    wanted = [word for word, index in counter.vocabulary_.items() if counts[index] >= 3]
    learned = opened.fitted["vocabulary"]["tokens"]
    assert learned[:2] == ["<pad>", "<unknown>"] and sorted(learned[2:]) == sorted(wanted)
    frequencies = [counts[counter.vocabulary_[word]] for word in learned[2:]]
    assert frequencies == sorted(frequencies, reverse=True)
    few = TextLines(**files, vocabulary=5).open()
    assert few.fitted["vocabulary"]["tokens"] == learned[:5] and few.facts.vocabulary == 5


@pytest.mark.parametrize("kind", ["words", "byte-pairs"])
def test_nothing_is_learned_from_other_parts(files, tmp_path, kind):
    values = {**files, "tokens": kind, "vocabulary": 262 if kind == "byte-pairs" else 100}
    before = TextLines(**values).open()
    (tmp_path / "validation.txt").write_text("\n".join(["strange new words " * 20] * 12))
    after = TextLines(**values).open()
    for key in ("vocabulary", "length"):
        assert before.fitted[key] == after.fitted[key]
    assert before.fingerprint != after.fingerprint
    assert after.fitted["cut"] == {"train": 0, "validation": 12}
    assert after.fitted["unknown"]["validation"] == (12 * 60 if kind == "words" else 0)
    assert after.splits["train"].inputs[0].equal(before.splits["train"].inputs[0])


def test_byte_pairs_give_the_text_back(files, tmp_path):
    opened = TextLines(**files, tokens="byte-pairs", vocabulary=262, lowercase=False, length=60).open()
    vocabulary = opened.fitted["vocabulary"]
    for row, text in zip(opened.splits["validation"].inputs[0], sentences(12, "validation"), strict=True):
        assert tokens.decode(row, vocabulary) == text
    (tmp_path / "new.txt").write_text("\N{HOUSE BUILDING}\n\nB")
    new = TextLines(**files, tokens="byte-pairs", vocabulary=262, lowercase=False).read(
        tmp_path / "new.txt", opened.fitted, opened.facts
    )
    assert [tokens.decode(row, vocabulary) for row in new.inputs[0]] == ["\N{HOUSE BUILDING}", "", "B"]
    assert new.inputs[0][1].tolist() == [1] + [0] * 59  # an empty text is one unknown token, never padding alone
    assert not new.labelled and len(new) == 3


def test_csv_rows_are_those_of_pandas(tmp_path):
    rows = pd.DataFrame(
        {"class": [1, 2, 3, 4] * 10, "title": sentences(40, "a"), "id": range(40), "text": sentences(40, "b")}
    )
    rows.loc[3, "text"] = 'two\nlines, "quoted"'
    rows.to_csv(tmp_path / "rows.csv", index=False, header=False)
    (tmp_path / "names.txt").write_text("World\nSports\nBusiness\nSci/Tech\n")
    source = TextLines(
        train=tmp_path / "rows.csv",
        columns=["label", "text", "-", "text"],
        mapping=tmp_path / "names.txt",
        min_count=1,
        test_fraction=0.2,
    )
    opened = source.open()
    assert {part: len(split) for part, split in opened.splits.items()} == {"train": 28, "validation": 4, "test": 8}
    assert opened.facts.classes == ("World", "Sports", "Business", "Sci/Tech")
    for part, split in opened.splits.items():
        own = rows.iloc[opened.indices[part].numpy()]
        assert split.targets.tolist() == (own["class"] - 1).tolist()
        if part == "train":
            wanted = [
                " ".join(re.findall(PATTERN, f"{a} {b}".lower())) for a, b in zip(own.title, own.text, strict=True)
            ]
            assert [tokens.decode(row, opened.fitted["vocabulary"]) for row in split.inputs[0]] == wanted
    rows[rows["class"] < 3].to_csv(tmp_path / "new.csv", index=False, header=False)
    new = source.read(tmp_path / "new.csv", opened.fitted, opened.facts)
    assert new.labelled and new.targets.tolist() == [0, 1] * 10
    rows.to_csv(tmp_path / "headed.csv", index=False)
    headed = source.with_(train=str(tmp_path / "headed.csv"), header=True).open()
    assert headed.splits["train"].inputs[0].equal(opened.splits["train"].inputs[0])


def test_files_that_do_not_fit_are_refused(files, tmp_path):
    (tmp_path / "short").write_text("0\n1\n")
    with pytest.raises(DataError, match=r"train.txt has 40 lines, .*short has 2; they must be aligned"):
        TextLines(train=[files["train"][0], str(tmp_path / "short")]).open()
    (tmp_path / "names.txt").write_text("0\tred\n1\tgreen")
    with pytest.raises(DataError, match=r"no name for the label '2'; it has: 0, 1"):
        TextLines(**files).open()
    (tmp_path / "names.txt").write_text("red\ngreen")
    with pytest.raises(DataError, match=r"2 names for 3 labels"):
        TextLines(**files).open()
    (tmp_path / "short").write_text("0\n1\n" * 19 + "\n\n")
    with pytest.raises(DataError, match=r"short: line 39 has no label"):
        TextLines(train=[files["train"][0], str(tmp_path / "short")]).open()
    (tmp_path / "bad.csv").write_text("1,a\n2,b,c\n")
    with pytest.raises(DataError, match=r"row 2 has 3 values, data.columns names 2"):
        TextLines(train=tmp_path / "bad.csv", columns=["label", "text"]).open()
    with pytest.raises(RecipeError, match=r"train: got 1 files, expected 2; give \[texts, labels\]"):
        TextLines(train="a.txt")
    with pytest.raises(RecipeError, match=r"columns: got \['text'\]; one 'label'"):
        TextLines(train="a.csv", columns=["text"])
    with pytest.raises(RecipeError, match=r"vocabulary: got 100; byte pairs need at least 258"):
        TextLines(**files, tokens="byte-pairs", vocabulary=100)


def test_a_long_text_is_cut_and_counted(files):
    opened = TextLines(**files, length=2).open()
    texts = sentences(40, "train")
    assert opened.fitted["cut"]["train"] == sum(len(re.findall(PATTERN, text)) > 2 for text in texts)
    assert opened.facts.inputs == (((2,), torch.int64),)
