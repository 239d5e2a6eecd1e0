import csv
import io
import json
import sys

import pytest
import sacrebleu
import torch

import kingpost as kp
from kingpost.assembly import Batch
from kingpost.errors import MissingExtraError, RecipeError
from kingpost.source import DataFacts, Dataset
from kingpost.train.sequence_to_sequence import SequenceToSequence

WORDS = ["the", "roof", "beam", "stands", "falls", "oak", "post", "king"]


def sentences(count, shift):
    return [" ".join(WORDS[(n * (k + shift) + k) % 8] for k in range(4 + n % 5)) for n in range(count)]


@pytest.fixture
def data(tmp_path):
    for name, lines in {
        "a": sentences(60, 1), "b": sentences(60, 2),
        "test.a": sentences(9, 3), "test.b": [line + " and so on and on" for line in sentences(9, 3)],
    }.items():  # fmt: skip
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    train, test = (tuple(str(tmp_path / f"{part}{side}") for side in "ab") for part in ("", "test."))
    return {"name": "sentence-pairs", "train": train, "test": test, "vocabulary": 270, "length": 60}


def trained(data, folder, model="train.writers:Copier", **fields):
    recipe = kp.Recipe.from_value(
        {
            "name": "pairs",
            "data": data,
            "task": {"name": "sequence-to-sequence", "beams": 3},
            "model": {"name": model, "vocabulary": 270},
            "budget": {"steps": 3},
            "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
            **fields,
        }
    )
    return kp.train(recipe, root=folder, quiet=True)


def test_the_loss_is_that_of_a_slow_loop():
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 5, 7, generator=draw)
    targets = torch.randint(0, 7, (3, 5), generator=draw)
    targets[0, 3:] = targets[2, 1:] = -100
    total = sum(
        float(outputs[b, t].logsumexp(0) - outputs[b, t, targets[b, t]])
        for b in range(3)
        for t in range(5)
        if targets[b, t] != -100
    )
    task = SequenceToSequence()
    assert task.items(targets) == 9
    assert float(task.criterion(outputs, targets)) == pytest.approx(total, rel=1e-12)
    accuracy = task.metrics(DataFacts(task="", inputs=(), vocabulary=9, target_vocabulary=7))["token_accuracy"]
    accuracy.update(task.predictions(outputs), targets)
    right = sum(int(outputs[b, t].argmax() == targets[b, t]) for b in range(3) for t in range(5))
    assert float(accuracy.compute()) == pytest.approx(right / 9)
    with pytest.raises(RecipeError, match=r"the model gives \(3, 5, 7\); targets should be \(3, 5\), got \(3, 4\)"):
        task.criterion(outputs, targets[:, :4])


def test_bleu_at_the_end_of_a_run_is_that_of_sacrebleu_on_the_files(data, tmp_path):
    run = trained(data, tmp_path)
    sources, wanted = sentences(9, 3), [line + " and so on and on" for line in sentences(9, 3)]
    expected = sacrebleu.corpus_bleu(sources, [wanted])
    assert 10 < expected.score < 90
    assert run.summary["test"]["bleu"] == pytest.approx(expected.score, abs=1e-9)
    answers = json.loads((run.folder / "answers.json").read_text())
    assert answers["scores"] == {"bleu": run.summary["test"]["bleu"]} and answers["samples"] == 9
    assert answers["answers"][2] == {"source": sources[2], "predicted": sources[2], "target": wanted[2]}
    assert answers["notes"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    page = (run.folder / "report.html").read_text()
    assert run.findings == [] and "Written texts" in page and f"<td>{wanted[2]}</td>" in page


def test_predictions_are_sentences_side_by_side(data, tmp_path):
    run = trained(data, tmp_path)
    made = kp.predict(run)
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert [*rows[0]] == ["index", "source", "predicted", "target"] and len(rows) == 9
    assert rows[4] == {
        "index": "4", "source": sentences(9, 3)[4], "predicted": sentences(9, 3)[4],
        "target": sentences(9, 3)[4] + " and so on and on",
    }  # fmt: skip
    assert made.metrics["bleu"] == run.summary["test"]["bleu"] and made.notes["bleu"].startswith("nrefs:1")
    (tmp_path / "new.txt").write_text("the oak\nroof, roof\n")
    new = kp.predict(run, inputs=tmp_path / "new.txt")
    assert new.to_csv() == 'index,source,predicted\n0,the oak,the oak\n1,"roof, roof","roof, roof"\n'
    assert new.metrics == {}


def test_a_net_that_cannot_write_is_a_finding_and_then_an_error(data, tmp_path):
    run = trained(data, tmp_path, model="train.writers:Mute")
    assert run.status == "finished" and "bleu" not in run.summary["test"]
    (finding,) = run.findings
    assert finding.symptom == "no texts were scored" and "Mute has no generate(source, *, begin" in finding.cause
    with pytest.raises(RecipeError, match=r"model: Mute has no generate\(source, \*, begin, end, length, beams\)"):
        kp.predict(run)


def test_without_sacrebleu_the_run_ends_well_and_says_so(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    run = trained(data, tmp_path)
    assert run.status == "finished" and "bleu" not in run.summary["test"]
    assert "pip install 'kingpost[text]'" in run.findings[0].cause
    with pytest.raises(MissingExtraError, match=r"BLEU needs 'sacrebleu'.*pip install 'kingpost\[text\]'"):
        kp.predict(run)


def test_without_words_sentences_are_numbers(tmp_path):
    from train.writers import Copier

    facts = DataFacts(task="", inputs=(), target_shape=(6,), vocabulary=8, padding=0, begin=1, end=2)
    dataset = Dataset(facts=facts, splits={}, fingerprint="")
    source = torch.tensor([[1, 5, 6, 2, 0], [7, 7, 7, 7, 7]])
    batch = Batch((source, source), source, 0, 2)
    with torch.no_grad():
        written = SequenceToSequence(beams=3).generate(Copier().eval(), batch, dataset)
    assert written == ["5 6", "7 7 7 7 7 7"]
