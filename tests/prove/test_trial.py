"""The trial without processes: functions as subjects, questions, budgets, the small search, declarations."""

import itertools
import json
import math
import random

import numpy as np
import pytest
import torch

import kingpost as kp
from kingpost.errors import RecipeError
from kingpost.ledger import Ledger
from kingpost.prove import budgets, retune
from kingpost.prove.arms import ablation
from kingpost.prove.costs import cost, target_of
from kingpost.prove.questions import against_baseline, effects, replay
from kingpost.prove.sequential import Test as Sequential
from kingpost.prove.survey import Survey, same_weights, survey
from kingpost.train.assemble import assemble


@pytest.fixture
def tried(noisy, tmp_path):
    """Run a trial of the noisy function here."""

    def run(arms, metric="accuracy", **wishes):
        places = {"root": tmp_path / "trials", "ledger": tmp_path / "ledger.jsonl", "quiet": True}
        return kp.prove(noisy, arms, metric=metric, **places, **wishes)

    return run


# ---- verdicts of functions


@pytest.mark.parametrize(
    ("arm", "decision"),
    [
        ({"better": 0.03, "jumps": 0.002}, "helps"),
        ({"better": -0.03, "jumps": 0.002}, "hurts"),
        ({"better": 0.0, "jumps": 0.001}, "no difference that matters"),
        ({"better": 0.0, "jumps": 0.2}, "no evidence yet"),
    ],
)
def test_the_decision_follows_the_planted_effect(tried, arm, decision):
    verdict = tried({"trick": arm}, max_pairs=12)["trick"]
    assert verdict.decision == decision and verdict.final
    differences = [p.difference(True) for p in verdict.pairs]
    assert verdict.difference == pytest.approx(sum(differences) / len(differences))
    assert verdict.lower <= verdict.difference <= verdict.upper


def test_fewer_is_better_when_told_so(tried):
    assert tried({"trick": {"better": 0.03, "jumps": 0.002}}, metric="loss", smallest_effect=0.005).decision == "hurts"


def test_runs_that_fail_are_outcomes(tried, tmp_path):
    verdict = tried({"trick": {"better": 0.03, "jumps": 0.002, "fails": [1]}}, max_pairs=6)["trick"]
    assert verdict.pairs[1].arm is None and verdict.costs["arm"].failed == 1
    failed = [e for e in Ledger(tmp_path / "ledger.jsonl").entries(kind="run") if e.body["status"] == "failed"]
    assert [(e.body["arm"], e.body["seed"], e.body["message"]) for e in failed] == [
        ("trick", 1, "ArithmeticError: diverged")
    ]
    assert "failed     trick: ArithmeticError: diverged" in str(verdict)


