"""Searches: spaces, what a sitting does with runs that end, fail, are hopeless or killed, and what is said of it."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kingpost as kp
from kingpost import catalogue
from kingpost.cli import main
from kingpost.errors import RecipeError, RunError
from kingpost.ledger import Ledger
from kingpost.option import choose
from kingpost.prove import optuna_study
from kingpost.prove import tune as tuning
from kingpost.prove.progress import TrialDisplay
from kingpost.prove.runner import Local
from kingpost.prove.search import FIRST_SEED, Search, tried
from kingpost.prove.space import Space
from kingpost.prove.space_default import default_words
from kingpost.prove.tuning import Tried, Tuning
from kingpost.run import Run
from kingpost.train.guards import StopRequest
from kingpost.verdict import Pair, Verdict

optuna = pytest.importorskip("optuna")


# ---- spaces


class Draws:
    """Random draws without Optuna."""

    def __init__(self, seed):
        self.random, self.asked = random.Random(seed), {}

    def _keep(self, name, value):
        assert name not in self.asked, "drawn twice"
        self.asked[name] = value
        return value

    def suggest_float(self, name, low, high, *, log=False):
        ends = (math.log(low), math.log(high)) if log else (low, high)
        value = self.random.uniform(*ends)
        return self._keep(name, min(high, max(low, math.exp(value) if log else value)))

    def suggest_int(self, name, low, high, *, log=False):
        return self._keep(name, self.random.randint(low, high))

    def suggest_categorical(self, name, choices):
        return self._keep(name, self.random.choice(choices))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lrr=1..2"], "optimizer.lrr: unknown key; did you mean 'lr'?"),
        (["optimiser.lr=1..2"], "optimiser: unknown key; did you mean 'optimizer'?"),
        (["optimizer.lr=0.1..0.01"], "optimizer.lr: the range '0.1..0.01' is empty; the smaller end first: 0.01..0.1"),
        (["optimizer.lr=0.1..0.1"], "optimizer.lr: the range '0.1..0.1' is empty"),
        (["optimizer.lr=0..1:log"], "optimizer.lr: '0..1:log' has no logarithm; begin above 0"),
        (["optimizer.lr=a..b"], "optimizer.lr: got 'a..b', expected two numbers"),
        (["optimizer.lr=0.1"], "optimizer.lr: got '0.1', expected two or more different values"),
        (["optimizer.lr"], "space: 'optimizer.lr' is no part of a space"),
        (["optimizer.lr=-1..1"], "optimizer.lr: got -1.0: "),
        (["batch_size=0.5..2.5"], "batch_size: takes whole numbers"),
        (["batch_size=8,big"], "batch_size: got 'big'"),
        (["optimizer=sgd,adaam"], "optimizer: unknown optimizer 'adaam'; did you mean"),
        (["optimizer.momentum=0..0.9"], "optimizer.momentum: unknown key"),
        (["optimizer.lr@sgd=0.1..1"], "optimizer.lr@sgd: nothing there is ever called 'sgd'"),
        (["budget.epochs=1..3"], "budget.epochs: cannot be searched: the budget is the same for all"),
        (["seed=1,2"], "seed: cannot be searched"),
        (["batch_size=8,16", "batch_size=8..16"], "batch_size: stands twice in the space"),
        (["techniques+=0..1"], "techniques: a range is for a number, not for a list's +="),
        ([], "space: is empty; give it keys"),
    ],
)
def test_a_space_that_cannot_be_used_says_why(tiny, words, message):
    with pytest.raises(RecipeError) as caught:
        Space.of(tiny, words)
    assert str(caught.value).startswith(message)


def test_a_key_of_an_option_that_is_not_chosen_is_not_drawn(tiny):
    words = [
        "optimizer.momentum=0.5..0.9",
        "optimizer=adamw,sgd",
        "optimizer.lr@sgd=0.1..1:log",
        "techniques+=mixup,null",
        "techniques.mixup.alpha=0.1..0.4",
        "model.widths=[8],[16,16]",
    ]
    space, seen = Space.of(tiny, words), set()
    for seed in range(60):
        draws = Draws(seed)
        recipe = space.patch(draws).apply(tiny)
        sgd, mixed = draws.asked["optimizer"] == "sgd", draws.asked["techniques+"] == "mixup"
        assert ("optimizer.momentum" in draws.asked) == ("optimizer.lr@sgd" in draws.asked) == sgd
        assert ("techniques.mixup.alpha" in draws.asked) == mixed
        assert recipe.optimizer.name == draws.asked["optimizer"]
        if sgd:  # four digits are kept of a number
            assert recipe.optimizer.momentum == pytest.approx(draws.asked["optimizer.momentum"], rel=1e-3)
            assert recipe.optimizer.lr == pytest.approx(draws.asked["optimizer.lr@sgd"], rel=1e-3)
        assert [t.name for t in recipe.techniques] == ["mixup"] * mixed
        seen.add((sgd, mixed))
    assert len(seen) == 4


def test_the_start_is_a_point_where_nothing_changes(tiny):
    space = Space.of(tiny, ["batch_size=32,64", "optimizer.lr=1e-4..1e-2:log", "optimizer=adamw,sgd"])
    assert str(space.patch(space.start())) == ""
    assert Space.of(tiny, ["batch_size=32,48"]).start() is None


def test_an_options_own_name_keeps_what_the_recipe_says_of_it(tiny):
    own = tiny.patched("optimizer.weight_decay=0.5")
    assert Space.of(own, ["optimizer=adamw,sgd"]).patch({"optimizer": "adamw"}).apply(own).optimizer.weight_decay == 0.5


def test_the_same_rate_as_before_is_set_when_the_optimizer_is_another(tiny):
    space = Space.of(tiny, ["optimizer=adamw,sgd", "optimizer.lr=1e-4..1e-1:log"])
    made = space.patch({"optimizer": "sgd", "optimizer.lr": tiny.optimizer.lr}).apply(tiny)
    assert made.optimizer.lr == tiny.optimizer.lr != choose("optimizer", "sgd").lr


@pytest.mark.parametrize("name", list(catalogue.CATALOGUE["technique"]))
def test_every_techniques_default_range_is_valid_and_holds_its_value(name, tiny):
    cls = catalogue.find("technique", name)
    if cls.example is None:
        pytest.skip("needs the user's own files")
    recipe = tiny.with_(techniques=(cls(**cls.example),))
    words = default_words(recipe)
    space = Space.of(recipe, [], forgiving=words)
    assert len(space.axes) == len(words)  # none is left out for want of a place
    assert str(space.patch(space.start())) == ""
    for seed in range(3):
        space.patch(Draws(seed)).apply(recipe)


def test_a_technique_may_declare_its_own_range(tiny, monkeypatch):
    cls = catalogue.find("technique", "label-smoothing")
    monkeypatch.setattr(cls, "space", {"strength": "0.01..0.2:log"}, raising=False)
    recipe = tiny.with_(techniques=(cls(),))
    assert "techniques.label-smoothing.strength=0.01..0.2:log" in default_words(recipe)


def test_given_words_take_the_place_of_default_ones(tiny):
    space = Space.of(tiny, ["optimizer.lr=1e-3..1e-2:log", "batch_size=8..16"], forgiving=default_words(tiny))
    names = [axis.name for axis in space.axes]
    assert "optimizer.lr" in names and "optimizer.lr@sgd" not in names and names.count("batch_size") == 1


def test_a_grid_has_every_point_once(tiny):
    points = Space.of(tiny, ["optimizer=adamw,sgd", "optimizer.momentum=0.5,0.9", "batch_size=7..9"]).points()
    assert len(points) == 3 * (1 + 2) == len({json.dumps(point, sort_keys=True) for point in points})
    with pytest.raises(RecipeError, match=r"optimizer.lr: a grid needs a list of values"):
        Space.of(tiny, ["optimizer.lr=0.1..1"]).points()


# ---- a sitting, with runs that are only pretended


class Pretended(Local):
    """Gives each run the score that a function of its recipe says; half of its epochs are seen before its end."""

    def __init__(self, score, slots=1, lives=10**9):
        self.score, self.slots, self.jobs, self.lives = score, slots, {}, lives
        self.done, self.told, self.closed = [], set(), False

    def start(self, job):
        recipe = kp.Recipe.from_value(job["work"])
        value = self.score(recipe)
        self.jobs[len(self.done) + len(self.jobs)] = job
        job["value"] = value
        if isinstance(value, float):
            run = Run(Path(job["folder"]))
            run.folder.mkdir(parents=True, exist_ok=True)
            run.write_results([{"epoch": 1, "step": 3, "seconds": 1.0, job["column"]: value}])

    def end(self, job):
        self.told.add(job["id"])

    def wait(self, seconds):
        if len(self.done) >= self.lives:
            raise KeyboardInterrupt
        number = next(iter(self.jobs))
        job = self.jobs.pop(number)
        self.done.append(job)
        if job["id"] in self.told:
            return [(job, {"status": "stopped", "message": ""})]
        if isinstance(job["value"], str):
            kind, _, message = job["value"].partition(" ")
            return [(job, {"status": kind, "value": None, "message": message})]
        return [(job, {"status": "finished", "value": job["value"], "message": "", "seconds": 2.0})]

    def close(self, saving):
        self.closed = True


@pytest.fixture(scope="module")
def planned():
    """The plan of a search; only the survey of the start takes time, so it is made once."""
    recipe = kp.Recipe(
        name="tiny",
        data="digits",
        model={"name": "mlp", "widths": [8]},
        budget={"steps": 6},
        layout={"name": "data-parallel", "device": "cpu", "threads": 1},
    )
    return recipe, tuning.declared(recipe, ["batch_size=32,64"], {"budget": "steps"}, 0, None)[1]


@pytest.fixture
def searched(planned, tmp_path):
    """One sitting of a search in a folder of its own; its study, its runner and its ledger."""
    recipe, plan = planned

    def run(
        words, score, *, wanted=12, sampler="tpe", pruner="none", place=None, seed=0, slots=1, lives=10**9, name="s"
    ):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        space, ledger = Space.of(recipe, words), Ledger(folder / "ledger.jsonl")
        with optuna_study.quiet():
            study = optuna_study.open_study("tiny", place, folder, True)
            study.pruner = optuna_study.pruner_of(pruner)
            runner = Pretended(score, slots, lives)
            mine = dataclasses.replace(plan, seed=seed)
            with TrialDisplay("tiny", quiet=True) as display:
                search = Search(mine, space, study, runner, folder, ledger, display, StopRequest(), sampler, wanted)
                with contextlib.suppress(KeyboardInterrupt):
                    search.run()
        return study, runner, ledger

    return run


def peak(recipe):
    return 1 - abs(math.log10(recipe.optimizer.lr) + 2)


RATE = ["optimizer.lr=1e-5..1:log"]


@pytest.mark.parametrize("storage", [None, "sqlite"])
def test_a_grid_is_searched_whole_and_its_best_is_the_best(searched, tmp_path, storage):
    words = ["optimizer.lr=0.001,0.01,0.1", "batch_size=32,64"]
    place = storage and f"sqlite:///{tmp_path}/x.db"
    study, runner, ledger = searched(words, peak, wanted=6, sampler="grid", place=place)
    found = tried(study)
    rates = {0.001: 0.0, 0.01: 1.0, 0.1: 0.0}
    assert {one.point["optimizer.lr"]: one.score for one in found} == {
        str(k): pytest.approx(v) for k, v in rates.items()
    }
    assert len({json.dumps(one.point, sort_keys=True) for one in found}) == 6
    assert runner.closed and {job["seed"] for job in runner.done} == {FIRST_SEED}
    rows = ledger.entries(kind="tuning")
    assert [row.body["key"] for row in rows] == [f"trial {n}" for n in range(6)] and ledger.verify() == []


def test_tpe_comes_nearer_than_chance(searched):
    means = {}
    for sampler in ("random", "tpe"):
        study, _, _ = searched(RATE, peak, wanted=30, sampler=sampler, name=sampler)
        means[sampler] = statistics.fmean(one.score for one in tried(study)[15:])
    assert means["tpe"] > means["random"] + 0.3  # of a range of 3


def test_the_first_trial_is_the_start(searched):
    study, _, _ = searched(RATE, peak, wanted=2)
    assert [one.patch == "" for one in tried(study)] == [True, False]


def test_equal_budgets_whatever_the_batch_size(searched, planned):
    recipe, plan = planned
    _, runner, _ = searched(["batch_size=32,64,128"], lambda recipe: 0.5, wanted=3, sampler="grid")
    assert {job["work"]["budget"]["steps"] for job in runner.done} == {6}
    per_sample = dataclasses.replace(plan, budget_asked="samples=640")
    made = Search.__new__(Search)
    made.plan, made.space = per_sample, Space.of(recipe, ["batch_size=32,64,128"])
    steps = {size: made._recipe(kp.Patch.of(f"batch_size={size}")).budget.steps for size in (32, 64, 128)}
    assert steps == {32: 20, 64: 10, 128: 5}


def test_runs_that_fail_are_kept_and_avoided(searched):
    def diverges(recipe):
        return "failed DivergenceError: the loss is inf" if recipe.optimizer.lr > 0.01 else -peak(recipe)

    study, _, ledger = searched(RATE, diverges, wanted=30)
    found = tried(study)
    failed = [one for one in found if one.status == "failed"]
    assert len(found) == 30 and failed and all(one.score is None for one in failed)
    assert all(one.message == "DivergenceError: the loss is inf" for one in failed)
    rows = [row.body for row in ledger.entries(kind="tuning") if row.body["status"] == "failed"]
    assert [row["number"] for row in rows] == [one.number for one in failed]
    assert sum(one.status == "failed" for one in found[15:]) < 0.4 * 15  # two of the five decades fail


def test_a_point_that_cannot_be_built_is_a_failed_trial(searched):
    def asks(recipe):
        return "unusable RecipeError: the width is odd" if recipe.batch_size == 32 else 0.5

    study, _, _ = searched(["batch_size=32,64"], asks, sampler="grid", wanted=2)
    assert {(one.status, one.message) for one in tried(study)} == {
        ("failed", "RecipeError: the width is odd"),
        ("finished", ""),
    }


def test_what_is_not_the_patchs_fault_ends_the_sitting(searched):
    with pytest.raises(RunError, match=r"trial-0 could not be run: DataError: no such file; once that is mended"):
        searched(RATE, lambda recipe: "unusable DataError: no such file")


def test_hopeless_runs_are_ended_by_the_median_rule(searched):
    study, runner, _ = searched(RATE, peak, wanted=30, sampler="random", pruner="median")
    found = tried(study)
    pruned = [one for one in found if one.status == "pruned"]
    assert pruned and {f"trial-{one.number}" for one in pruned} == runner.told
    for one in found:  # the rule written out: half-way, below the median of the whole runs before, of five at least
        before = [other.score for other in found if other.number < one.number and other.status == "finished"]
        half = dict(one.curve)[50]
        assert (one.status == "pruned") == (len(before) >= 5 and half < statistics.median(before))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_was_stopped_goes_on_to_the_same_points(searched, sampler):
    whole = tried(searched(RATE, peak, sampler=sampler, wanted=14, name="whole")[0])
    searched(RATE, peak, sampler=sampler, wanted=14, name="parts", lives=12)
    parts = tried(searched(RATE, peak, sampler=sampler, wanted=14, name="parts")[0])
    assert [one.point for one in parts] == [one.point for one in whole]
    other = tried(searched(RATE, peak, sampler=sampler, wanted=14, name="other", seed=1)[0])
    assert [one.point for one in other][1:] != [one.point for one in whole][1:]


def test_a_trial_whose_process_was_killed_is_done_again_in_its_folder(searched, tmp_path):
    searched(RATE, peak, wanted=3)
    folder = tmp_path / "s"
    study = optuna_study.open_study("tiny", None, folder, True)
    ghost = study.ask()
    ghost.set_user_attr("owner", "ghost")
    rate = ghost.suggest_float("optimizer.lr", 1e-5, 1, log=True)
    (folder / ".sittings" / "ghost.lock").touch()  # nobody holds it
    left = folder / "runs" / f"trial-{ghost.number}" / "checkpoint"
    left.mkdir(parents=True)
    study, _, ledger = searched(RATE, peak, wanted=5)
    found = tried(study)
    assert [one.number for one in found][:4] == [0, 1, 2, 3] and len(found) == 5
    again = next(one for one in found if one.number == ghost.number)
    assert again.point["optimizer.lr"] == rate and left.is_dir()
    assert [row.body["key"] for row in ledger.entries()].count(f"trial {ghost.number}") == 1


def test_a_trial_of_a_living_process_is_left_alone(searched, tmp_path):
    searched(RATE, peak, wanted=2)
    folder = tmp_path / "s"
    study = optuna_study.open_study("tiny", None, folder, True)
    other = study.ask()
    other.set_user_attr("owner", "other")
    held = tuning.FileLock(folder / ".sittings" / "other.lock")
    search = Search.__new__(Search)
    search.study, search.folder, search.me, search.gone, search.seen = study, folder, "me", set(), {}
    with held:
        assert search._requeue() == 1
    assert search._is_gone("far away") is False  # no lock here: only a beat that stands still for minutes shows it
    search.seen["far away"] = (None, time.monotonic() - 1000)
    assert search._is_gone("far away") is True


def test_half_a_line_of_a_journal_is_put_aside(searched, tmp_path):
    searched(RATE, peak, wanted=3)
    journal = tmp_path / "s" / optuna_study.JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    study, _, _ = searched(RATE, peak, wanted=5)
    assert len(tried(study)) == 5 and journal.with_name(f"{journal.name}.torn").read_bytes() == b'{"op_code": 4, "wor'


def test_what_matters_is_found(searched):
    study, _, _ = searched([*RATE, "batch_size=16..128"], peak, wanted=30)
    shares, note = optuna_study.importances(study)
    assert shares["optimizer.lr"] > 0.7 and sum(shares.values()) == pytest.approx(1) and note.startswith("PED-ANOVA")
    study, _, _ = searched(RATE, peak, wanted=3, name="few")
    assert optuna_study.importances(study) == ({}, "needs 10 whole trials, there are 3")


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("cmaes", "as a pickle, which could run code; take tpe or gp"),
        ("tpee", "unknown sampler 'tpee'; did you mean 'tpe'?"),
    ],
)
def test_samplers_that_are_not_there(tiny, sampler, message):
    with pytest.raises(RecipeError) as caught:
        kp.tune(tiny, ["batch_size=32,64"], sampler=sampler)
    assert message in str(caught.value)


# ---- what is said


def verdict(pairs, **changes):
    told = {
        "trial": "t-winner",
        "arm": "winner",
        "patch": "",
        "decision": "helps",
        "final": True,
        "reason": "",
        "p": 0.01,
        "difference": 0.1,
        "lower": 0.05,
        "upper": 0.15,
        "more_pairs": None,
        "looks": (),
        "metric": "accuracy",
        "higher_is_better": True,
        "smallest_effect": 0.01,
        "alpha": 0.05,
        "power": 0.8,
        "budget": "",
        "costs": {},
    }
    return Verdict(**{**told, **changes}, pairs=tuple(Pair(n, *pair) for n, pair in enumerate(pairs)))  # fmt: skip


def result(**changes):
    trials = (
        Tried(number=0, status="finished", score=0.5, patch="", point={"a": 1}),
        Tried(number=1, status="finished", score=0.9, patch="a=2", point={"a": 2}, seconds=1.5),
        Tried(number=2, status="failed", score=None, patch="a=3", point={"a": 3}, message='boom, "loud"'),
        Tried(number=3, status="pruned", score=None, patch="a=4", point={"a": 4}),
    )
    told = {
        "name": "t",
        "folder": "tuned/t",
        "metric": "accuracy",
        "higher_is_better": True,
        "space": ("a=1..4",),
        "budget": "6 steps each",
        "sampler": "tpe",
        "pruner": "median",
        "trials": trials,
        "importances": {},
        "importances_note": "needs 10 whole trials, there are 2",
        "start": 0.5,
        "winner": 1,
        "patch": "a=2",
    }
    return Tuning(**{**told, **changes})  # fmt: skip


def test_optimism_is_what_the_search_said_less_what_fresh_seeds_say():
    made = result(verdict=verdict([(0.5, 0.8), (0.6, 0.84), (0.4, None)]))
    assert made.optimism == pytest.approx(0.9 - (0.8 + 0.84) / 2)
    assert result(verdict=verdict([(1, 1.2)]), higher_is_better=False).optimism == pytest.approx(1.2 - 0.9)
    assert result().optimism is None and result().decision == "no evidence yet"


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({"verdict": verdict([(0.5, 0.9)])}, "t: the winner of 4 trials is PROVED BETTER than the start"),
        ({}, "t: the winner of 4 trials is NOT PROVED to be better than the start"),
        ({"winner": 0, "patch": ""}, "t: NOTHING BETTER than the start was found in 4 trials"),
        ({"winner": None, "patch": "", "trials": ()}, "t: NOTHING FOUND. No trial came to an end"),
    ],
)
def test_it_is_called_better_only_if_proved(changes, headline, tmp_path):
    made = result(**changes)
    assert str(made).splitlines()[0] == headline and len(str(made).splitlines()) <= 30
    made.save_to(tmp_path)
    assert json.loads((tmp_path / "tuning.json").read_text())["decision"] == made.decision
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert [row["message"] for row in csv.DictReader(file)] == [one.message for one in made.trials]


def test_the_page_has_the_winner_the_trials_and_the_importances(tmp_path):
    from kingpost.report.tuning_page import tuning_page

    made = result(verdict=verdict([(0.5, 0.9)]), importances={"optimizer.lr": 0.8, "batch_size": 0.2})
    page = tuning_page(tmp_path, made.to_value(), made.headline()).read_text()
    for text in ("PROVED BETTER", "boom, &#34;loud&#34;", "optimizer.lr", 'aria-label="Bars of importance by key'):
        assert text in page
    assert page == tuning_page(tmp_path, made.to_value(), made.headline()).read_text()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["digits", "techniques=[]", "budget.epochs=1", "model.width=8"]
    assert main(["tune", *small, "--space", "optimizer.lrr=1..2"]) == 2
    assert "error: optimizer.lrr: unknown key; did you mean 'lr'?" in capsys.readouterr().err
    assert main(["tune", *small, "--space", "optimizer.lr=1e-4..1e-1:log", "model.width=8,16", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "space      optimizer.lr=0.0001..0.1:log" in out and "trials     30, " in out
    assert list(tmp_path.iterdir()) == []


# ---- real runs

SCRIPT = """
import sys, kingpost as kp
kp.tune(kp.Recipe.load(sys.argv[1]), ["optimizer.lr=1e-4,1e-2", "batch_size=64,96"], sampler="grid", workers=1,
        proof=False, quiet=True)
