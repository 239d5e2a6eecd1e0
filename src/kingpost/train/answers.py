"""Texts that a trained model writes by itself, and their scores, kept at the end of a run."""

from __future__ import annotations

from kingpost.errors import MissingExtraError, RecipeError
from kingpost.files import write_json
from kingpost.finding import Finding
from kingpost.train.evaluate import wanted_texts, write
from kingpost.train.loop import Job

MOST_ANSWERS = 200  # kept in the file, the first ones; the scores are over all


def save_answers(job: Job) -> dict[str, float]:
    """Write ``answers.json`` for the test part, if the task is to write; returns the scores of all texts.

    Keys: ``part``, ``samples``, ``scores``, ``notes`` (how each score was computed), and ``answers``, the first of
    them with ``source``, ``predicted`` and ``target``. Where the model cannot write, or a library for the score is
    not installed, a finding says so.
    """
    a, dataset = job.assembly, job.dataset
    task, split = a.setting.task, dataset.splits.get("test")
    if split is None or not task.writes:
        return {}
    try:
        written = write(a.model, split, task, dataset, 4 * job.recipe.batch_size, a.setting.device)
        sources, wanted = wanted_texts(split, dataset)
        scores = task.text_scores(written, wanted)
    except (RecipeError, MissingExtraError) as error:
        finding = Finding(symptom="no texts were scored", severity="warning", cause=str(error), place="test")
        job.findings.append(finding)
        job.run.write_findings(job.findings)
        job.display.say(str(finding))
        return {}
    shown = list(zip(sources, written, wanted, strict=True))[:MOST_ANSWERS]
    value = {
        "part": "test",
        "samples": len(written),
        "scores": {name: score for name, (score, _) in scores.items()},
        "notes": {name: note for name, (_, note) in scores.items()},
        "answers": [dict(zip(("source", "predicted", "target"), texts, strict=True)) for texts in shown],
    }
    write_json(job.run.folder / "answers.json", value)
    return {name: score for name, (score, _) in scores.items()}