def test_what_is_declared_is_in_the_ledger_before_the_first_run(noisy, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    seen = []

    def function(seed, **changes):
        seen.append(ledger.entries()[0].kind)
        return noisy(seed, **changes)

    kp.prove(
        function, {"a": {"better": 0.1}}, metric="accuracy", max_pairs=4, root=tmp_path, ledger=ledger.path, quiet=True
    )
    assert set(seen) == {"declared"}
    (declared,) = ledger.entries(kind="declared")
    assert declared.body["smallest_effect"] == 0.005 and declared.body["max_pairs"] == 4
    verdict = ledger.entries(kind="verdict")[-1]
    assert ledger.verify(head=verdict.sha256) == [] and verdict.body["decision"] == "helps"


def test_the_same_call_again_is_the_same_verdict_and_adds_nothing(tried, tmp_path):
    arms = {"trick": {"better": 0.03, "jumps": 0.01}}
    first = tried(arms)
    rows = (tmp_path / "ledger.jsonl").read_bytes()
    assert tried(arms) == first and (tmp_path / "ledger.jsonl").read_bytes() == rows
    with pytest.raises(RecipeError, match=r"was declared with alpha 0.05, now it is 0.01; what is declared stays"):
        tried(arms, alpha=0.01)
    again = tried(arms, name="once-more")
    assert again.decision == first.decision and "the same was asked 1 times before" in str(again)


def test_several_arms_drop_out_when_they_are_decided(tried, tmp_path):
    arms = {"good": {"better": 0.05, "jumps": 0.001}, "loud": {"jumps": 0.1}}
    verdicts = tried(arms, max_pairs=8)
    assert verdicts["good"].decision == "helps" == verdicts.decision
    assert len(verdicts["good"].pairs) < len(verdicts["loud"].pairs)
    runs = [e.body["arm"] for e in Ledger(tmp_path / "ledger.jsonl").entries(kind="run")]
    assert runs.count("good") < runs.count("loud") == runs.count("baseline")


def test_a_factorial_design_gives_main_effects_and_interactions(tmp_path):
    def score(seed, a=0, b=0):
        noise = np.random.default_rng([seed, a, b]).normal() * 1e-4
        return 0.5 + 0.01 * seed + 0.1 * a - 0.2 * b + 0.08 * a * b + noise

    verdicts = kp.prove(
        score, {"a": {"a": 1}, "b": {"b": 1}}, metric="accuracy", factorial=("a", "b"), root=tmp_path,
        ledger=tmp_path / "l.jsonl", quiet=True,
    )  # fmt: skip
    # over both settings of b, a makes 0.1 and 0.18; b makes -0.2 and -0.12; the interaction is half of 0.08
    found = {verdict.arm: round(verdict.difference, 2) for verdict in verdicts}
    assert found == {"a": 0.14, "b": -0.16, "a x b": 0.04}
    assert {verdict.arm: verdict.decision for verdict in verdicts} == {"a": "helps", "b": "hurts", "a x b": "helps"}


# ---- looks depend on seeds, not on the order in which runs end


def test_the_order_in_which_runs_end_changes_nothing():
    questions = against_baseline(["x", "y"])
    test = Sequential(smallest_effect=0.1, max_pairs=10)
    rng = np.random.default_rng(0)
    outcomes = {(arm, seed): float(rng.normal() + (arm == "x")) for arm in ("baseline", "x", "y") for seed in range(10)}
    outcomes["x", 2] = None
    whole = replay(questions, test, lambda index: index, outcomes, True)
    for number in range(4):
        keys = list(outcomes)
        random.Random(number).shuffle(keys)
        part = {}
        for key in keys:
            part[key] = outcomes[key]
            state = replay(questions, test, lambda index: index, part, True)
            for name, looks in state.looks.items():
                assert looks == whole.looks[name][: len(looks)]
        assert state == whole


def test_factorial_contrasts_are_orthogonal():
    questions = effects(["a", "b", "c"])
    assert len(questions) == 7
    for one, other in itertools.combinations(questions, 2):
        assert math.fsum(one.weights[cell] * other.weights[cell] for cell in one.weights) == 0
    for question in questions:
        assert (
            math.fsum(w for w in question.weights.values() if w > 0)
            == 1
            == -math.fsum(w for w in question.weights.values() if w < 0)
        )


# ---- budgets


def known(samples=1000, batch=100, flops=5.0, step_seconds=0.1):
    return Survey(
        parameters=1, flops_per_step=flops, memory_bytes=1, samples=samples, steps_per_epoch=math.ceil(samples / batch),
        total_steps=1, step_seconds=step_seconds, metric="accuracy", higher_is_better=True, columns=(),
        chance_loss=None, validation="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "text", "expected"),
    [
        ({"epochs": 3}, None, [{"epochs": 3}, {"epochs": 3}]),
        ({"steps": 30}, None, [{"steps": 30}, {"steps": 30}]),
        ({"seconds": 9.0}, None, [{"seconds": 9.0}, {"seconds": 9.0}]),
        ({"steps": 30}, "samples", [{"steps": 30}, {"steps": 12}]),
        ({"epochs": 3}, "samples=2500", [{"steps": 25}, {"steps": 10}]),
        ({"epochs": 3}, "steps", [{"steps": 30}, {"steps": 30}]),
        ({"steps": 30}, "flops", [{"steps": 30}, {"steps": 15}]),
        ({"steps": 30}, "flops=100", [{"steps": 20}, {"steps": 10}]),
        ({"steps": 30}, "seconds", [{"seconds": 3.0}, {"seconds": 3.0}]),
        ({"epochs": 3}, "own", [{"epochs": 3}, {"epochs": 3}]),
    ],
)
def test_budgets_are_equal_in_what_was_named(tiny, budget, text, expected):
    base = tiny.with_(budget=budget, batch_size=100)
    arms = {"baseline": base, "large": base.with_(batch_size=250)}
    surveys = {"baseline": known(), "large": known(batch=250, flops=10.0)}
    made, _ = budgets.equal(text, base, arms, surveys)
    found = [{k: v for k, v in made[arm].budget.to_value().items() if v is not None} for arm in arms]
    assert found == expected


def test_samples_of_an_epoch_with_a_smaller_last_batch_are_counted_right(tiny):
    recipe = tiny.with_(batch_size=300)
    survey_ = known(batch=300)  # 300 + 300 + 300 + 100
    assert [budgets.samples_of(recipe, steps, survey_) for steps in (1, 3, 4, 5, 8)] == [300, 900, 1000, 1300, 2000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flosp", "did you mean 'flops'"),
        ("steps=-1", "steps=500"),
        ("own=3", "takes no amount"),
        ("flops=1", "less than"),
    ],
)
def test_budgets_that_cannot_be_had_say_so(tiny, text, message):
    with pytest.raises(RecipeError, match=message):
        budgets.equal(text, tiny, {"baseline": tiny}, {"baseline": known()})


