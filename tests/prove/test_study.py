"""Studies: what a study.yaml says, how its trials are run and gone on with, its page, and the rule at its end."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from studies_page import studies_page, study_pages

from kingpost import cards, yaml_text
from kingpost.cli import main
from kingpost.data.tensors import TensorSplit
from kingpost.errors import RecipeError, RunError
from kingpost.patch import Patch
from kingpost.prove.conclusion import card_verdicts, conclude, standing
from kingpost.prove.study import Study, StudyTrial, studies_in, trial_id
from kingpost.prove.study_run import read_results, run
from kingpost.recipe import Recipe
from kingpost.report.study_page import interval_plot
from kingpost.train.assemble import assemble
from kingpost.train.parallel import process_group

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = studies_in(ROOT / "studies")


def accuracy(seed: int, bonus: float = 0.0, scale: float = 1.0) -> float:
    """What a trial of a function measures here; a module's function, so that a study can name it."""
    CALLS.append(seed)
    return scale * (0.8 + bonus + 0.002 * (seed % 3) + 0.0003 * (seed % 4) * (bonus > 0))


CALLS: list[int] = []
TINY: dict[str, Any] = {
    "question": "Does the bonus help?",
    "claim": "A bonus avoids a tenth of the errors.",
    "source": "nobody",
    "on": "numbers, no net",
    "cards": {"technique/mixup": "bonus", "technique/cutmix": ["high/malus"]},
    "limits": ["It is a toy | of course."],
    "function": "test_study:accuracy",
    "metric": "accuracy",
    "smallest_effect": 0.01,
    "max_pairs": 12,
    "trials": {
        "low": {"arms": {"bonus": {"bonus": 0.03}}, "expect": {"bonus": "helps"}},
        "high": {
            "note": "twice the scale",
            "given": {"scale": 1.1},
            "arms": {"bonus": {"bonus": 0.03}, "malus": {"bonus": -0.05}},
            "expect": {"bonus": ["helps", "neutral"]},
            "claimed_fewer_errors": {"bonus": 0.1},
        },
    },
    "quick": {"max_pairs": 6, "only": ["low"], "trials": {"low": {"given": {"scale": 0.9}}}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "studies" / "tiny"
    made.mkdir(parents=True)
    (made / "study.yaml").write_text(yaml_text.dump(TINY), encoding="utf-8")
    return made


def changed(**changes: Any) -> dict[str, Any]:
    return {**TINY, **changes}


def row(word: str, *expect: str, **more: Any) -> dict[str, Any]:
    return {"trial": "a", "arm": "he", "expect": list(expect), "word": word, "claimed_difference": None, **more}


# ---- the file


def test_trials_take_shared_keys_and_add_to_what_is_given() -> None:
    full, quick = (Study.from_value("tiny", TINY).trials(quick) for quick in (False, True))
    assert list(full) == ["low", "high"] and list(quick) == ["low"]
    assert (full["high"].given, quick["low"].given) == ({"scale": 1.1}, {"scale": 0.9})
    assert (full["low"].max_pairs, quick["low"].max_pairs) == (12, 6)
    assert full["high"].expected("bonus") == ("helps", "neutral") and full["high"].expected("malus") == ()


def test_patches_of_layers_are_added_one_after_another() -> None:
    value = changed(
        function=None, base="digits", changes={"batch_size": 32, "budget.epochs": 3}, quick={"changes": {"seed": 4}}
    )
    value["trials"] = {"a": {"changes": {"budget.epochs": 2}, "arms": {"bonus": {"optimizer.lr": 0.1}}}}
    value["cards"] = {}
    trial = Study.from_value("tiny", value).trials(quick=True)["a"]
    recipe = trial.recipe("tiny")
    assert (recipe.batch_size, recipe.budget.epochs, recipe.seed) == (32, 2, 4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"qestion": "?"}, "qestion: unknown key; did you mean 'question'?"),
        ({"claim": None}, "claim: got None"),
        ({"cards": {"technique/mixpu": "bonus"}}, "cards.technique/mixpu: no such technique; did you mean"),
        ({"cards": {"technique/mixup": "bons"}}, "cards.technique/mixup: no arm 'bons'; did you mean 'bonus'?"),
        ({"smallest_effect": 0}, "trials.low.smallest_effect: got 0"),
        ({"base": "digits"}, "trials.low.base: exactly one of base and function must be given"),
        ({"trials": {"low": {"arms": {}}}}, "trials.low.arms: a trial needs at least one arm"),
        ({"expect": {"bonsu": "helps"}, "trials": {"low": {"arms": {"bonus": {}}}}}, "expect.bonsu: no such arm"),
        ({"quick": {"only": ["lo"]}}, "quick.only.lo: no such trial; did you mean 'low'?"),
        ({"quick": {"max_pairs": "x"}}, "quick.trials.low.max_pairs: got 'x'"),
    ],
)
def test_errors_say_what_and_where(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(text)):
        Study.from_value("tiny", changed(**changes))