"""


@pytest.mark.slow
def test_a_run_that_is_ended_has_saved_and_its_worker_goes_on(tiny, tmp_path):
    runner = Local(1, 1, tmp_path)
    job = {"kind": "recipe", "arm": "a", "seed": 0, "cwd": str(tmp_path), "column": "validation_accuracy",
           "metric": "accuracy", "at": "last", "higher_is_better": True, "keep": False}  # fmt: skip
    jobs = []
    for number, epochs in enumerate((2000, 1)):
        work = tiny.patched(f"budget.epochs={epochs}").to_value()
        jobs.append(job | {"id": f"t{number}", "work": work, "folder": str(tmp_path / "runs" / f"t{number}")})
    try:
        runner.start(jobs[0])
        until = time.monotonic() + 120
        while not (tmp_path / "runs/t0/results.csv").is_file():
            assert time.monotonic() < until and not runner.wait(0.05)
        runner.end(jobs[0])
        ((ended, outcome),) = runner.wait(120)
        assert ended["id"] == "t0" and outcome["status"] == "stopped"
        assert Run(tmp_path / "runs/t0").status == "stopped"
        runner.start(jobs[1])
        ((after, outcome),) = runner.wait(120)
        assert after["id"] == "t1" and outcome["status"] == "finished"
    finally:
        runner.close(saving=False)


@pytest.mark.slow
def test_a_search_survives_a_kill_and_its_winner_is_proved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = kp.Recipe(
        name="t",
        data="digits",
        model={"name": "mlp", "widths": [16]},
        budget={"epochs": 3},
        optimizer={"name": "adamw", "lr": 1e-4},
        layout={"name": "data-parallel", "device": "cpu", "threads": 1},
    )
    recipe.save_to(tmp_path / "t.yaml")
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, "t.yaml"], cwd=tmp_path)
    until = time.monotonic() + 120
    while not (tmp_path / "tuned/t/runs/trial-1").is_dir():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    words = ["tune", "t.yaml", "--space", "optimizer.lr=1e-4,1e-2", "batch_size=64,96", "--sampler", "grid"]
    code = main([*words, "--workers", "1", "--max-pairs", "3", "--quiet"])
    assert code == 2 and "was declared with max_pairs" in capsys.readouterr().err
    made = kp.tune(recipe, ["optimizer.lr=1e-4,1e-2", "batch_size=64,96"], sampler="grid", workers=1, quiet=True)
    assert [one.number for one in made.trials] == [0, 1, 2, 3]
    assert {one.status for one in made.trials} == {"finished"} and made.decision == "helps"
    assert "optimizer.lr=0.01" in made.patch and made.verdict.pairs[0].seed != FIRST_SEED
    winner = kp.Recipe.load(tmp_path / "tuned/t/winner.yaml")
    assert winner.optimizer.lr == 0.01 and "PROVED BETTER" in (tmp_path / "tuned/t/winner.yaml").read_text()
    ledger = Ledger(tmp_path / "ledger.jsonl")
    kinds = [row.body["key"] for row in ledger.entries(trial="t", kind="tuning")]
    assert sorted(kinds) == sorted(["declared", "trial 0", "trial 1", "trial 2", "trial 3", "winner", "verdict"])
    assert kinds.index("winner") == 5 and ledger.verify() == []
    assert (tmp_path / "tuned/t/report.html").is_file() and made.test is not None
    fresh = statistics.fmean(pair.arm for pair in made.verdict.pairs)
    assert made.optimism == pytest.approx(made.score - fresh)