def test_an_arm_that_changes_an_equal_budget_is_refused(tiny):
    arms = {"baseline": tiny, "longer": tiny.patched("budget.steps=12")}
    surveys = dict.fromkeys(arms, known())
    with pytest.raises(RecipeError, match=r"arms.longer: changes the budget.*--budget own"):
        budgets.equal(None, tiny, arms, surveys)
    made, said = budgets.equal("own", tiny, arms, surveys)
    assert made == arms and "own" in said


# ---- the small search


def test_every_arm_searches_around_its_own_value(tiny):
    arms = {"baseline": tiny, "sgd": tiny.patched("optimizer={name: sgd, lr: 0.5}")}
    found = retune.searches(("optimizer.lr",), arms)
    assert found == {"optimizer.lr": {"baseline": [0.001, 0.000333, 0.003], "sgd": [0.5, 0.167, 1.5]}}
    assert len(list(retune.candidates(found, "sgd"))) == 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimizer.lrr", "optimizer.lrr: is None in arm 'baseline'"),
        ("batch_size", "cannot be retuned"),
        ("optimizer.lr=0.1", "two or more values"),
        ("optimizer.lr=0.1,-3", "arms.baseline.optimizer.lr: got -3"),
    ],
)
def test_a_search_that_cannot_be_done_says_why(tiny, word, message):
    with pytest.raises(RecipeError, match=message):
        retune.searches((word,), {"baseline": tiny})


# ---- costs


def test_costs_are_medians_and_the_target_is_the_baselines_end():
    def run(value, seconds, curve):
        return {"status": "finished" if value is not None else "failed", "value": value, "seconds": seconds,
                "peak_memory_mebibytes": 100.0, "steps": 10, "curve": curve}  # fmt: skip

    base = [run(0.8, 5.0, [[1, 0.5], [5, 0.8]]), run(0.9, 7.0, [[2, 0.9]]), run(0.7, 6.0, [[3, 0.7]])]
    arm = [run(0.95, 9.0, [[1, 0.79], [2, 0.81], [9, 0.95]]), run(None, None, []), run(0.8, 4.0, [[4, 0.8]])]
    target = target_of(base)
    assert target == 0.8
    made = cost(arm, {"parameters": 7, "flops_per_step": 2.0, "samples_per_step": 64.0}, target, True)
    assert (made.runs, made.failed, made.seconds, made.flops, made.samples) == (3, 1, 6.5, 20.0, 640)
    assert (made.target_seconds, made.reached_target) == (3.0, 2)
    assert cost(base, {}, target, True).target_seconds == 3.5


# ---- pairing


CHANGES = [
    "model.widths=[8,8]",
    "model.activation=tanh",
    "techniques+=dropout",
    "optimizer.lr=0.1",
    "techniques+=label-smoothing",
]


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_of_the_same_name_and_shape_start_the_same(tiny, change):
    base, arm = survey(tiny, measure=False), survey(tiny.patched(change), measure=False)
    shared = [n for n in base.weights if n in arm.weights and base.weights[n][0] == arm.weights[n][0]]
    assert shared and all(base.weights[name] == arm.weights[name] for name in shared)
    assert 0 < same_weights(base, arm) <= 1