def test_an_absent_study_is_named_with_those_that_are_there(folder: Path) -> None:
    with pytest.raises(RunError, match=r"no study .*did you mean 'tiny'"):
        Study.open(folder.parent / "tini")


def test_arguments_that_the_function_does_not_take_are_refused(folder: Path) -> None:
    trial = StudyTrial.from_value({**_trial(), "given": {"scalle": 2.0}})
    with pytest.raises(RecipeError, match=r"given\.scalle: no such argument; did you mean 'scale'"):
        trial.subject("tiny")


def test_another_declaration_is_another_trial_but_other_words_are_not() -> None:
    one = StudyTrial.from_value(_trial())
    assert trial_id("a", one) == trial_id("a", StudyTrial.from_value({**_trial(), "note": "said better"}))
    assert trial_id("a", one) != trial_id("a", StudyTrial.from_value({**_trial(), "smallest_effect": 0.02}))


def _trial() -> dict[str, Any]:
    return {
        "function": "test_study:accuracy",
        "arms": {"bonus": {"bonus": 0.1}},
        "metric": "accuracy",
        "smallest_effect": 0.01,
    }


# ---- running


def test_a_study_runs_goes_on_and_keeps_what_it_found(folder: Path) -> None:
    import test_study  # as the study finds it, which is not the module that pytest has loaded

    study, calls = Study.open(folder), test_study.CALLS
    calls.clear()
    found = run(study, folder=folder, quiet=True)
    rows = {(r["trial"], r["arm"]): r for r in found["full"]["rows"]}
    assert {key: r["word"] for key, r in rows.items()} == {
        ("low", "bonus"): "helps",
        ("high", "bonus"): "helps",
        ("high", "malus"): "harms",
    }
    first = rows["high", "bonus"]
    # a tenth of the baseline's errors, by hand
    base = [pair[1] for pair in first["pairs"]]
    assert first["claimed_difference"] == pytest.approx(0.1 * (1 - sum(base) / len(base)))
    assert first["difference"] == pytest.approx(sum(p[2] - p[1] for p in first["pairs"]) / len(first["pairs"]))
    assert (folder / "ledger.jsonl").is_file() and list((folder / "trials" / "full").glob("low-*"))
    before = len(calls)
    again = run(study, folder=folder, quiet=True)
    assert len(calls) == before > 0 and again == found  # nothing is done twice
    quick = run(study, quick=True, folder=folder, quiet=True)
    assert quick["full"] == found["full"] and [r["trial"] for r in quick["quick"]["rows"]] == ["low"]


def test_a_changed_study_is_run_anew(folder: Path) -> None:
    run(Study.open(folder), quick=True, folder=folder, quiet=True)
    value = changed(smallest_effect=0.02)
    found = run(Study.from_value("tiny", value), quick=True, folder=folder, quiet=True)
    assert found["quick"]["rows"][0]["smallest_effect"] == 0.02
    assert len(list((folder / "trials" / "quick").glob("low-*"))) == 2


def test_the_command_writes_page_and_plot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "tiny", "--quick", "--quiet"]) == 0
    assert "borne out (quick)" in capsys.readouterr().out
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "# Does the bonus help?" in page and "**Borne out: bonus helps.**" in page
    assert "results of the quick run" in page and re.search(r"n = \d pairs; .* torch \S+; \d{4}-\d\d-\d\d\.", page)
    ElementTree.fromstring((folder / "intervals.svg").read_text(encoding="utf-8"))
    assert main(["study", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["outcome"], one["mode"]) for one in listed] == [("tiny", "borne out", "quick")]
    assert main(["study", "tny"]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err


def test_a_study_that_cannot_be_run_does_not_stop_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = folder.parent / "absent"
    broken.mkdir()
    value = changed(given={"scalle": 1.0})
    (broken / "study.yaml").write_text(yaml_text.dump(value), encoding="utf-8")
    assert main(["study", "--all", "--quick", "--quiet"]) == 1
    ended = capsys.readouterr()
    assert "absent: absent.low.given.scalle: no such argument" in ended.err and "tiny  borne out" in ended.out


# ---- the rule


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        ([row("helps", "helps")], "borne out"),
        ([row("neutral", "helps", "neutral")], "borne out"),
        ([row("neutral", "helps")], "contradicted"),
        ([row("harms", "helps")], "contradicted"),
        ([row("unproven", "helps")], "not decided"),
        ([row("helps", "helps"), row("harms", "helps")], "borne out in part"),
        ([row("helps", "helps"), row("unproven", "helps")], "borne out in part"),
        ([row("unproven", "helps"), row("harms", "helps")], "contradicted"),
        ([row("helps", "helps"), row("harms")], "borne out"),
        ([row("helps")], "no claim"),
    ],
)
def test_the_outcome_follows_from_the_verdicts(rows: list[dict[str, Any]], outcome: str) -> None:
    assert conclude(rows).outcome == outcome
    assert conclude(rows[::-1]).outcome == outcome


