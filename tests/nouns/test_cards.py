"""Cards say what docstrings, classes and measurements say, and fit a terminal."""

import dataclasses
import json
import textwrap
from pathlib import Path

import pytest

import kingpost as kp
from kingpost import cards as module
from kingpost import catalogue
from kingpost.cards import KINDS, LINES, UNPROVEN, WIDTH, Cost, Said, cards

RATCHET = Path(__file__).parents[1] / "ratchets" / "cards_without_helps.txt"
NAMES = [name for kind in KINDS for name in catalogue.CATALOGUE[kind]]


def test_mixup_has_what_its_file_says():
    card = kp.card("mixup")
    assert (card.name, card.kind, card.reference) == ("mixup", "technique", "kingpost.train.augment.mixup:Mixup")
    assert card.what == (
        "Train on ``w x_i + (1 - w) x_j`` with targets mixed alike, ``w ~ Beta(alpha, alpha)`` once a batch."
    )
    assert card.equation == "w x_i + (1 - w) x_j; w ~ Beta(alpha, alpha)"
    assert card.helps == "Helps large nets that train long, and nets that are too sure of themselves."
    assert card.fails.startswith("Fails on nets that underfit and on short runs.")
    assert card.source == "Zhang et al., arXiv 1710.09412"
    assert card.touches == ("batch",) and card.neutral == {"alpha": 0.0}
    assert [(f.name, f.default) for f in card.fields] == [("alpha", "0.2")]
    assert card.effect == UNPROVEN


def test_order_and_conflicts_are_seen_from_both_sides():
    sam, accumulate = kp.card("sam"), kp.card("accumulate")
    assert "accumulate" in sam.after and "sam" in accumulate.before
    for name in NAMES:
        card = kp.card(name)
        for other, reason in card.conflicts.items():
            assert reason
            if other in NAMES:
                assert name in kp.card(other).conflicts


def test_a_docstring_is_taken_apart():
    class Thing:
        """Do ``a = b + c``. Costs two passes. Helped by nothing.

        It works so: ``d = e``. Costs one more. Then it rests.
        Helps here. And there (not "Fails here").
        Fails where it Helps nobody. Source: Somebody, "A. Title", 2001.

        Args:
            x: no part of the card.
        """

    said = Said.of(Thing)
    assert said.what == "Do ``a = b + c``. Helped by nothing."
    assert said.notes == ("It works so: ``d = e``. Then it rests.",)
    assert said.costs == "Costs two passes. Costs one more."
    assert said.helps == 'Helps here. And there (not "Fails here").'
    assert said.fails == "Fails where it Helps nobody."
    assert said.source == 'Somebody, "A. Title", 2001'
    assert said.equation == "a = b + c"


def words(text):
    return text.replace("Sources:", "Source:").replace("`", "").split()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_docstring_is_lost_and_it_fits_a_terminal(name):
    card = kp.card(name)
    described = catalogue.find(card.kind, name).__doc__
    text = textwrap.dedent(described.partition(">>>")[0].partition("Args:")[0])
    source = ("Source: " + card.source) if card.source else ""
    kept = words(" ".join([card.what, *card.notes, card.helps, card.fails, card.costs, source]))
    assert sorted(w.rstrip(".") for w in words(text)) == sorted(w.rstrip(".") for w in kept)
    shown = str(card).splitlines()
    assert len(shown) <= LINES and max(map(len, shown)) <= WIDTH and "``" not in str(card)
    json.dumps(card.to_value())


@pytest.mark.parametrize(
    "name", [n for kind in ("technique", "optimizer", "schedule") for n in catalogue.CATALOGUE[kind]]
)
def test_every_technique_optimizer_and_schedule_has_a_source(name):
    assert kp.card(name).source


def test_those_without_helps_or_fails_only_become_fewer():
    kinds = [kind for kind in KINDS if kind != "model"]  # a net has a paper, tasks and measured results instead
    lacking = [c.name for kind in kinds for c in cards(kind) if not (c.helps and c.fails)]
    assert sorted(lacking) == RATCHET.read_text().split(), "write the sentences, or take the names off the list"


def test_kinds_and_slots_choose():
    assert {c.kind for c in cards("optimizer")} == {"optimizer"}
    found = cards(slot="objective")
    assert {"l2", "label-smoothing"} <= {c.name for c in found} and all("objective" in c.touches for c in found)
    assert [c.name for c in cards()] and len(cards()) == len(NAMES) == len(set(NAMES))
    with pytest.raises(kp.RecipeError, match=r"^no slot 'objectve'; did you mean 'objective'\?"):
        cards(slot="objectve")
    with pytest.raises(kp.RecipeError, match=r"^no kind 'optimiser'; did you mean 'optimizer'\?"):
        cards("optimiser")
    with pytest.raises(kp.RecipeError, match=r"^no technique 'mixap'; did you mean 'mixup'\?"):
        kp.card("mixap")


COST = Cost(
    time_ratio=2.04, low=1.9, high=2.2, rounds=12, extra_parameters=0, state_per_weight=1.0, activation_ratio=1.0,
    subject="cnn", machine="a machine", date="2001-02-03", load=0.5,
)  # fmt: skip


def test_costs_are_told_with_how_they_were_measured():
    assert str(COST) == "2.04 x the time of a step (1.90 to 2.20, n = 12 rounds; cnn; a machine, 2001-02-03)"
    assert COST.memory == "keeps 1 number a weight, 1.00 x the activations"
    assert dataclasses.replace(COST, state_per_weight=-0.95).memory.startswith("keeps 0.95 numbers a weight less, ")
    busy = dataclasses.replace(COST, load=3.0, extra_parameters=1200, state_per_weight=0.0, activation_ratio=None)
    assert str(busy).endswith("2001-02-03; a busy machine (3.0 processes a core), so roughly)")
    assert busy.memory == "keeps nothing, +1,200 parameters"


def test_what_was_measured_stands_on_the_card(monkeypatch):
    monkeypatch.setattr(module, "costs", lambda: {"technique/sam": COST})
    assert kp.card("sam").cost is COST and kp.card("ema").cost is None
    assert f"measured: {COST.time_ratio} x the time of a step" in str(kp.card("sam"))
    assert "not measured" in str(kp.card("ema"))