@pytest.mark.parametrize(
    ("model", "deeper"),
    [
        ({"name": "cnn", "depth": 1, "width": 8}, {"depth": 2}),
        ({"name": "vit", "depth": 1, "width": 16, "patch": 4}, {"depth": 2}),
        ({"name": "resnet", "depth": 8}, {"depth": 14}),
    ],
)
def test_one_more_block_leaves_the_start_of_the_others_alone(tiny, model, deeper):
    def start(given):
        recipe = tiny.with_(model=given)
        return dict(assemble(recipe, recipe.data.open(), torch.device("cpu")).model.named_parameters())

    base, arm = start(model), start(model | deeper)
    shared = [
        n for n in base if n in arm and base[n].shape == arm[n].shape and base[n].numel() > 1 and base[n].std() > 0
    ]
    assert len(shared) >= 2
    for name in shared:  # the scale may follow the depth or the number of inputs, the draws do not
        both = torch.stack([base[name].detach().flatten(), arm[name].detach().flatten()])
        assert float(torch.corrcoef(both)[0, 1]) == pytest.approx(1, abs=1e-5), name


def test_other_seeds_start_elsewhere(tiny):
    one, other = survey(tiny, measure=False), survey(tiny.with_(seed=1), measure=False)
    drawn = [name for name in one.weights if name.endswith("weight")]
    assert drawn and all(one.weights[name] != other.weights[name] for name in drawn)


def test_each_draw_is_its_own_and_has_the_right_spread():
    from kingpost.seeds import DrawsByShape

    with DrawsByShape(0):
        first, second = torch.nn.Linear(400, 400), torch.nn.Linear(400, 400)
        words = torch.randn(1000), torch.randperm(10), torch.rand(3, 4)
    assert not torch.equal(first.weight, second.weight)
    bound = 400**-0.5
    # the standard deviation of 160 000 uniform draws is known to 0.2 %
    assert float(first.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.01)
    assert (
        abs(
            float(
                torch.corrcoef(torch.stack([first.weight.detach().flatten(), second.weight.detach().flatten()]))[0, 1]
            )
        )
        < 0.02
    )
    with DrawsByShape(0):
        torch.rand(5)
        again = torch.randn(1000), torch.randperm(10), torch.rand(3, 4)
    assert all(torch.equal(a, b) for a, b in zip(words, again, strict=True))


# ---- what cannot be used


@pytest.mark.parametrize(
    ("arms", "wishes", "message"),
    [
        ({}, {}, "a trial needs at least one arm"),
        ({"baseline": "seed=1"}, {}, "'baseline' cannot be the name of an arm"),
        ({"a/b": "optimizer.lr=1"}, {}, "cannot be the name of an arm"),
        ({"a": "optimizer.lrr=1"}, {}, "arms.a.optimizer.lrr: unknown key; did you mean 'lr'"),
        ({"a": "seed=1"}, {}, "arms.a.seed: the trial itself sets the seed"),
        ({"a": "optimizer.lr=0.001"}, {}, "arms.a: changes nothing"),
        ({"a": "name=other"}, {}, "arms.a: changes nothing"),
        (
            {"a": ["optimizer.lr=0.1"]},
            {"metric": "acuracy"},
            "metric: unknown metric 'acuracy'; did you mean 'accuracy'",
        ),
        ({"a": "optimizer.lr=0.1"}, {"smallest_effect": 0.0}, "smallest_effect: got 0"),
        ({"a": "optimizer.lr=0.1"}, {"metric": "learning_rate", "smallest_effect": 1.0}, "direction: it is not known"),
        ({"a": "optimizer.lr=0.1"}, {"metric": "seconds"}, "smallest_effect: there is no default for 'seconds'"),
        ({"a": "data={name: digits, split_seed: 7}"}, {}, "judged on other validation samples"),
        ({"a": "optimizer.lr=0.1"}, {"factorial": ["a"]}, "factorial: got a"),
        ({"a": "techniques+=no-such"}, {}, "arms.a.techniques"),
        ({"a": {"budget.steps": 9}}, {}, "arms.a: changes the budget"),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_is_written(tiny, arms, wishes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        kp.prove(tiny, arms, **wishes, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_an_object_cannot_be_made_again_for_each_seed(tiny):
    recipe = tiny.with_(model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    with pytest.raises(RecipeError, match=r"model: is an object, and every seed needs a new one; use kp\.call"):
        kp.prove(recipe, "optimizer.lr=0.1")


def test_ablation_names_each_technique(tiny):
    recipe = tiny.patched("techniques+=label-smoothing", "techniques+=ema")
    assert json.dumps({name: str(patch) for name, patch in ablation(recipe, ["each"]).items()}) == json.dumps(
        {"without-label-smoothing": "techniques-=label-smoothing", "without-ema": "techniques-=ema"}
    )
    with pytest.raises(RecipeError, match="none to leave out"):
        ablation(tiny, ["each"])