def test_nothing_is_borne_out_while_a_trial_is_to_come() -> None:
    ended = conclude([row("helps", "helps")], ["b", "c"])
    assert (ended.outcome, ended.sentence) == ("not decided", "Not decided: 2 trials are still to be run (b, c).")


def test_what_a_stop_leaves_is_not_decided(folder: Path) -> None:
    study = Study.open(folder)
    asked: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(study, folder=folder, quiet=True, say=lambda text: asked.append(text) or _stop_at_second(asked))
    left = read_results(folder)["full"]
    assert [r["trial"] for r in left["rows"]] == ["low"] and left["to_come"] == ["high"]
    assert run(study, folder=folder, quiet=True)["full"]["to_come"] == []


def _stop_at_second(asked: list[str]) -> None:
    if len(asked) == 2:
        raise KeyboardInterrupt


def test_the_sentence_names_arms_trials_and_whether_the_claimed_size_was_met() -> None:
    rows = [
        row("helps", "helps", claimed_difference=0.05, lower=0.01, upper=0.03),
        row("helps", "helps", trial="b", arm="she"),
        row("neutral", "helps", trial="b"),
    ]
    assert conclude(rows).sentence == (
        "Borne out in part: he (a) and she (b) help; but he (b) makes no difference that matters. Claimed of he (a) is "
        "+0.05; the whole interval lies below that: the effect is smaller than claimed."
    )
    assert standing(row("unproven")) == "no claim"


# ---- what is made of results


def test_all_pages_and_the_cards_are_made_from_results(folder: Path) -> None:
    study = Study.open(folder)
    assert "| not run | - |" in studies_page(folder.parent).replace("**", "")
    run(study, folder=folder, quiet=True)
    page = studies_page(folder.parent)
    assert "1 studies: 1 borne out." in page and "| high | malus |" in page and "**harms** | nothing |" in page
    made = study_pages(folder.parent)
    assert set(made) == {folder.parent / "verdicts.json", folder / "README.md", folder / "intervals.svg"}
    found = json.loads(made[folder.parent / "verdicts.json"])["verdicts"]
    assert [(e["word"], e["trial"]) for e in found["technique/mixup"]] == [("helps", "low"), ("helps", "high")]
    assert [e["arm"] for e in found["technique/cutmix"]] == ["malus"]
    text = cards.effect_of(found["technique/cutmix"])
    assert text.startswith("harms: accuracy -0.05") and "study tiny, high/malus" in text
    assert card_verdicts([read_results(folder)]) == found


def test_the_card_shows_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"word": "neutral", "metric": "accuracy", "difference": 0.001, "lower": -0.002, "upper": 0.004, "pairs": 9}
    entry |= {"smallest_effect": 0.01, "on": "digits", "trial": "trial", "arm": "mixup", "study": "s", "mode": "full"}
    monkeypatch.setattr(cards, "verdicts", lambda: {"technique/mixup": [entry | {"date": "2030-01-01"}]})
    assert cards.card("mixup").effect.startswith("neutral: accuracy +0.001 [-0.002, +0.004], n = 9 pairs, digits")
    assert cards.card("cutout").effect == "unproven"


def test_the_plot_puts_intervals_where_they_belong() -> None:
    rows = [
        row("helps", smallest_effect=0.01, difference=0.02, lower=0.01, upper=0.03),
        row("unproven", smallest_effect=0.01, difference=None, lower=None, upper=None),
    ]
    root = ElementTree.fromstring(interval_plot(rows))
    name = "{http://www.w3.org/2000/svg}"
    zero = next(float(line.get("x1", 0)) for line in root.iter(f"{name}line"))  # the first line is the one at 0
    bars = [line for line in root.iter(f"{name}line") if line.get("stroke-width") == "3"]
    ends = [(float(bar.get("x1", 0)), float(bar.get("x2", 0))) for bar in bars]
    dots = [float(dot.get("cx", 0)) for dot in root.iter(f"{name}circle")]
    assert len(ends) == 2 and len(dots) == 1
    assert zero < ends[0][0] < dots[0] < ends[0][1]
    assert ends[1][0] < zero < ends[1][1] and ends[1][1] > ends[0][1]  # what is not known reaches from edge to edge


