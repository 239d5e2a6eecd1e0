"""Rates and decay by name and by layer, against groups written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kingpost.errors import RecipeError
from kingpost.train.optimise.groups import decay_groups, optimizer_figures
from kingpost.train.optimise.layerwise import layers_of
from kingpost.train.optimise.lookahead import SlowWeights
from kingpost.train.optimise.muon import hidden_matrices
from reference.plain import assert_same, by_hand, by_kingpost, net

# Twelve plain momentum steps in 64 bits.
TOLERANCE = 1e-13
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.8, "weight_decay": 0.05}


def by_names(rates: dict[str, float], decays: dict[str, float]) -> Any:
    """torch's SGD with one group a parameter, in the order weight, weight, bias, bias of the plain net."""
    names = ["1.weight", "3.weight", "1.bias", "3.bias"]

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        params = [p for group in groups for p in group["params"]]
        pairs = zip(names, params, strict=True)
        one_each = [{"params": [p], "lr": rates[name], "weight_decay": decays[name]} for name, p in pairs]
        return torch.optim.SGD(one_each, momentum=0.8, foreach=False)

    return make


def test_parameter_groups_equal_groups_by_hand(tmp_path: Path) -> None:
    factors = {"lr": {"*": 0.5, "3.*": 2.0}, "weight_decay": {"1.weight": 3.0}}
    ours, _ = by_kingpost(tmp_path, net(), optimizer=SGD, techniques=[{"name": "parameter-groups", **factors}])
    rates = {"1.weight": 0.05, "1.bias": 0.05, "3.weight": 0.2, "3.bias": 0.2}
    decays = {"1.weight": 0.15, "3.weight": 0.05, "1.bias": 0.0, "3.bias": 0.0}
    theirs, _ = by_hand(net(), by_names(rates, decays))
    assert_same(ours, theirs, TOLERANCE)


def test_layerwise_rates_equal_groups_by_hand(tmp_path: Path) -> None:
    fields = {"optimizer": SGD, "techniques": [{"name": "layerwise-rates", "decay": 0.3}]}
    ours, _ = by_kingpost(tmp_path, net(), **fields)
    rates = {"1.weight": 0.03, "1.bias": 0.03, "3.weight": 0.1, "3.bias": 0.1}
    decays = {"1.weight": 0.05, "3.weight": 0.05, "1.bias": 0.0, "3.bias": 0.0}
    theirs, _ = by_hand(net(), by_names(rates, decays))
    assert_same(ours, theirs, TOLERANCE)


def test_a_pattern_that_fits_nothing_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    wrong = {"name": "parameter-groups", "lr": {"3.wieght": 2.0}}
    with pytest.raises(RecipeError) as caught:
        by_kingpost(tmp_path, net(), optimizer=SGD, techniques=[wrong])
    assert str(caught.value) == (
        "techniques.parameter-groups.lr: no trained parameter is called '3.wieght'; "
        "did you mean '3.weight'? known: 1.bias, 1.weight, 3.bias, 3.weight"
    )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
        self.norm = nn.LayerNorm(4)


class Stacked(nn.Module):
    """Embeddings, two stacks of blocks inside a part of its own, a norm and a head, as transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, 4), nn.Embedding(5, 4)
        self.trunk = nn.ModuleDict({"a": nn.ModuleList([Block(), Block()]), "b": nn.Sequential(Block(), Block())})
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)


def test_blocks_of_stacks_are_layers() -> None:
    layers = layers_of(Stacked())
    firsts = [layer[0].rsplit(".", 1)[0] for layer in layers]
    blocks = [f"trunk.{stack}.{i}.mixing.0" for stack in "ab" for i in range(2)]
    assert firsts == ["tokens", *blocks, "norm"]
    assert layers[0] == ["tokens.weight", "places.weight"]
    assert layers[-1] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert sorted(name for layer in layers for name in layer) == sorted(n for n, _ in Stacked().named_parameters())


def test_frozen_parameters_are_in_no_layer() -> None:
    model = net()
    model[1].weight.requires_grad_(False)  # type: ignore[union-attr]
    assert layers_of(model) == [["1.bias"], ["3.weight", "3.bias"]]


def test_embeddings_can_be_left_out_of_the_decay() -> None:
    model = Stacked()
    with_them, without = (decay_groups(model, 0.1, embeddings=given)[0]["params"] for given in (True, False))
    assert len(with_them) - len(without) == 2
    optimizer = torch.optim.SGD(decay_groups(model, 0.1, embeddings=False), lr=0.1)
    figures = {f.name: f for f in optimizer_figures(optimizer)}
    assert figures["weight decay"].value == "0.1"
    assert figures["weight decay"].reason == "9 tensors decay, 21 do not"


def test_muon_takes_what_lies_between_embeddings_and_head() -> None:
    names = hidden_matrices(Stacked())
    assert len(names) == 8 and all(name.startswith("trunk.") for name in names)
    tied = nn.ModuleDict({"in": nn.Embedding(4, 4), "hidden": nn.Linear(4, 4), "out": nn.Linear(4, 4)})
    tied["out"].weight = tied["in"].weight  # type: ignore[assignment]
    assert hidden_matrices(tied) == ["hidden.weight"]
    with pytest.raises(RecipeError, match=r"optimizer\.adamw: no parameter is called 'trunck\.\*'"):
        hidden_matrices(Stacked(), ("trunck.*",))


def test_slow_weights_are_judged_and_put_back_to_the_bit() -> None:
    model, slow = net(), SlowWeights(every=2, share=0.5)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    slow.begin(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    slow.follow(model)
    fast = {name: p.detach().clone() for name, p in model.named_parameters()}
    with slow.in_place(model), slow.in_place(model):
        assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())
    assert all(torch.equal(p, fast[name]) for name, p in model.named_parameters())


def test_lookahead_and_an_average_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'lookahead' and 'ema' exclude each other: both choose the weights"):
        by_kingpost(tmp_path, net(), techniques=["lookahead", "ema"])
    with pytest.raises(RecipeError, match="'schedule-free-sgd' and 'ema' exclude each other"):
        by_kingpost(tmp_path, net(), optimizer="schedule-free-sgd", techniques=["ema"])
