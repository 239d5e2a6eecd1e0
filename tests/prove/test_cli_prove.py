import json
import shlex
import sys

import pytest

from kingpost.cli import main
from kingpost.cli_prove import gathered, seconds_of
from kingpost.errors import RecipeError
from kingpost.ledger import Ledger

SMALL = """
name: small
data: digits
model: {name: mlp, widths: [16]}
budget: {steps: 3}
techniques: [label-smoothing]
layout: {name: data-parallel, device: cpu, threads: 1}
"""


SCRIPT = """
import sys
bonus = float(sys.argv[3]) if len(sys.argv) > 2 else 0
print(f"accuracy={0.8 + int(sys.argv[1]) % 3 / 1000 + bonus}")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "foreign.py").write_text(SCRIPT)
    return tmp_path


def command(arm, *rest):
    line = f"{shlex.quote(sys.executable)} -S foreign.py {{seed}} {{patch}}"
    return ["prove", "--command", line, "--arm", "more", *arm, "--metric", "accuracy", "--quiet", *rest]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("prove", "no recipe, --command or --resume; for example kingpost prove digits --arm NAME key=value"),
        ("prove small.yaml", "arms: a trial needs at least one arm; for example --arm smoothing "),
        ("prove small.yaml --arm", "--arm: no name and no patch; write --arm NAME key=value"),
        ("prove small.yaml --arm wide",
         "--arm: arm 'wide' has no patch; for example --arm wide techniques+=label-smoothing"),
        ("prove small.yaml --arm seed=3 optimizer.lr=1", "--arm: 'seed=3' is a patch, not a name; "),
        ("prove small.yaml --arm a seed=3 --arm a seed=4", "--arm: two arms are called 'a'; give each a name "),
        ("prove small.yaml --arm a model.widhts=[8]",
         "arms.a.model.widhts: unknown key; did you mean 'widths'? known: "),
        ("prove smal.yaml --arm a seed=3", "no recipe 'smal.yaml'; did you mean 'small'? known: "),
        ("prove small.yaml --arm a optimizer.lr=1 --smalest 3",
         "unknown option '--smalest'; did you mean '--smallest'? known: "),
        ("prove small.yaml --arm a optimizer.lr=0.1 --metric acc",
         "metric: unknown metric 'acc'; did you mean 'accuracy'? known: "),
        ("prove small.yaml --arm a optimizer.lr=0.1 --time soon", "--time: got 'soon'; for example 90s, 20m or 1h30m"),
        ("prove small.yaml --arm a optimizer.lr=0.1 --workers 0", "workers: got 0, expected 1 or more"),
        ("prove small.yaml --without mixup", "arms.without-mixup.techniques: no 'mixup' in the list; "),
        ("prove --resume nothing", "no trial in 'trials/nothing': there is no declaration.json"),
        ("prove small.yaml --resume nothing", "--resume goes on with what is declared; leave the recipe, "),
        ("prove --command 'run {seed}' --arm a b --metric x", "command: has no {patch}, which is where "),
        ("prove --command 'run {seed} {patch}' --arm a --b", "metric: "),
        ("ledger", "no ledger 'ledger.jsonl' here; kingpost prove writes one, or name it with --ledger FILE"),
        ("ledger verfy", "argument what: invalid choice: 'verfy' "),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line_and_code_2(words, line, here, capsys):
    before = sorted(here.iterdir())
    assert main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {line}") and err.count("\n") == 1 and out == ""
    assert sorted(here.iterdir()) == before


def test_words_of_an_arm_are_taken_together():
    given = ["small.yaml", "--arm", "a", "x=1", "y+=z", "--alpha", "0.1", "--arm", "b", "z=2", "--json"]
    assert gathered(given) == [
        "small.yaml", '--arm=["a", "x=1", "y+=z"]', "--alpha", "0.1", '--arm=["b", "z=2"]', "--json"
    ]  # fmt: skip
    foreign = ["--command", "run", "--arm", "a", "--flag", "--width=3", "--metric", "x"]
    assert gathered(foreign) == ["--command", "run", '--arm=["a", "--flag", "--width=3"]', "--metric", "x"]
    with pytest.raises(RecipeError, match=r"unknown option '--metrics'; did you mean '--metric'\?"):
        gathered(["--command", "run", "--arm", "a", "--flag", "--metrics", "x"])


def test_spans_of_time():
    assert [seconds_of(text) for text in ("90", "1.5m", "1h30m", "2d")] == [90, 90, 5400, 172800]
    for text in ("", "m", "5 m", "-3s", "3x"):
        with pytest.raises(RecipeError):
            seconds_of(text)


@pytest.mark.parametrize(
    ("bonus", "code", "decision"), [("0.05", 0, "helps"), ("-0.05", 3, "hurts"), ("0", 4, "no difference that matters")]
)
def test_the_exit_code_is_the_decision(bonus, code, decision, here, capsys):
    words = command(["--bonus", bonus], "--json")
    assert main(words) == code
    value = json.loads(capsys.readouterr().out)
    assert value["decision"] == decision == value["arms"][0]["decision"]
    assert main(words) == code  # the same command again
    assert json.loads(capsys.readouterr().out) == value
    assert main(["ledger", "--decision", decision, "--kind", "verdict", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["sha256"] == value["arms"][0]["ledger_sha256"]
    assert main([*words[:-1], "--alpha", "0.01"]) == 2
    assert "what is declared stays" in capsys.readouterr().err


def test_too_few_pairs_are_no_evidence(here, capsys):
    assert main(command(["--bonus", "0.05"], "--time", "0.001s")) == 5
    assert "NO EVIDENCE YET" in capsys.readouterr().out


def test_a_dry_run_says_runs_time_and_memory_and_writes_nothing(here, capsys):
    before = sorted(here.iterdir())
    words = "prove small.yaml --without each --retune optimizer.lr --min-pairs 3 --max-pairs 5 --workers 2 --dry-run"
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert "runs       18 to 22, 12 of them for the small search" in out
    assert "pairs      3 to 5 (as given)" in out and "2 runs at a time" in out and "memory  " in out
    assert sorted(here.iterdir()) == before


def test_the_ledger_is_listed_and_verified(here, capsys):
    ledger = Ledger()
    for trial, decision in (("first", "helps"), ("second", "hurts")):
        ledger.append("declared", trial, {"says": f"{trial} begins"})
        ledger.append("verdict", trial, {"decision": decision, "says": f"it {decision}"})
    assert main(["ledger"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2", "3", "4"]
    assert main(["ledger", "list", "--trial", "second", "--decision", "hurts"]) == 0
    assert capsys.readouterr().out.strip().endswith("second: it hurts")
    assert main(["ledger", "--since", "9999"]) == 0 and "no such rows" in capsys.readouterr().out
    assert main(["ledger", "--trial", "secnd"]) == 0 and "did you mean 'second'" in capsys.readouterr().out
    head = ledger.entries()[-1].sha256
    assert main(
        ["ledger", "verify", "--head", head]
    ) == 0 and f"all 4 rows are whole and in order; the last one is {head}" in (capsys.readouterr().out)
    text = ledger.path.read_text()
    ledger.path.write_text(text.replace("it helps", "it hurts"))
    assert main(["ledger", "verify"]) == 1
    assert "ledger.jsonl, line 2: row 2 was changed after it was written" in capsys.readouterr().out
    assert main(["ledger", "verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"][0]["line"] == 2