# ---- the committed ones


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_studies_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = Study.open(ROOT / "studies" / name)
    assert any(trial.expected(arm) for trial in study.trials(False).values() for arm in trial.arms)
    for quick in (False, True):
        for trial in study.trials(quick).values():
            trial.subject(name)
            for recipe in recipes(trial, name).values():
                assert not recipe.not_reproducible


@pytest.mark.slow
@pytest.mark.skipif("KINGPOST_DATA" not in os.environ, reason="KINGPOST_DATA does not name the data sets' folder")
@pytest.mark.parametrize("name", COMMITTED)
def test_recipes_of_committed_studies_assemble(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    opened: dict[str, Any] = {}
    for trial in Study.open(ROOT / "studies" / name).trials(quick=True).values():
        for whole in recipes(trial, name).values():
            for recipe in whole.staged() or [whole]:
                dataset = opened.get(str(recipe.data)) or recipe.data.open()
                opened = {str(recipe.data): dataset}
                with process_group(recipe.layout) as device:
                    assert assemble(recipe, dataset, device).model is not None


def recipes(trial: StudyTrial, name: str) -> dict[str, Recipe]:
    """The recipe of each arm, the baseline's among them."""
    if trial.function is None:
        base = trial.recipe(name)
        return {"baseline": base} | {arm: base.patched(Patch.of(patch)) for arm, patch in trial.arms.items()}
    base = Recipe.from_value({"name": name, **trial.given["recipe"]}).patched(trial.given.get("shared", {}))
    own = trial.given.get("changes", {})
    every = {"baseline": own} | {arm: given.get("changes", own) for arm, given in trial.arms.items()}
    return {arm: base.patched(patch) for arm, patch in every.items()}


# ---- what the studies bring along


def images(samples: int) -> TensorSplit:
    draw = torch.Generator().manual_seed(0)
    return TensorSplit((torch.randn(samples, 1, 8, 8, generator=draw),), torch.arange(samples) % 4)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    import studies.sources

    return studies.sources


def test_wrong_labels_are_as_many_as_said_and_truly_wrong(sources: Any) -> None:
    clean, noisy = (
        sources.Sampled(source="digits", label_noise=share).open().splits["train"].targets for share in (0.0, 0.4)
    )
    # 1,438 draws: four standard deviations of the share are 0.052
    assert float((clean != noisy).double().mean()) == pytest.approx(0.4, abs=0.052)
    assert set(noisy.tolist()) == set(range(10))
    validation = [
        sources.Sampled(source="digits", label_noise=share).open().splits["validation"].targets for share in (0.0, 0.4)
    ]
    assert torch.equal(*validation)


def test_fewer_samples_classes_and_pixels(sources: Any) -> None:
    found = sources.Sampled(source="digits", train=50, validation=20, keep_classes=(7, 2), shrink=2).open()
    assert (len(found.splits["train"]), len(found.splits["validation"])) == (50, 20)
    assert found.facts.classes == ("7", "2") and set(found.splits["train"].targets.tolist()) == {0, 1}
    assert found.facts.inputs[0][0] == (1, 4, 4) and found.splits["train"].inputs[0].shape[1:] == (1, 4, 4)


def test_spoiled_images_are_those_that_are_judged(sources: Any) -> None:
    plain = sources.Sampled(source="digits").open().splits
    hidden = sources.Sampled(source="digits", spoil="occlude").open().splits
    assert torch.equal(plain["train"].inputs[0], hidden["train"].inputs[0])
    before, after = plain["validation"].inputs[0], hidden["validation"].inputs[0]
    assert int(((before != after).flatten(1).sum(1)).max()) <= 16  # a square of 4 x 4 of the 8 x 8 pixels
    still = sources.Sampled(source="digits", spoil="rotate", turn=0.0).open().splits["validation"].inputs[0]
    torch.testing.assert_close(still, before, atol=1e-4, rtol=0)  # resampling at the same places, in float32
    turned = sources.Sampled(source="digits", spoil="rotate").open().splits["validation"].inputs[0]
    assert not torch.allclose(turned, before, atol=0.1)


def test_a_gap_stands_after_the_rows(sources: Any) -> None:
    found = sources.RowsThenGap(source="digits", gap=5, noise=0.5).open()
    whole = sources.Sampled(source="digits").open().splits["train"].inputs[0]
    sequences = found.splits["train"].inputs[0]
    assert found.facts.inputs[0][0] == (13, 8) and torch.equal(sequences[:, :8], whole[:, 0])
    # 57,000 draws: the standard deviation is known to 0.0015
    assert float(sequences[:, 8:].std()) == pytest.approx(0.5, abs=0.01)


def test_detection_rate_and_dead_units_against_a_count(sources: Any) -> None:
    from studies.measures import dead_share, detection_rate

    draw = torch.Generator().manual_seed(1)
    scores, attacks = torch.rand(500, generator=draw), torch.rand(500, generator=draw) < 0.3
    best = 0.0
    for threshold in sorted({*scores.tolist(), 2.0}):  # the slow way: every threshold, the best that is allowed
        alarms = scores < threshold
        if float((alarms & ~attacks).sum()) <= 0.05 * int((~attacks).sum()):
            best = max(best, float((alarms & attacks).sum()) / int(attacks.sum()))
    assert float(detection_rate(scores, attacks, 0.05)) == pytest.approx(best)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    inputs = torch.randn(40, 3, generator=draw) * 0.1
    silent = sum(bool((net[0](inputs)[:, unit] <= 0).all()) for unit in range(8))
    assert dead_share(net, inputs) == silent / 8


SMALL: dict[str, Any] = {
    "data": {"name": "studies.sources:Sampled", "source": "digits", "train": 200, "validation": 100},
    "model": {"name": "mlp", "widths": [16]},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "budget": {"steps": 20},
}


def test_a_measure_is_what_training_gives(sources: Any, tmp_path: Path) -> None:
    from studies import measures

    from kingpost.train.train import train

    shared, changes = {"budget.steps": 10}, {"optimizer.lr": 0.05}
    recipe = Recipe.from_value({"name": "x", **SMALL}).patched(shared, changes, measures.QUIET).with_(seed=3)
    wanted = train(recipe, tmp_path, quiet=True).results[-1]["validation_accuracy"]
    assert measures.trained(3, recipe=SMALL, shared=shared, changes=changes) == wanted
    staged = {"stages": [{"optimizer.lr": 0.2}, {"data.train": 50}]}
    assert measures.trained(3, recipe=SMALL, changes=staged) != wanted  # the last stage's


def test_an_ensemble_of_one_is_its_member_and_members_are_shared(sources: Any) -> None:
    from studies import measures

    alone = measures.trained(2000, recipe=SMALL)  # the seed of the first member of seed 2
    assert measures.together(2, recipe=SMALL) == pytest.approx(alone)
    measures._answers.cache_clear()
    measures.together(2, recipe=SMALL, members=2)
    measures.together(2, recipe=SMALL, members=3, what="calibration_error")
    assert measures._answers.cache_info().misses == 3


def test_measures_stay_in_their_ranges(sources: Any) -> None:
    from studies import measures

    assert measures.largest_rate(0, recipe=SMALL, first=0.1, rungs=2, enough=0.0) == 1.0
    assert measures.largest_rate(0, recipe=SMALL, first=1e-6, rungs=2, enough=0.99) == -1.0
    assert 0.0 <= measures.dead_units(0, recipe=SMALL) <= 1.0
    plain = measures.trained(0, recipe=SMALL)
    assert measures.robust(0, recipe=SMALL, epsilon=3.0, samples=100) < plain


def test_the_rate_of_a_narrow_net_is_used_for_a_wide_one(sources: Any) -> None:
    from studies import measures

    recipe = {**SMALL, "model": {"name": "mlp", "depth": 1, "width": 8}}
    found = measures.loss_when_wider(0, recipe=recipe, narrow=4, wide=16, rates=[1e-4, 0.1])
    wide = {"model.width": 16, "optimizer.lr": 0.1}  # the first rate hardly moves
    assert found == measures.trained(0, recipe=recipe, changes=wide, metric="loss_nats")


def test_detection_searches_its_rate(sources: Any, tmp_path: Path) -> None:
    from studies import measures

    draw = torch.Generator().manual_seed(0)
    rows = [f"{x:.3f},{'normal' if x > 0 else 'neptune'}" for x in torch.randn(300, generator=draw).tolist()]
    (tmp_path / "flows.csv").write_text("\n".join(["size,label", *rows]), encoding="utf-8")
    table = {"name": "table", "train": str(tmp_path / "flows.csv"), "target": "label", "validation": 0.3}
    recipe = {**SMALL, "data": {**table, "label_map": {"normal": "normal", "*": "attack"}}}
    assert measures.detection(0, recipe=recipe, rates=[1e-6, 0.3], false_alarms=0.1) > 0.9  # they are separable
