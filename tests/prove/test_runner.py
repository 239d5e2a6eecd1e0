"""Trials in real processes: what a run gives, what survives a kill, what is no outcome."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kingpost as kp
from kingpost.errors import MissingExtraError, RunError
from kingpost.ledger import Ledger
from kingpost.prove.runner import Ray, _cores
from kingpost.prove.trial import resume
from kingpost.verdict import Verdicts

ARMS = {"fast": "optimizer.lr=0.03", "slow": "optimizer.lr=0.0001"}
SMALL = {"min_pairs": 3, "max_pairs": 3, "smallest_effect": 0.05, "workers": 2, "quiet": True}

# What a user's script would do; killed from outside.
SCRIPT = """
import sys, kingpost as kp
recipe = kp.Recipe.load(sys.argv[1])
kp.prove(recipe, {"fast": "optimizer.lr=0.03"}, max_pairs=3, smallest_effect=0.05, workers=2, quiet=True, name="t")
"""


@pytest.fixture(scope="module")
def long_recipe():
    """Runs of a few hundred steps, with a checkpoint every epoch."""
    return kp.Recipe(
        name="long",
        data="digits",
        model={"name": "mlp", "widths": [16]},
        techniques=["dropout", "ema"],
        budget={"epochs": 6},
        layout={"name": "data-parallel", "device": "cpu", "threads": 1},
    )


def measured(folder):
    """The outcomes of a trial: the metric against the epoch, without what depends on the clock."""
    found = {}
    for path in sorted(Path(folder).glob("runs/*/seed-*/outcome.json")):
        outcome = json.loads(path.read_text())
        values = [value for _, value in outcome["curve"]]
        found[path.parts[-3:-1]] = (outcome["status"], outcome["value"], outcome["steps"], values)
    return found


def told(verdict):
    return verdict.decision, verdict.difference, verdict.lower, verdict.upper, verdict.p, verdict.pairs


@pytest.fixture(scope="module")
def whole(long_recipe, tmp_path_factory):
    """The trial that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    verdicts = kp.prove(
        long_recipe, {"fast": "optimizer.lr=0.03"}, max_pairs=3, smallest_effect=0.05, workers=1, quiet=True,
        name="t", root=folder / "trials", ledger=folder / "ledger.jsonl",
    )  # fmt: skip
    return folder, verdicts


def test_a_run_of_a_trial_is_the_run_that_train_gives(whole, long_recipe, tmp_path):
    folder, _ = whole
    for arm, change in (("baseline", {}), ("fast", {"optimizer.lr": 0.03})):
        run = kp.train(long_recipe.patched(change).with_(seed=2, save={"report": False}), tmp_path / arm, quiet=True)
        _, value, steps, values = measured(folder / "trials/t")[arm, "seed-2"]
        assert [row["validation_accuracy"] for row in run.results] == values
        assert (values[-1], run.summary["step"]) == (value, steps)


def test_costs_weights_and_page(whole):
    folder, verdicts = whole
    verdict = verdicts["fast"]
    assert verdict.same_weights == 1.0 and verdict.costs["arm"].parameters == 64 * 16 + 16 + 160 + 10
    assert verdict.costs["baseline"].samples == 6 * 1259 and verdict.costs["arm"].seconds > 0
    assert verdict.costs["baseline"].reached_target >= 2
    assert not list(folder.glob("trials/t/runs/*/*/weights")) and (folder / "trials/t/report.html").is_file()
    assert Verdicts.open(folder / "trials/t") == verdicts
    assert Ledger(folder / "ledger.jsonl").verify(head=verdict.ledger_sha256) == []


@pytest.mark.slow
@pytest.mark.parametrize("finished", [1, 3])
def test_a_trial_killed_at_any_time_ends_with_the_same_verdict(whole, long_recipe, finished, tmp_path):
    long_recipe.save_to(tmp_path / "long.yaml")
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, "long.yaml"], cwd=tmp_path, start_new_session=True)
    until = time.monotonic() + 100
    while len(measured(tmp_path / "trials/t")) < finished or not list(
        tmp_path.glob("trials/t/runs/*/*/checkpoints/step-*")
    ):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = measured(tmp_path / "trials/t")
    assert len(before) < 6
    assert Ledger(tmp_path / "ledger.jsonl").verify() == []
    time.sleep(1)  # the workers notice
    verdicts = resume(tmp_path / "trials/t", ledger=tmp_path / "ledger.jsonl", workers=2, quiet=True)
    assert measured(tmp_path / "trials/t") == measured(whole[0] / "trials/t")
    assert told(verdicts["fast"]) == told(whole[1]["fast"])
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.verify() == [] and len(ledger.entries(kind="declared")) == 1
    keys = [entry.body["key"] for entry in ledger.entries(kind="run")]
    assert len(keys) == len(set(keys)) == 6


@pytest.mark.slow
def test_a_trial_that_is_asked_to_stop_saves_and_goes_on(whole, long_recipe, tmp_path):
    long_recipe.save_to(tmp_path / "long.yaml")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "long.yaml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("trials/t/runs/*/*/checkpoints/step-*")):
        time.sleep(0.01)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert "TrialStopped: stopped; what is done stays. Go on with: kingpost prove --resume trials/t" in said
    assert all(
        kp.Run(path.parent).status in ("stopped", "finished") for path in tmp_path.glob("trials/t/runs/*/*/run.json")
    )
    verdicts = resume(tmp_path / "trials/t", ledger=tmp_path / "ledger.jsonl", workers=2, quiet=True)
    assert told(verdicts["fast"]) == told(whole[1]["fast"])


