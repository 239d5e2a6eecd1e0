"""Mu-parametrisation against the tables of the paper, the package of its authors, and what it promises: no drift."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract.toys import Toy
from kingpost.assembly import Assembly, Step
from kingpost.build.mup import OutputLinear, Width, widths
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe
from kingpost.train.assemble import assemble
from kingpost.train.gradients.backward import clear_gradients

MODELS: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {  # model, task, widths
    "mlp": ({"name": "mlp", "depth": 3}, "classification", (32, 128, 512)),
    "cnn": ({"name": "cnn", "depth": 2, "norm": "none"}, "classification", (48, 96, 192)),
    "gpt": ({"name": "gpt", "depth": 2, "heads": 2, "tied": False}, "language-modelling", (16, 64, 256)),
    "gpt, tied": ({"name": "gpt", "depth": 2, "heads": 2, "tied": True}, "language-modelling", (16, 64, 256)),
}
each_model = pytest.mark.parametrize("name", MODELS)


def recipe(model: Any, task: str = "classification", base: Any = None, **fields: Any) -> Recipe:
    plain: dict[str, Any] = {
        "name": "toy",
        "data": Toy(task=task),  # type: ignore[arg-type]
        "model": model,
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        "batch_size": 24,
        "techniques": [] if base is None else [{"name": "mu-parametrisation", **base}],
        "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
    }
    return Recipe(**{**plain, **fields})


def assembled(made: Recipe) -> Assembly:
    return assemble(made, made.data.open(), torch.device("cpu"))


# ---- which axes are width


def test_roles_and_rates_are_those_of_the_papers_table() -> None:
    """Table 8 of arXiv 2203.03466, for inputs r_in and outputs r_out times those of the base."""
    table = {
        Width("input", r_out=4.0): (1.0, 1.0, 4.0),  # spread, Adam, SGD: 1, 1, fan_out
        Width("hidden", 4.0, 4.0): (0.5, 0.25, 1.0),  # 1 / sqrt(fan_in), 1 / fan_in, 1
        Width("output", r_in=4.0): (1.0, 1.0, 4.0),  # with the multiplier 1 / fan_in: 1, 1, fan_in
        Width("fixed"): (1.0, 1.0, 1.0),
    }
    for width, (spread, adam, sgd) in table.items():
        assert (width.spread, width.rate(True), width.rate(False)) == (spread, adam, sgd), width


class Odd(nn.Module):
    """Every kind of parameter: grouped and transposed convolutions, embeddings, attention, recurrence, free ones."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.tokens, self.free = nn.Embedding(7, n), nn.Parameter(torch.ones(1, 5, n))
        self.depthwise = nn.Conv1d(n, n, 3, groups=n)
        self.up, self.down = nn.ConvTranspose1d(3, n, 2), nn.ConvTranspose1d(n, 3, 2)
        self.lstm, self.attention = nn.LSTM(4, n), nn.MultiheadAttention(n, n // 4)
        self.norm, self.head = nn.LayerNorm(n), nn.Linear(n, 2)


def test_axes_of_every_kind_of_parameter() -> None:
    found = widths(Odd(16), Odd(8))
    expected = {
        "tokens.weight": Width("input", r_out=2), "free": Width("input", r_out=2),
        "depthwise.weight": Width("input", r_out=2), "up.weight": Width("input", r_out=2),
        "down.weight": Width("output", r_in=2), "lstm.weight_ih_l0": Width("input", r_out=2),
        "lstm.weight_hh_l0": Width("hidden", 2, 2), "attention.in_proj_weight": Width("hidden", 2, 2),
        "norm.weight": Width("input", r_out=2), "head.weight": Width("output", r_in=2), "head.bias": Width("fixed"),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_equals_the_package_of_the_authors() -> None:
    """Same groups of learning rates (Adam and SGD), same decay, same multiplier."""
    if importlib.util.find_spec("mup") is None:
        pytest.skip("needs the package mup")
    import mup

    def net(n: int, head: Callable[[int, int], nn.Module]) -> nn.Module:
        m = 3 * n // 2
        return nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, m), nn.LayerNorm(m), nn.Linear(m, n), head(n, 3))

    theirs = net(48, mup.MuReadout)
    mup.set_base_shapes(theirs, net(16, nn.Linear), delta=net(32, nn.Linear), rescale_params=False)
    model = net(48, nn.Linear)
    names = {id(p): name for name, p in theirs.named_parameters()}
    known = widths(model, net(16, nn.Linear))
    for adaptive, make in ((True, mup.MuAdamW), (False, mup.MuSGD)):
        optimizer = make(theirs.parameters(), lr=0.1, weight_decay=0.2)
        rates = {names[id(p)]: g["lr"] / 0.1 for g in optimizer.param_groups for p in g["params"]}
        decays = {names[id(p)]: g["weight_decay"] / 0.2 for g in optimizer.param_groups for p in g["params"]}
        for name, width in known.items():
            assert width.rate(adaptive) == pytest.approx(rates[name], rel=1e-12), (name, adaptive)
            if adaptive:  # for SGD the package leaves lr x decay of its hidden layers as it falls out
                assert 1 / width.rate(adaptive) == pytest.approx(decays[name], rel=1e-12), (name, adaptive)
    assert theirs[-1].width_mult() == 3 == known["5.weight"].r_in


