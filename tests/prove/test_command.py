import json
import shlex
import sys
from pathlib import Path

import pytest

import kingpost as kp
from kingpost.errors import RecipeError, RunError
from kingpost.prove.command import arms_of, check_template, read_metric, words_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("accuracy=0.5", 0.5),
        ("epoch 1: accuracy: 0.25, loss 3\nepoch 2: accuracy: 0.75, loss 2\nbye", 0.75),
        ('{"accuracy": 0.9, "loss": 1}\n', 0.9),
        ('accuracy=0.1\n{"loss": 1}', 0.1),
        ("Accuracy = 1e-3", 0.001),
        ("0.625\n", 0.625),
        ("done\n-3", -3.0),
        ("test_accuracy=0.3\naccuracy_top5=0.9\n", None),
        ("accuracy is good\n", None),
        ("accuracy=0.5.1", None),
        ("", None),
        ("all is well 0.7", None),
        ("'accuracy': 0.8", 0.8),
        ('{"accuracy": true}', None),
    ],
)
def test_the_metric_is_read_from_what_was_printed(text, value):
    assert read_metric(text, "accuracy") == value


def test_a_program_that_prints_nan_has_diverged():
    assert str(read_metric("accuracy=nan", "accuracy")) == "nan" and read_metric("accuracy: -inf", "accuracy") < -1e308


def test_words_stand_where_the_patch_was():
    template = "python 'my train.py' --seed={seed} {patch} --out x{patch}y"
    assert words_of(template, "--a '1 2'") == [
        "python", "my train.py", "--seed={seed}", "--a", "1 2", "--out", "x--a '1 2'y"
    ]  # fmt: skip
    assert arms_of("run {seed} {patch}", {"both": ["--a 1", "--b"]}, "baseline") == {
        "baseline": ["run", "{seed}"],
        "both": ["run", "{seed}", "--a", "1", "--b"],
    }
    for bad in ("run {patch}", "run {seed}"):
        with pytest.raises(RecipeError, match="command: has no"):
            check_template(bad)


SCRIPT = """
import argparse, random, sys
parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int)
parser.add_argument("--bonus", type=float, default=0)
parser.add_argument("--break-at", type=int, default=-1)
parser.add_argument("--mute", action="store_true")
args = parser.parse_args()
print("working", file=sys.stderr)
if args.seed == args.break_at:
    raise ValueError("it broke")
value = random.Random(args.seed).gauss(0.8, 0.05) + args.bonus + random.Random(args.seed + 1).gauss(0, 0.001)
print("nothing" if args.mute else f"epoch 1 accuracy={value}")
"""


@pytest.fixture
def prove(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    line = f"{shlex.quote(sys.executable)} -S script.py --seed {{seed}} {{patch}}"
    return lambda arms, **wishes: kp.prove(line, arms, metric="accuracy", workers=2, quiet=True, **wishes)


def test_a_foreign_command_is_tried_and_its_output_kept(prove, tmp_path):
    verdicts = prove({"bonus": "--bonus 0.05"})
    assert verdicts.decision == "helps" and verdicts["bonus"].difference == pytest.approx(0.05)
    assert verdicts["bonus"].costs["arm"].peak_memory_mebibytes > 1
    folder = tmp_path / "trials" / "script-bonus" / "runs" / "bonus" / "seed-0"
    assert "accuracy=" in (folder / "output.txt").read_text() and "working" in (folder / "errors.txt").read_text()


def test_a_nonzero_exit_is_a_failed_outcome(prove, tmp_path):
    verdict = prove({"broken": "--break-at 1 --bonus 0.05"}, max_pairs=4)["broken"]
    assert verdict.pairs[1].arm is None and verdict.costs["arm"].failed == 1
    outcome = json.loads((tmp_path / "trials/script-broken/runs/broken/seed-1/outcome.json").read_text())
    assert outcome["message"] == "exit code 1: ValueError: it broke"


def test_a_command_that_prints_no_metric_is_no_outcome(prove, tmp_path):
    with pytest.raises(RunError, match=r"could not be run.*printed no 'accuracy'.*--resume"):
        prove({"mute": "--mute"})
    assert not list(tmp_path.glob("trials/*/runs/mute/*/outcome.json"))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [({"budget": "steps"}, "a command's budget is not known"), ({"retune": ["lr"]}, "a command's retune is not known")],
)
def test_what_kingpost_cannot_do_for_a_command_is_refused(prove, wishes, message):
    with pytest.raises(RecipeError, match=message):
        prove({"bonus": "--bonus 1"}, **wishes)


@pytest.mark.slow
def test_the_example_with_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = ROOT / "examples/prove_foreign/train.py"
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} --seed {{seed}} {{patch}}"
    verdicts = kp.prove(line, {"wider": "--width 32"}, metric="accuracy", max_pairs=5, quiet=True)
    assert verdicts.decision == "helps"
