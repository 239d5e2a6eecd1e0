import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kingpost
from kingpost.cli import COMMANDS, main
from kingpost.recipe import Recipe
from kingpost.run import Run

SMALL = """
name: small
data: digits
model: {name: mlp, widths: [16]}
budget: {steps: 3}
save: {report: false}
layout: {name: data-parallel, device: cpu, threads: 1}
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The command line puts the folder on the path, and a recipe may set the number of threads."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with small.yaml, and a finished run of it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(SMALL)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "small.yaml", "--quiet"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("tarin digits",
         "unknown command 'tarin'; did you mean 'train'? known: "),
        ("plan digitz", "no recipe 'digitz'; did you mean 'digits'? known: "),
        ("plan digits optimzer.lr=1",
         "optimzer: unknown key; did you mean 'optimizer'? known: batch_size, budget, data, initialise, layout, model, "
         "name, optimizer, save, schedule, seed, stages, task, techniques"),
        ("plan digits optimizer.lrr=1",
         "optimizer.lrr: unknown key; did you mean 'lr'? known: beta1, beta2, decay_embeddings, eps, lr, weight_decay"),
        ("plan digits batch_size=many",
         "batch_size: got 'many': should be a valid integer; expected a whole number >= 1"),
        ("plan digits batch_size", "'batch_size' is not an override; write key=value, for example optimizer.lr=0.01"),
        ("plan digits --mesure",
         "unknown option '--mesure'; did you mean '--measure'? known: --json, --measure; see kingpost plan --help"),
        ("plan digits -x", "unknown option '-x'; known: --json, --measure; see kingpost plan --help"),
        ("plan", "the following arguments are required: recipe; see kingpost plan --help"),
        ("--verbose plan digits", None),
        ("plan digits techniques=[bf16,fp16]",
         "techniques: 'bf16' and 'fp16' exclude each other: a matrix product has one precision; remove one, for "
         "example with techniques-=fp16"),
        ("plan digits techniques+=sam techniques+=accumulate",
         "techniques: 'sam' must come after 'accumulate'; the right order: [crop, ema, accumulate, "
         "sam]"),
        ("plan digits model.depth=5",
         "model.depth: 5 stages halve 8 x 8 pixels to nothing; use at most 3 stages"),
        ("plan digits layout.device=gpu", None),
        ("plan digits data=table", None),
        ("resume smal", "no run 'smal' here or in 'runs/'; did you mean 'small'? known: small"),
        ("resume small optimizer.lr=1",
         "optimizer.lr: cannot be changed on resume; train a new run; only budget.* and save.* can"),
        ("report smal", "no run 'smal' here or in 'runs/'; did you mean 'small'? known: small"),
        ("predict smal", "no run 'smal' here or in 'runs/'; did you mean 'small'? known: small"),
        ("predict small --part tset",
         "the data has no part 'tset'; did you mean 'test'? known: test, train, validation"),
        ("predict small --weights bset",
         "argument --weights: invalid choice: 'bset' (choose from 'best', 'last'); see kingpost predict --help"),
        ("predict small --input nothing.csv", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_used_is_one_line_and_code_2(words, line, as_json, here, capsys):
    assert main([*shlex.split(words), *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {line or ''}") and err.count("\n") == 1 and err.endswith("\n")
    if line and not line.endswith("known: "):
        assert err == f"error: {line}\n"
    if as_json:
        assert json.loads(out)["error"] == err.removeprefix("error: ").rstrip("\n")
    else:
        assert out == ""


def test_nothing_is_left_of_a_recipe_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ("digits optimizer.lrr=1", "digits techniques=[sam,accumulate]", "digitz"):
        assert main(["train", *words.split(), "--quiet"]) == 2
    assert os.listdir(tmp_path) == []


def test_a_training_that_fails_is_code_1(here, capsys):
    assert main(["train", "small.yaml", "name=bad", "optimizer={name: sgd, lr: 1e38}", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: step ") and "The weights were not changed" in err
    assert err.count("\n") == 1
    assert Run.open("bad").status == "failed"


@pytest.mark.parametrize(
    "words",
    [
        "train small.yaml name=j --quiet",
        "resume j",
        "plan small.yaml",
        "plan small.yaml --measure",
        "predict small --output p.csv",
        "runs",
        "schema",
    ],
)
def test_json_is_json(words, here, capsys):
    if words == "resume j":
        assert main(["train", "small.yaml", "name=j", "--quiet"]) == 0
        capsys.readouterr()
    assert main([*words.split(), *(["--json"] if words != "schema" else [])]) == 0

    def no_constant(word):
        raise AssertionError(f"{word} is not JSON")

    assert json.loads(capsys.readouterr().out, parse_constant=no_constant)


def test_report_says_where_it_is(here, capsys):
    assert main(["report", "small", "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["report"]).read_text().startswith("<!")


def test_quiet_says_nothing(here, capsys):
    assert main(["train", "small.yaml", "name=q", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_runs_go_where_they_are_told_to(here, tmp_path, capsys):
    assert main(["train", "small.yaml", "--runs", str(tmp_path / "mine"), "--quiet"]) == 0
    assert os.listdir(tmp_path / "mine") == ["small"]
    assert main(["runs", "--runs", str(tmp_path / "mine"), "--json"]) == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)] == ["small"]
    assert main(["runs", "--runs", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == f"no runs in '{tmp_path}/none/' yet; start one with: kingpost train digits\n"


def test_runs_are_a_table(here, capsys):
    assert main(["runs"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "status", "epoch", "step", "seconds", "best", "test"]
    row = next(row.split() for row in rows if row.split()[:1] == ["small"])
    assert row[1:4] == ["finished", "1", "3"]


def test_next_commands_are_named(here, capsys):
    assert main(["train", "small.yaml", "name=n"]) == 0
    out = capsys.readouterr().out
    assert "  kingpost predict runs/n\n  kingpost report runs/n\n  kingpost runs\n" in out
    assert len(out.splitlines()) <= 30


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_shows_exit_codes_and_examples(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    out = capsys.readouterr().out
    codes = (COMMANDS[words[0]].exit_codes if words else "") or "exit codes:\n  0      done\n"
    assert ended.value.code == 0 and codes in out and "143: by SIGTERM" in out
    for example in COMMANDS[words[0]].examples if words else [c.examples[0] for c in COMMANDS.values()]:
        assert f"\n  {example}\n" in out


def test_version_and_no_words(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"kingpost {kingpost.__version__}\n"
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and "examples:" in capsys.readouterr().out


def test_techniques_are_listed_and_shown(capsys):
    assert main(["techniques", "--kind", "technique", "--slot", "stop"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "kind", "touches", "time", "activations", "state", "what"]
    assert [row.split()[:2] for row in rows] == [["early-stopping", "technique"]]
    assert main(["techniques", "--slot", "order", "--json"]) == 0
    assert all("order" in card["touches"] for card in json.loads(capsys.readouterr().out))
    assert main(["techniques", "show", "mixup"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mixup (technique): Train on ") and "unproven" in out and len(out.splitlines()) <= 30
    assert main(["techniques", "show", "mixup", "--json"]) == 0
    field = {"name": "alpha", "default": "0.2", "meaning": "Strength: 0 never mixes, 1 mixes uniformly."}
    assert json.loads(capsys.readouterr().out)["fields"] == [field]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("show mixap", "no technique 'mixap'; did you mean 'mixup'?"),
        ("show", "show which technique; for example kingpost techniques show mixup"),
        ("mixup", "unknown word 'mixup'; write kingpost techniques show mixup"),
        ("show mixup --kind optimizer", "--kind and --slot have no effect on one card; leave them out"),
        ("--slot stpo", "no slot 'stpo'; did you mean 'stop'? known: "),
        ("--kind optimiser", "no kind 'optimiser'; did you mean 'optimizer'? known: "),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_card_that_is_not_there_is_one_line_and_code_2(given, line, as_json, capsys):
    assert main(["techniques", *given.split(), *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {line}") and err.count("\n") == 1
    assert bool(out) == as_json


ORDER = (
    "train",
    "resume",
    "plan",
    "lr",
    "nets",
    "techniques",
    "size",
    "predict",
    "calibrate",
    "probe",
    "attack",
    "generate",
    "runs",
    "report",
    "schema",
    "learn-optimizer",
    "prove",
    "tune",
    "ledger",
)


@pytest.mark.slow
def test_every_example_in_the_help_runs_as_it_stands(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    tell_a_tale(tmp_path)
    for name in ORDER:
        for example in COMMANDS[name].examples:
            program, *words = shlex.split(example)
            assert program == "kingpost" and words[0] == name
            code = main(words)
            out, err = capfd.readouterr()
            assert code == 0, f"{example}: {err}"
            assert "Traceback" not in err
            assert out.count("status     ") <= 1  # processes that were launched leave the last word to the launcher
            if "--json" in words:
                json.loads(out)
    assert set(COMMANDS) == {*ORDER, "study"}  # studies need a checkout, and minutes: tests/prove/test_study.py
    assert Run.open("digits").summary["epoch"] == 42  # the last of the examples of resume


def tell_a_tale(folder):
    """A language model in runs/tale, barely trained, for the examples of generate."""
    (folder / "tale.txt").write_text("Once the king post held the roof, and the roof held out the rain.\n" * 30)
    recipe = kingpost.Recipe.from_value(
        {
            "name": "tale",
            "data": {"name": "text", "path": [str(folder / "tale.txt")], "context": 16},
            "model": {"name": "gpt", "depth": 1, "width": 16},
            "budget": {"steps": 2},
            "layout": {"name": "data-parallel", "threads": 1},
            "save": {"report": False},
        }
    )
    return kingpost.train(recipe, root=folder / "runs", quiet=True)


def test_generate_goes_on_from_the_prompt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tell_a_tale(tmp_path)

    def said(*words):
        assert main(["generate", "tale", "--prompt", "Once ", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)["text"]

    once = said("--tokens", "30")
    assert once.startswith("Once ") and len(once) == len("Once ") + 30
    assert once == said("--tokens", "30") != said("--tokens", "30", "--seed", "1")
    assert said("--temperature", "0", "--tokens", "8") == said("--top-k", "1", "--tokens", "8")
    assert len(said("--beams", "2", "--tokens", "8")) == len("Once ") + 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "0"], "tokens: at least one"),
        (["--temperature", "-1"], "temperature:"),
        (["--prompt", ""], "prompt: is empty"),
        (["--prompt", "\u00dc"], "characters are not in the training text"),
    ],
)
def test_generate_says_what_it_cannot_do(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tell_a_tale(tmp_path)
    assert main(["generate", "tale", *words]) == 2
    assert message in capsys.readouterr().err


def kingpost_process(words, folder, **options):
    command = [sys.executable, "-m", "kingpost", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_rest_is_done_on_resume(number, code, here, capsys):
    name = f"stopped-{code}"
    changes = ["budget.epochs=15"]
    process = kingpost_process(["train", "small.yaml", *changes, f"name={name}"], here)
    until = time.monotonic() + 60
    while not list((here / "runs" / name / "checkpoints").glob("step-*")) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"go on with: kingpost resume runs/{name}" in out and "Traceback" not in err
    stopped = Run(here / "runs" / name)
    assert stopped.status == "stopped" and 0 < stopped.summary["step"] < 15 * 20

    assert main(["resume", name, "--quiet"]) == 0
    assert stopped.status == "finished" and "message" not in {k for k, v in stopped.summary.items() if v}
    if not (whole := here / "runs" / "whole").exists():
        assert main(["train", "small.yaml", *changes, "name=whole", "--quiet"]) == 0
    for which in ("best", "last"):
        ours, theirs = (load_file(Run(folder).weights(which)) for folder in (stopped.folder, whole))
        assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
    assert [row["loss"] for row in stopped.steps] == [row["loss"] for row in Run(whole).steps]


def test_a_reader_that_goes_away_is_no_fault(here):
    process = kingpost_process(["plan", "small.yaml"], here)
    process.stdout.close()  # before anything is written
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141 and err == ""


def test_a_module_beside_the_recipe_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "net_beside_recipe.py").write_text(
        "from torch import nn\n\n\ndef net(width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))\n"
    )
    (tmp_path / "own.yaml").write_text(
        SMALL.replace("name: mlp, widths: [16]", "name: net_beside_recipe:net, width: 3")
    )
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "own.yaml", "model.width=4", "--json"]) == 0
    figures = {f["name"]: f["value"] for f in json.loads(capsys.readouterr().out)["figures"]}
    assert figures["parameters"] == 64 * 4 + 4 + 4 * 10 + 10
    assert Recipe.load("own.yaml").model.arguments == {"width": 3}
    sys.modules.pop("net_beside_recipe")


@pytest.mark.slow
def test_ctrl_c_reaches_all_processes(tmp_path: Path) -> None:
    """Told to the parent alone, it stops the two that train, and the run can go on."""
    words = ["train", "digits", "layout.data=2", "name=pair", "budget.epochs=500", "save.report=false", "--quiet"]
    command = [sys.executable, "-m", "kingpost", *words]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log) as process,
    ):
        results = tmp_path / "runs" / "pair" / "results.csv"
        while not results.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 143, (tmp_path / "log").read_text()[-2000:]
    run = Run(tmp_path / "runs" / "pair")
    assert run.status == "stopped"
    assert run.summary["step"] == len(run.steps) < 500 * 20
