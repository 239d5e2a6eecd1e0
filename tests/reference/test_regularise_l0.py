"""L0 gates: their distribution by Monte Carlo, which channels can go, and that nothing changes when they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kingpost as kp
from contract.toys import Toy
from kingpost.train.regularise.chains import Chain, chains
from kingpost.train.regularise.l0 import Gate, add_gates, chance_open, expected_share, gated_layers, hard_concrete
from kingpost.train.regularise.remove_gates import remove_gates

DRAWS = 200_000


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.0, 4.0])
def test_chance_that_a_gate_is_open(log_alpha: float) -> None:
    """Within four standard errors of the closed form (seeded, so it either always holds or never)."""
    uniform = torch.rand(DRAWS, generator=torch.Generator().manual_seed(0))
    open_ = (hard_concrete(torch.tensor(log_alpha), uniform) > 0).double()
    p = float(chance_open(torch.tensor(log_alpha)))
    assert abs(float(open_.mean()) - p) < 4 * math.sqrt(p * (1 - p) / DRAWS)
    assert 0.0005 < p < 0.9995, "too sure to prove anything"


def test_gate_is_the_papers_formula() -> None:
    """Equations 10 to 12 of arXiv 1712.01312 with plain numbers."""
    for log_alpha in (-2.0, 0.3, 2.0):
        for u in (0.01, 0.2, 0.5, 0.7, 0.99):
            s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + log_alpha) / (2 / 3)))
            expected = min(1.0, max(0.0, s * 1.2 - 0.1))
            found = hard_concrete(torch.tensor(log_alpha), torch.tensor(u))
            assert float(found) == pytest.approx(expected, abs=1e-15)


def test_a_gate_starts_with_the_chance_that_is_asked_for() -> None:
    for start in (0.1, 0.5, 0.9):
        gate = Gate(3, start, 7.0, torch.zeros(1))
        assert chance_open(gate.log_alpha()).tolist() == pytest.approx([start] * 3, rel=1e-14)


def test_expected_share_is_the_mean_share_of_open_gates() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    add_gates(model, torch.zeros(2, 5))
    draw = torch.Generator().manual_seed(1)
    for layer in gated_layers(model):
        layer.gate.weight.data.normal_(0, 0.2, generator=draw)
    # A hidden unit of the first chain has 5 weights in and 6 out, of the second 8 in and 2 out.
    sizes = [(5 * 8 + 8 * 6) // 8, (8 * 6 + 6 * 2) // 6]
    shares = []
    for _ in range(1500):
        total = 0.0
        for layer, size in zip(gated_layers(model), sizes, strict=True):
            noise = torch.rand(layer.chain.channels, generator=draw)
            total += size * float((hard_concrete(layer.gate.log_alpha(), noise) > 0).sum())
        shares.append(total / (sizes[0] * 8 + sizes[1] * 6))
    sample = torch.tensor(shares)
    error = float(sample.std()) / len(shares) ** 0.5
    assert abs(float(sample.mean()) - float(expected_share(model).detach())) < 4 * error


class TwoBranches(nn.Module):
    """``down(act(gate(x)) * up(x))``, and a residual sum around it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))
        return y


class Twice(nn.Module):
    """One layer used for two things."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(torch.relu(self.second(torch.relu(self.first(x))))))
        return y


class Leaky(nn.Module):
    """The hidden units are also read by the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.first(x))
        return self.second(hidden), hidden


