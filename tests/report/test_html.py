from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kingpost as kp
from kingpost.errors import MissingExtraError
from kingpost.files import write_json
from kingpost.finding import Finding
from kingpost.patch import Patch
from kingpost.report.html import render, report
from report.pages import MakeRun, ReadPage

HOSTILE = "<script>alert(1)</script> & '$\\frac{1}{0}$'"


def classified(classes: int = 3, samples: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(samples, classes, generator=generator).softmax(1)
    targets = torch.randint(classes, (samples,), generator=generator)
    return probabilities, targets, torch.rand(samples, 4, generator=generator)


def test_a_real_run_gives_one_self_contained_page(tmp_path: Path, read_page: ReadPage) -> None:
    recipe = kp.Recipe(name="real", data="digits", model="mlp", budget={"steps": 30})
    run = kp.train(recipe, root=tmp_path, quiet=True)
    text = (run.folder / "report.html").read_text(encoding="utf-8")
    page = read_page(text)
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert page.addresses and all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert "url(http" not in text and "@import" not in text
    assert len(text) < 1_000_000
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 5 == len(page.labels) and all(page.labels)
    assert page.tags.count("img") == 24
    for said in (
        "test accuracy",
        "Confusion matrix",
        "macro F1",
        "Worst samples",
        "samples/s",
        "batch_size: 64",
    ):
        assert said in page.text
    assert f"kingpost predict {run.folder} --part test" in page.text
    assert f"kingpost resume {run.folder} budget.steps=60" in page.text
    assert report(run).read_text(encoding="utf-8") == text


def test_references_inside_figures_have_their_target(make_run: MakeRun, read_page: ReadPage) -> None:
    text = render(make_run("regression", judged=(torch.rand(50, 1), torch.rand(50), torch.rand(50, 4))))
    page = read_page(text)
    wanted = {a[1:] for a in page.addresses if a.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert wanted and wanted <= set(page.ids)


def test_colours_follow_the_page(make_run: MakeRun) -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", render(make_run()), flags=re.DOTALL))
    assert "var(--blue)" in svg and "currentColor" in svg
    assert not re.findall(r"(?:stroke|fill): #[0-9a-f]{6}", svg)


def test_what_users_write_is_escaped(make_run: MakeRun, read_page: ReadPage) -> None:
    run = make_run(classes=[HOSTILE, "b", "c"], judged=classified())
    run.set_status("failed", message=HOSTILE)
    remedy = Patch.of({"optimizer.lr": 0.1, "name": "a b"})
    run.write_findings(
        [Finding(symptom=HOSTILE, severity="error", cause=HOSTILE, evidence={HOSTILE: HOSTILE}, remedy=remedy)]
    )
    text = render(run)
    page = read_page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.text.count(HOSTILE) >= 6
    assert f"kingpost train {run.folder / 'recipe.yaml'} optimizer.lr=0.1 'name=a b'" in page.text


@pytest.mark.parametrize("task", ["classification", "regression", "multi-label", "language-modelling"])
def test_every_task(task: str, make_run: MakeRun, read_page: ReadPage) -> None:
    labels = (torch.rand(40, 3) > 0.5).float()
    judged = {
        "classification": classified(),
        "regression": (torch.randn(40, 1), torch.randn(40), torch.rand(40, 4)),
        "multi-label": (torch.rand(40, 3), labels, torch.rand(40, 3, 8, 8)),
        "language-modelling": None,
    }[task]
    said = {
        "classification": ["Confusion matrix", "Wilson", "row", "its probability"],
        "regression": ["True and predicted values", "Errors of the target", "squared error, scaled target"],
        "multi-label": ["average precision", "at a probability of one half"],
        "language-modelling": ["65 tokens", "token accuracy"],
    }[task]
    fitted = {"target": {"mean": [0.0], "std": [1.0]}} if task == "regression" else {}
    page = read_page(render(make_run(task, classes=["a", "b", "c"], judged=judged, fitted=fitted)))
    assert all(words in page.text for words in said)
    assert page.tags.count("svg") == (7 if task == "regression" else 5)
    assert page.tags.count("img") == (24 if task == "multi-label" else 0)
    assert ("judged.safetensors" in page.text) is False


def test_several_targets_and_very_many_samples(make_run: MakeRun, read_page: ReadPage) -> None:
    targets = torch.randn(5000, 6)
    text = render(make_run("regression", judged=(targets + 0.1, targets, torch.rand(5000, 4))))
    page = read_page(text)
    assert page.tags.count("svg") == 5 + 2 * 4
    assert "first 4 of 6 targets" in page.text
    assert "1,000 of 5,000 samples, the 100 with the largest errors" in page.text
    assert len(text) < 1_000_000


def test_many_classes_become_pairs_and_a_short_table(make_run: MakeRun, read_page: ReadPage) -> None:
    probabilities, _, inputs = classified(120, 400)
    targets = torch.arange(400) % 120
    page = read_page(render(make_run(classes=[f"c{i}" for i in range(120)], judged=(probabilities, targets, inputs))))
    assert "Confusion matrix" not in page.text
    assert "the 15 worst pairs" in page.text
    assert "The 100 of 120 with the lowest F1" in page.text


def test_long_histories_are_thinned_and_say_so(make_run: MakeRun, read_page: ReadPage) -> None:
    text = render(make_run(steps=20_000))
    assert "lowest and highest value of every 40 steps" in read_page(text).text
    assert len(text) < 300_000


def test_numbers_that_cannot_be_drawn_are_left_out(make_run: MakeRun, read_page: ReadPage) -> None:
    run = make_run()
    rows = ["step,epoch,loss,learning_rate,gradient_norm,scale", "1,1,nan,0.1,inf,8.0", "2,1,1.5,0.1,0.0,4.0"]
    (run.folder / "steps.csv").write_text("\n".join(rows) + "\n")
    run.write_results([{"epoch": 1, "step": 2, "train_loss_nats": float("nan")}])
    page = read_page(render(run))
    assert "1 steps without a value that can be drawn" in page.text
    assert "No step has a gradient norm that can be drawn" in page.text
    assert "Not drawn, but in steps.csv: scale." in page.text


def test_a_run_that_has_only_begun(tmp_path: Path, read_page: ReadPage) -> None:
    run = kp.Run.create(kp.Recipe(name="new", data="digits", model="mlp"), tmp_path)
    page = read_page(render(run))
    for said in (
        "This run has not ended",
        "no results.csv",
        "no steps.csv",
        "Nothing has been judged yet",
        "no judged.safetensors",
        "Nothing was measured yet",
        "the run ended before its data was opened",
        f"kingpost resume {run.folder}",
    ):
        assert said in page.text
    assert "svg" not in page.tags


def test_a_failed_run_says_why_and_how_to_go_on(make_run: MakeRun, read_page: ReadPage) -> None:
    run = make_run()
    write_json(run.folder / "run.json", {"status": "failed", "message": "NonFiniteError: step 7: a NaN"})
    page = read_page(render(run))
    assert "NonFiniteError: step 7: a NaN" in page.text
    assert f"kingpost resume {run.folder}" in page.text and "kingpost predict" not in page.text


def test_without_validation_or_test(make_run: MakeRun, read_page: ReadPage) -> None:
    run = make_run()
    run.write_results([{"epoch": 1, "step": 10, "train_loss_nats": 1.0}])
    run.set_status("finished", best={"epoch": 1}, test={})
    page = read_page(render(run))
    assert "There is no validation loss" in page.text
    assert "neither validation nor test figures" in page.text
    run.set_status("finished", best={"epoch": 1, "validation_loss": 0.5, "validation_accuracy": 0.5})
    assert "There is no test part" in read_page(render(run)).text


def test_early_stopping_is_told_and_not_resumed(make_run: MakeRun, read_page: ReadPage) -> None:
    run = make_run()
    run.set_status("finished", message="early stopping ended the run")
    page = read_page(render(run))
    assert "early stopping ended the run" in page.text
    assert "kingpost resume" not in page.text


def test_techniques_that_change_the_training_loss_are_named(make_run: MakeRun, read_page: ReadPage) -> None:
    page = read_page(render(make_run(techniques=["label-smoothing", "clip"])))
    assert "not the plain loss, as validation is: label-smoothing changed it" in page.text


def test_a_recipe_with_a_living_object(make_run: MakeRun, read_page: ReadPage) -> None:
    page = read_page(render(make_run(model=torch.nn.Linear(4, 3))))
    assert "go on in Python" in page.text and "kingpost train" not in page.text.split("What next")[1]


def test_a_missing_extra_is_one_clear_line(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"report\.html needs 'jinja2'.*pip install 'kingpost\[report\]'"):
        report(run)
    assert not (run.folder / "report.html").exists()


def test_importing_the_report_loads_neither_library() -> None:
    code = "import sys, kingpost.report.html; assert not {'jinja2', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_task_that_cannot_be_found_here(make_run: MakeRun, read_page: ReadPage) -> None:
    run = make_run()
    write_json(run.folder / "data.json", {**run.data, "task": "elsewhere:Task"})
    page = read_page(render(run))
    assert "elsewhere:Task" in page.text and "unit of the task" in page.text
    assert page.tags.count("svg") == 5


def test_a_single_step_is_a_visible_point(make_run: MakeRun) -> None:
    svgs = re.findall(r"<svg.*?</svg>", render(make_run(steps=1)), flags=re.DOTALL)
    assert all("fill: var(--blue)" in svg for svg in svgs[2:])  # a line has a stroke, only a marker is filled
    assert "mean over" not in svgs[2]


def test_every_command_is_one_that_the_command_line_takes(make_run: MakeRun, read_page: ReadPage) -> None:
    """Only parsed: what the commands do is tested where they live."""
    from kingpost.cli import _parse

    text = read_page(render(make_run())).text.split("What next")[1]
    lines = re.findall(r"kingpost (?:predict|resume|train) [^:]*?(?= Pred| Train| The|\s*$)", text)
    assert len(lines) == 5
    for line in lines:
        _parse(shlex.split(line)[1:])