@pytest.mark.slow
def test_a_run_that_diverges_is_an_outcome_and_stays_one(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdicts = kp.prove(tiny, {"wild": "optimizer={name: sgd, lr: 1.0e+38}"}, **SMALL | {"max_pairs": 12})
    verdict = verdicts["wild"]
    assert verdict.decision == "hurts" and {pair.arm for pair in verdict.pairs} == {None}
    assert verdict.costs["arm"].failed == len(verdict.pairs) and "NonFiniteError" in verdict.notes[-1]
    assert {e.body["status"] for e in Ledger().entries(kind="run") if e.body["arm"] == "wild"} == {"failed"}


SUDDEN = """
import os
from torch import nn

class Net(nn.Linear):
    def __init__(self, sudden=False):
        super().__init__(64, 10)
        self.sudden = sudden
    def forward(self, x):
        if self.sudden and self.training and type(x).__name__ == "Tensor" and os.path.exists("now"):
            os.kill(os.getpid(), 9)
        return super().forward(x.flatten(1))
"""


@pytest.mark.slow
def test_a_process_that_dies_is_tried_again_and_then_a_failed_outcome(tiny, tmp_path, monkeypatch):
    (tmp_path / "sudden_net.py").write_text(SUDDEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = tiny.with_(model={"name": "sudden_net:Net"})
    kp.prove(
        recipe, {"sudden": "model.sudden=true"}, **SMALL | {"max_pairs": 12}, seconds=0.001, name="t"
    )  # declares, and runs nothing
    (tmp_path / "now").touch()
    verdict = resume("trials/t", workers=2, quiet=True)["sudden"]
    assert {pair.arm for pair in verdict.pairs} == {None}
    assert all(pair.baseline is not None for pair in verdict.pairs)
    assert "ended by signal 9" in verdict.notes[-1]


@pytest.mark.slow
def test_what_is_not_the_arms_fault_is_no_outcome(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{k % 7},{k % 5},{k % 2}\n" for k in range(200))
    (tmp_path / "table.csv").write_text("a,b,y\n" + rows)
    data = {"name": "table", "train": "table.csv", "target": "y"}
    recipe = tiny.with_(data=data)
    kp.prove(recipe, {"fast": ARMS["fast"]}, **SMALL, seconds=0.001, name="t")
    (tmp_path / "table.csv").rename(tmp_path / "away.csv")
    with pytest.raises(RunError, match=r"seed-0 could not be run: DataError: .*go on with: kingpost prove --resume"):
        resume("trials/t", workers=1, quiet=True)
    (tmp_path / "away.csv").rename(tmp_path / "table.csv")
    assert len(resume("trials/t", workers=2, quiet=True)["fast"].pairs) == 3


@pytest.mark.slow
def test_the_small_search_gives_every_arm_its_own_value_on_other_seeds(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny.with_(budget={"steps": 30})
    arms = {"sgd": "optimizer={name: sgd, lr: 0.1}"}
    verdict = kp.prove(recipe, arms, **SMALL, retune=["optimizer.lr=0.0001,0.05"], name="t")["sgd"]
    assert verdict.retuned == {"optimizer.lr": {"baseline": 0.05, "sgd": 0.05}}
    assert sum(note.startswith("edge") for note in verdict.notes) == 2
    assert json.loads(next(Path("trials/t/runs/sgd/seed-0").glob("run.json")).read_text())["status"] == "finished"
    assert kp.Run(Path("trials/t/runs/sgd/seed-0")).recipe.optimizer.lr == 0.05
    rows = [entry.body for entry in Ledger().entries(kind="retuned")]
    assert [(row["arm"], row["chosen"]) for row in rows] == [
        ("baseline", {"optimizer.lr": 0.05}),
        ("sgd", {"optimizer.lr": 0.05}),
    ]
    used = {entry.body["seed"] for entry in Ledger().entries(kind="run") if ".retune-" in entry.body["key"]}
    assert used == {1_000_000, 1_000_001} and {pair.seed for pair in verdict.pairs} == {0, 1, 2}


@pytest.mark.slow
def test_time_is_kept_and_the_rest_comes_later(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    verdict = kp.prove(tiny, {"fast": ARMS["fast"]}, **SMALL, seconds=0.001, name="t")["fast"]
    assert verdict.decision == "no evidence yet" and not verdict.final and "the time was up after 0" in verdict.reason
    assert time.monotonic() - started < 60
    assert resume("trials/t", workers=2, quiet=True)["fast"].final


@pytest.mark.slow
def test_two_processes_cannot_work_on_one_trial(tiny, tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.chdir(tmp_path)
    kp.prove(tiny, {"fast": ARMS["fast"]}, **SMALL, seconds=0.001, name="t")
    with FileLock("trials/t/.lock"), pytest.raises(RunError, match="another process is at work on trial"):
        resume("trials/t", quiet=True)


def test_workers_share_out_the_cores(monkeypatch):
    monkeypatch.setattr("kingpost.prove.runner.cores", lambda: [2, 3, 5, 7])
    assert [_cores(number, 2, 2) for number in range(2)] == [[2, 3], [5, 7]]
    assert _cores(0, 1, 4) == [] == _cores(0, 3, 2)


def test_a_missing_ray_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"a Ray cluster needs 'ray'.*pip install 'kingpost\[ray\]'"):
        Ray("auto", 1)


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_verdict(whole, long_recipe, tmp_path):
    pytest.importorskip("ray")
    verdicts = kp.prove(
        long_recipe, {"fast": "optimizer.lr=0.03"}, max_pairs=3, smallest_effect=0.05, ray="local", quiet=True,
        name="t", root=tmp_path / "trials", ledger=tmp_path / "ledger.jsonl",
    )  # fmt: skip
    assert measured(tmp_path / "trials/t") == measured(whole[0] / "trials/t")
    assert told(verdicts["fast"]) == told(whole[1]["fast"])