# ---- what is done to a run


def test_optimizer_groups_keep_rate_times_decay() -> None:
    made = recipe({"name": "mlp", "depth": 2, "width": 64}, base={"base_width": 16})
    assembly = assembled(made)
    optimizer = assembly.optimizer(assembly.model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(map(id, held))) == len(list(assembly.model.parameters()))
    rates = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    hidden, first = assembly.model.layers[2].weight, assembly.model.layers[0].weight
    assert rates[id(hidden)]["lr"] == 0.01 / 4 and rates[id(first)]["lr"] == 0.01
    for p in (hidden, first):
        assert rates[id(p)]["lr"] * rates[id(p)]["weight_decay"] == pytest.approx(0.01 * 0.1, rel=1e-15)


def test_output_is_divided_and_its_bias_is_not() -> None:
    assembly = assembled(recipe({"name": "mlp", "depth": 2, "width": 64}, base={"base_width": 16}))
    head, x = assembly.model.layers[-1], torch.randn(3, 64)
    assert isinstance(head, OutputLinear) and "multiplier=0.25" in repr(assembly.model)
    nn.init.ones_(head.bias)
    torch.testing.assert_close(head(x), x @ head.weight.T / 4 + 1, rtol=0, atol=1e-14)  # 64 summands below 1


def test_at_the_bases_width_nothing_changes() -> None:
    model = {"name": "mlp", "depth": 2, "width": 16}
    plain, mu = assembled(recipe(model)), assembled(recipe(model, base={"base_width": 16}))
    assert repr(plain.model) == repr(mu.model)
    for (name, a), b in zip(plain.model.named_parameters(), mu.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    groups = [a.optimizer(a.model).param_groups for a in (plain, mu)]
    assert [[g["lr"], g["weight_decay"]] for g in groups[0]] == [[g["lr"], g["weight_decay"]] for g in groups[1]]


def test_spread_of_starting_weights() -> None:
    """The naive initialiser does not know the width: the rule must bring it in."""
    naive = {"name": "naive-normal", "std": 0.1}
    wide = assembled(recipe({"name": "mlp", "depth": 2, "width": 64}, base={"base_width": 16}, initialise=naive)).model
    base = assembled(recipe({"name": "mlp", "depth": 2, "width": 16}, initialise=naive)).model
    for name, factor in {"layers.0.weight": 1.0, "layers.2.weight": 1 / math.sqrt(4), "layers.4.weight": 1.0}.items():
        own, there = (float(model.get_parameter(name).detach().square().mean().sqrt()) for model in (wide, base))
        assert own == pytest.approx(factor * there, rel=1e-12), name
        # A draw of n numbers has a relative standard error of 1 / sqrt(2 n) in its spread; n is 48 at least. Four.
        assert there == pytest.approx(0.1, rel=4 / math.sqrt(2 * 48)), name


def test_attention_scores_fall_with_the_width_of_a_head() -> None:
    model = {"name": "gpt", "depth": 1, "width": 64, "heads": 2}
    wide = assembled(recipe(model, "language-modelling", {"base_width": 16})).model
    assert wide.blocks[0].attention.scale == pytest.approx(1 / math.sqrt(8) * 8 / 32, rel=1e-15)
    more_heads = {"base": {"width": 16, "heads": 1}}
    same = assembled(recipe({**model, "heads": 4}, "language-modelling", more_heads)).model
    assert same.blocks[0].attention.scale is None


def test_a_foreign_net_is_made_again_with_other_arguments() -> None:
    made = recipe({"name": "build.test_mup:own_net", "n": 32}, base={"base": {"n": 8}})
    assembly = assembled(made)
    assert isinstance(assembly.model[-1], OutputLinear) and assembly.model[-1].multiplier == 1 / 4


def own_net(n: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 3))