def grid_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 7, 3, padding=1, padding_mode="reflect"),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(28, 6),
        nn.PReLU(),
        nn.BatchNorm1d(6),
        nn.Linear(6, 3),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[Chain]]] = {
    "grids": (
        grid_net,
        (2, 8, 8),
        [Chain("4", ("0",), ("1",), 5, 1), Chain("9", ("4",), (), 7, 4), Chain("12", ("9",), ("11",), 6, 1)],
    ),
    "products": (TwoBranches, (4,), [Chain("down", ("gate", "up"), (), 6, 1)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_chains_that_are_there(name: str) -> None:
    make, shape, expected = MODELS[name]
    found, left = chains(make(), torch.zeros(2, *shape))
    assert [(c.reader, set(c.writers), c.norms, c.channels, c.each) for c in found] == [
        (c.reader, set(c.writers), c.norms, c.channels, c.each) for c in expected
    ]
    assert all(reason for reason in left.values())


@pytest.mark.parametrize(
    ("model", "reader", "reason"),
    [
        (Twice(), "second", "'second' is used 2 times"),
        (Leaky(), "second", "what it reads is also read elsewhere"),
        (nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)), "2", "'layer_norm' is between"),
        (nn.Sequential(nn.Linear(4, 5), nn.Softmax(-1), nn.Linear(5, 2)), "2", "'softmax' is between"),
        (nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 2)), "2", "'prelu' is between"),
    ],
)
def test_what_cannot_be_cut_is_left_with_the_reason(model: nn.Module, reader: str, reason: str) -> None:
    found, left = chains(model, torch.zeros(2, 4))
    assert found == [] and reason in left[reader]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("closed", [0.0, 0.5, 1.0])
def test_removed_gates_leave_the_same_outputs(name: str, closed: float) -> None:
    """In 64 bits only the order of a sum changes: terms that are exactly 0 are left out."""
    make, shape, _ = MODELS[name]
    torch.manual_seed(3)
    model, x = make(), torch.randn(5, *shape)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            part.running_mean.uniform_(-1, 1), part.running_var.uniform_(0.5, 2)
    add_gates(model, x)
    for layer in gated_layers(model):
        count = round(closed * layer.chain.channels)
        layer.gate.weight.data.uniform_(-0.1, 0.3)
        layer.gate.weight.data[torch.randperm(layer.chain.channels)[:count]] = -1.0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    smaller = remove_gates(model.train(), x)
    model.eval()
    torch.testing.assert_close(smaller.model(x), model(x), rtol=0, atol=1e-13)
    assert smaller.largest_difference < 1e-13
    for reader, (stay, of) in smaller.kept.items():
        assert stay == max(1, of - round(closed * of)), reader
    assert smaller.parameters[1] == sum(p.numel() for p in smaller.model.parameters())
    assert (smaller.parameters[1] < smaller.parameters[0]) == (closed > 0)
    assert (smaller.flops[1] < smaller.flops[0]) == (closed > 0)
    assert all(type(m).__module__.startswith("torch") or m is smaller.model for m in smaller.model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # the original is intact
    smaller.model.train()(x)  # shapes fit in training too


def test_a_trained_net_shrinks_and_its_smaller_self_says_the_same(tmp_path: Path) -> None:
    l0 = kp.L0(strength=3.0, speed=40.0)
    recipe = kp.Recipe(
        name="shrinks",
        data=Toy(),
        model={"name": "mlp", "widths": [12]},
        optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0},
        techniques=[l0],
        batch_size=8,
        budget={"steps": 30},
        layout={"name": "data-parallel", "threads": 1, "device": "cpu"},
        save={"report": False},
    )
    run = kp.train(recipe, root=tmp_path, quiet=True)
    shares = [row["l0_expected_share"] for row in run.steps]
    assert shares[0] == pytest.approx(0.9, rel=1e-12) and shares[-1] < 0.6
    model, x = kp.load_model(run, "last"), torch.randn(6, 1, 8, 8)
    smaller = remove_gates(model, x)
    ((reader, (stay, of)),) = smaller.kept.items()
    assert reader == "layers.2" and stay < of == 12
    torch.testing.assert_close(smaller.model(x), model(x), rtol=0, atol=1e-13)


def test_without_gates_it_is_refused() -> None:
    with pytest.raises(kp.RunError, match="has no gates; train it with the technique 'l0'"):
        remove_gates(nn.Linear(2, 2), torch.zeros(1, 2))