def test_errors_say_what_to_do() -> None:
    mlp = {"name": "mlp", "depth": 2, "width": 32}
    with pytest.raises(RecipeError, match=r"techniques.mu-parametrisation.base: 'mlp' has no field 'wdth'"):
        assembled(recipe(mlp, base={"base": {"wdth": 8}}))
    with pytest.raises(RecipeError, match="exactly one of base_width and base must be given"):
        recipe(mlp, base={})
    with pytest.raises(RecipeError, match="passed as an object, which cannot be made again"):
        assembled(recipe(own_net(8), base={"base_width": 4}))
    with pytest.raises(RecipeError, match=r"other parameters than the model, first 'layers\.4\.bias'"):
        assembled(recipe(mlp, base={"base": {"width": 8, "depth": 1}}))
    rms = assembled(recipe(mlp, base={"base_width": 8}, optimizer={"name": "torch.optim:RMSprop", "lr": 0.1}))
    with pytest.raises(RecipeError, match="optimizer: mu-parametrisation has no rule for RMSprop; use adamw"):
        rms.optimizer(rms.model)
    l2 = {"name": "torch.optim:Adam", "lr": 0.1, "weight_decay": 0.1}
    adam = assembled(recipe(mlp, base={"base_width": 8}, optimizer=l2))
    with pytest.raises(RecipeError, match="Adam divides the decay's pull by the gradient's size"):
        adam.optimizer(adam.model)


def test_axes_without_a_rule_are_refused() -> None:
    class Three(nn.Module):
        def __init__(self, n: int, m: int) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(n, m, 2))

    with pytest.raises(RecipeError, match="no rule says which axis is its input"):
        widths(Three(8, 12), Three(4, 4))
    assert widths(Three(8, 8), Three(4, 4))["w"] == Width("hidden", 2, 2)


# ---- the promise: after some steps, activations are of the same size at every width


def sizes_after(made: Recipe, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Mean size of each layer's output before training, and of its change in some steps on one batch."""
    assembly = assembled(made)
    model, batch = assembly.model, assembly.setting.first_batch()
    optimizer = assembly.optimizer(model)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda layer, inputs, output: outputs.update({name: output.detach().clone()})

    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for name, layer in layers.items():
        layer.register_forward_hook(keep(name))
    with torch.no_grad():
        model(*batch.inputs)
    first = dict(outputs)
    for index in range(steps):
        step = Step(index=index, seed=0, items=assembly.setting.task.items(batch.targets))
        assembly.gradient(model, assembly.objective, batch, step)
        assembly.update(model, optimizer, step)
        clear_gradients(model)
    with torch.no_grad():
        model(*batch.inputs)
    change = {name: float((outputs[name] - first[name]).abs().mean()) for name in outputs}
    return {name: float(x.abs().mean()) for name, x in first.items()}, change


def slope(by_width: dict[int, float]) -> float:
    """Of the logarithm of a size over the logarithm of the width, by least squares."""
    x = torch.tensor([math.log(w) for w in by_width])
    y = torch.tensor([math.log(v) for v in by_width.values()])
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def slopes(name: str, way: str, optimizer: dict[str, Any], seeds: int = 3) -> dict[str, float]:
    model, task, sizes = MODELS[name]
    base = {"base_width": sizes[0]} if way == "mu" else None
    start = {} if name.startswith("gpt") else {"initialise": "he"}
    changes: dict[str, dict[int, float]] = {}
    for width in sizes:
        for seed in range(seeds):
            made = recipe({**model, "width": width}, task, base, optimizer=optimizer, seed=seed, **start)
            _, change = sizes_after(made, 3)
            for layer, value in change.items():
                of_layer = changes.setdefault(layer, {})
                of_layer[width] = of_layer.get(width, 0.0) + value / seeds
    return {layer: slope(by_width) for layer, by_width in changes.items()}


ADAM = {"name": "adamw", "lr": 0.002, "weight_decay": 0.0}
SGD = {"name": "sgd", "lr": 0.02, "momentum": 0.0}

# Width grows 4 to 16-fold. What grows with the width has slope 1 (or 1/2 where terms add at random), what is kept 0.
# Terms that vanish as the width grows are still there at the smallest one, and make slopes of up to -0.2 here.


@each_model
def test_coordinates_do_not_drift_with_adam(name: str) -> None:
    mu, standard = slopes(name, "mu", ADAM), slopes(name, "standard", ADAM)
    assert all(-0.25 < value < 0.15 for value in mu.values()), mu
    assert max(standard.values()) > 0.6, standard


def test_coordinates_do_not_drift_with_sgd() -> None:
    mu, standard = slopes("mlp", "mu", SGD), slopes("mlp", "standard", SGD)
    assert all(-0.3 < value < 0.15 for value in mu.values()), mu
    assert max(standard.values()) > 0.5, standard
