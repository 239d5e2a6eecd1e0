"""Initialisers that look at the whole net: what follows each layer, residual branches, the data, and depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch import Tensor, nn

import kingpost as kp
from contract.toys import Toy
from kingpost.assembly import Batch, Setting, Started
from kingpost.build.initialise.auto import auto
from kingpost.build.initialise.follow import Follow, follow
from kingpost.build.initialise.gains import FUNCTIONS, gain_of
from kingpost.build.initialise.lsuv import lsuv
from kingpost.build.nets.gpt import GPTNet
from kingpost.build.nets.resnet import ResNet
from kingpost.errors import RecipeError
from kingpost.net import image_facts
from kingpost.option import choose
from kingpost.recipe import Recipe
from kingpost.train.assemble import assemble, plain_assembly
from kingpost.train.tasks import Classification


def batch(*inputs: Tensor) -> Batch:
    return Batch(inputs, inputs[0], 0, len(inputs[0]))


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def start(model: nn.Module, technique: str | dict[str, Any], *inputs: Tensor, seed: int = 0) -> Started:
    """Give a model its starting weights, outside of any recipe."""
    setting = Setting(
        task=Classification(), data=image_facts(1, 8, 8, 3), batch_size=4, total_steps=1, seed=0,
        device=torch.device("cpu"), first_batch=lambda: batch(*inputs),
    )  # fmt: skip
    mounted = choose("initialise", technique).mount(plain_assembly(setting))  # type: ignore[attr-defined]
    return mounted.initialise(model, seed)


# ---- matrices


@pytest.mark.parametrize(("out", "inputs"), [(8, 8), (5, 8), (8, 5)])
def test_orthogonal_rows_or_columns(out: int, inputs: int) -> None:
    layer = nn.Linear(inputs, out)
    start(layer, {"name": "orthogonal", "gain": 2.0})
    w = layer.weight.detach()
    gram = w @ w.T if out <= inputs else w.T @ w
    torch.testing.assert_close(gram, 4 * torch.eye(min(out, inputs)), rtol=0, atol=1e-13)  # sums of 8 products


@pytest.mark.parametrize("kernel", [3, 5])
def test_delta_orthogonal_convolution_keeps_lengths(kernel: int) -> None:
    layer = nn.Conv2d(4, 7, kernel, padding=kernel // 2)
    start(layer, "delta-orthogonal")
    x = numbers(3, 4, 6, 6)
    # At every place of the grid; sums of a hundred products.
    torch.testing.assert_close(layer(x).norm(dim=1), x.norm(dim=1), rtol=1e-13, atol=0)
    plain = nn.Conv2d(4, 7, kernel, padding=kernel // 2)
    start(plain, "orthogonal")
    assert not torch.allclose(plain(x).norm(dim=1), x.norm(dim=1), rtol=0.05)


def test_delta_orthogonal_says_where_it_cannot_keep_lengths() -> None:
    done = start(nn.Conv2d(7, 4, 3), "delta-orthogonal").done
    assert "only the rows are orthonormal" in done["weight"]


def test_sparse_units_have_that_many_inputs() -> None:
    model = nn.Sequential(nn.Linear(200, 300), nn.Conv1d(10, 64, 4), nn.Linear(6, 4))
    start(model, {"name": "sparse", "connections": 15})
    assert (model[0].weight != 0).sum(1).eq(15).all() and (model[1].weight != 0).sum((1, 2)).eq(15).all()
    assert (model[2].weight != 0).all()
    places = (model[0].weight != 0).sum(0)  # 300 draws of 15 in 200: 22.5 each, five standard deviations are 23
    assert places.min() > 0 and places.max() < 46
    w = model[0].weight.detach()
    # 4,500 normal numbers; four standard errors of their variance.
    assert float(w[w != 0].var()) == pytest.approx(2 / 15, rel=4 * math.sqrt(2 / 4500))


def test_identity_and_zero_are_what_they_say() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3, padding=1))
    start(model, "identity")
    x = numbers(2, 4, 5, 5)
    assert torch.equal(model[0](x[:, :, 0, 0]), x[:, :, 0, 0]) and torch.equal(model[1](x), x)
    wide, narrow = nn.Linear(6, 16), nn.Linear(16, 6)
    started = start(nn.ModuleList([wide, narrow]), "zero")
    hadamard = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(6)] for i in range(16)])  # Sylvester's
    torch.testing.assert_close(wide.weight.detach(), hadamard / 4, rtol=0, atol=0)
    assert torch.equal(narrow.weight, torch.eye(6, 16))
    x = numbers(3, 6)
    # An isometry in 16 dimensions.
    torch.testing.assert_close(wide(x).norm(dim=1), x.norm(dim=1), rtol=1e-14, atol=0)
    assert started.done["0.weight"] == "zero: Hadamard, 6 inputs to 16 outputs"


# ---- gains


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gain_keeps_the_second_moment(name: str) -> None:
    torch_function = {"gelu": F.gelu, "hardtanh": F.hardtanh}.get(name) or getattr(F, name)

    def squared(x: float) -> float:
        value = float(torch_function(torch.tensor(x)))
        return value**2 * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    moment, _ = integrate.quad(squared, -9, 9, points=[-3, -1, 0, 1, 3], limit=200)
    assert gain_of(Follow(name)) == pytest.approx(1 / math.sqrt(moment), rel=1e-5)


def test_gains_are_torchs_where_torch_has_them() -> None:
    assert gain_of(Follow("relu")) == nn.init.calculate_gain("relu")
    assert gain_of(Follow("leaky_relu", 0.2)) == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.2), rel=1e-15)
    assert gain_of(Follow("tanh")) == nn.init.calculate_gain("tanh")
    assert gain_of(Follow("sigmoid")) == nn.init.calculate_gain("sigmoid")


# ---- what follows


class Own(nn.Module):
    """A user's own net: functions and modules, methods and operators, norms and shapes between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.e, self.f, self.g, self.h = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.act, self.unused = nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.norm(self.a(x)), 0.1, self.training).relu_().flatten(1)
        y = self.act(self.b(y) * 2 + 1)
        y = torch.tanh(self.c(y)) * self.d(y).sigmoid()
        y = torch.clamp(self.e(y), min=0)
        y = F.selu(self.f(y).view(len(x), 2, 4)).reshape(len(x), 8)
        return self.h(y @ self.g.weight.t())


def test_what_follows_is_found_in_any_module() -> None:
    model = Own()
    found = follow(model, batch(numbers(3, 1, 8, 8))).follows
    assert {name.split(".")[0]: what for name, what in found.items()} == {
        "a": Follow("relu"), "b": Follow("leaky_relu", 0.2), "c": Follow("tanh"), "d": Follow("sigmoid"),
        "e": Follow("relu"), "f": Follow("selu"), "g": Follow("linear"), "h": Follow("output"),
    }  # fmt: skip


def test_looking_leaves_the_model_as_it_was() -> None:
    model = Own().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.b.eval()
    follow(model, batch(numbers(3, 1, 8, 8)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and model.norm.training and not model.b.training


def test_auto_says_what_it_chose_and_why() -> None:
    model, x = Own(), numbers(3, 1, 8, 8)
    done = start(model, "auto", x).done
    assert done["a.weight"] == "he normal: relu follows"
    assert done["b.weight"] == "he normal: leaky_relu follows (slope 0.2)"
    assert done["c.weight"] == "xavier normal: tanh follows"
    assert done["f.weight"] == "lecun normal: selu follows"
    assert done["h.weight"] == "xavier normal: the model's output"
    assert done["unused.weight"] == "xavier normal: what follows could not be told"
    variances = {"b": (2 / 1.04) / 144, "f": 1 / 8, "c": (5 / 3) ** 2 / 8}
    for layer, variance in variances.items():
        w = model.get_submodule(layer).weight.detach()  # type: ignore[union-attr]
        # Four standard errors of the variance of n normal numbers.
        assert float(w.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / w.numel())), layer  # type: ignore[operator]


def test_auto_treats_recurrence_and_transformers() -> None:
    lstm = nn.LSTM(3, 6)
    done = auto(lstm, batch(numbers(4, 2, 3)), 0).done
    assert done["weight_hh_l0"] == "orthogonal: a recurrent matrix is applied again and again"
    assert done["weight_ih_l0"] == "xavier normal: gates of a recurrent layer"
    assert done["bias_ih_l0"] == "zero, 1 for the forget gate"
    gpt = GPTNet(11, context=4, depth=3, width=8, heads=2)
    done = auto(gpt, batch(torch.zeros(2, 4, dtype=torch.long)), 0).done
    assert done["blocks.0.attention.query.weight"] == "xavier normal: attention follows"
    assert done["blocks.1.feed_forward.up.weight"] == "he normal: gelu follows"
    assert done["blocks.1.attention.out.weight"].endswith("/ sqrt(6), the last of one of 6 residual branches")
    assert "tokens.weight" not in done and "head.weight" not in done


def test_gain_auto_takes_that_of_each_layer() -> None:
    model = nn.Sequential(nn.Linear(100, 200), nn.Tanh(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 4))
    started = start(model, {"name": "orthogonal", "gain": "auto"}, numbers(2, 100))
    for index, gain in ((0, 5 / 3), (2, math.sqrt(2)), (4, 1.0)):
        assert float(torch.linalg.matrix_norm(model[index].weight.detach(), 2)) == pytest.approx(gain, rel=1e-12)
    assert started.done["2.weight"] == "orthogonal: relu follows"


def test_a_model_that_cannot_be_run_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"initialise: this initialiser runs the model .* Linear cannot be run"):
        start(nn.Linear(3, 2), "auto", numbers(4, 5))


# ---- residual branches


class Residual(nn.Module):
    """Two blocks, the first with a projection, with or without norms."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.project = nn.Conv2d(4, 6, 1)
        self.one = self._branch(4, 6, norm)
        self.two = self._branch(6, 6, norm)
        self.head = nn.Linear(6, 3)

    @staticmethod
    def _branch(a: int, b: int, norm: bool) -> nn.Sequential:
        layers = [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(2, b) if norm else nn.Identity(), nn.ReLU(),
                  nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(2, b) if norm else nn.Identity()]  # fmt: skip
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.project(x) + self.one(x))
        x = x + self.two(x)
        return self.head(x.mean((2, 3)))

    def short(self, x: Tensor) -> Tensor:
        """Without the branches."""
        return self.head(F.relu(self.project(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["skipinit", "fixup", "zero-last-norm"])
def test_branches_are_silent_at_the_start_and_learn(name: str, norm: bool) -> None:
    model, x = Residual(norm), numbers(5, 1, 6, 6)
    started = start(model, name, x)
    if name == "zero-last-norm" and not norm:
        assert started.left == dict.fromkeys(
            ["one.3.weight", "two.3.weight"], "no norm with a gain follows it in its residual branch"
        )
        return
    if name == "fixup":
        assert not model.head.weight.any() and started.done["head.weight"] == "zero: the model's last layer"
        nn.init.ones_(model.head.weight)
    assert torch.equal(model(x), model.short(x))
    model(x).square().sum().backward()
    for branch in (model.one, model.two):
        end = branch[4] if norm else branch[3]
        assert end.weight.grad is not None and bool(end.weight.grad.any())


def test_fixup_scales_the_inner_layers() -> None:
    plain, scaled, x = Residual(False), Residual(False), numbers(2, 1, 6, 6)
    start(plain, "he", x)
    done = start(scaled, "fixup", x).done
    # L = 2 branches of m = 2 layers: 2^(-1/2).
    torch.testing.assert_close(scaled.one[0].weight, plain.one[0].weight * 2**-0.5, rtol=1e-15, atol=0)
    assert done["one.0.weight"] == "base, x 2^(-1/2): 2 branches of 2 layers"
    assert torch.equal(scaled.project.weight, plain.project.weight)


def test_kingposts_own_nets_and_torchs_are_understood() -> None:
    resnet = ResNet(**ResNet.example).make(image_facts(1, 16, 16, 3), 3)
    blocks = len(follow(resnet, batch(numbers(2, 1, 16, 16))).branches)
    done = start(resnet, "zero-last-norm", numbers(4, 1, 16, 16)).done
    assert blocks >= 1 and len(done) == blocks
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    done = start(encoder, {"name": "skipinit", "base": None}, numbers(2, 5, 8)).done
    ends = [f"layers.{i}.{layer}" for i in (0, 1) for layer in ("self_attn.out_proj", "linear2")]
    assert sorted(done) == sorted(f"{end}.{p}" for end in ends for p in ("weight", "bias"))


def test_what_cannot_be_silenced_is_said() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(x).tanh()).relu()

    left = start(Ends(), "skipinit", numbers(2, 4)).left
    assert left == {"b.weight": "its residual branch ends in relu, which may pass no gradient at zero"}
    left = start(nn.Linear(4, 4), "skipinit", numbers(2, 4)).left
    assert left == {"weight": "no residual addition was seen in the model, so there is no branch to silence"}


def test_sums_that_are_no_residuals_are_left_alone() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.u, self.shift = nn.Linear(4, 6), nn.Linear(6, 6), nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 6)
            for step in range(x.shape[1]):
                h = torch.tanh(self.w(x[:, step]) + self.u(h) + self.shift)
            return h

    seen = follow(Recurrent(), batch(numbers(2, 5, 4)))
    assert seen.branches == [] and seen.follows == {"w.weight": Follow("tanh"), "u.weight": Follow("tanh")}


# ---- data


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.Softplus])
def test_lsuv_gives_every_layer_unit_variance(act: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), act(), nn.Conv2d(6, 8, 3, groups=2), act(), nn.Flatten(),
        nn.Linear(32, 20), act(), nn.Linear(20, 3),
    )  # fmt: skip
    x = 5 + 3 * numbers(40, 1, 6, 6)
    started = lsuv(model, batch(x), 0)
    seen: dict[str, float] = {}
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: float(out.detach().var())}))
    model.train()(x)
    # One division makes it exact; what is left is the rounding of four layers.
    assert seen == pytest.approx(dict.fromkeys("0368", 1.0), rel=1e-12)
    assert set(started.done) == {name for name, _ in model.named_parameters() if not name.startswith("1.")}
    w = model[6].weight.detach()
    torch.testing.assert_close(w @ w.T, (w @ w.T)[0, 0] * torch.eye(20), rtol=0, atol=1e-12)  # still orthogonal


def test_lsuv_says_what_it_could_not_scale() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5))
    started = lsuv(model, batch(torch.zeros(2, 3)), 0)
    assert started.left == {"0.weight": "orthogonal, but not scaled: its output does not vary on the first batch"}
    assert "not called by itself" in started.done["1.weight_hh_l0"]


# ---- depth


def chain(depth: int, width: int, act: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), act())))


def kept(technique: dict[str, Any], act: Callable[[], nn.Module], depth: int = 50, width: int = 256) -> float:
    """The factor on a signal's mean square per layer, over 50 layers, mean over 4 nets."""
    logs = []
    for seed in range(4):
        model, x = chain(depth, width, act), numbers(16, width)
        start(model, technique, x, seed=seed)
        with torch.no_grad():
            logs.append(float((model(x).square().mean() / x.square().mean()).log()))
    return math.exp(sum(logs) / len(logs) / depth)


@pytest.mark.parametrize(
    ("technique", "act", "factor"),
    [
        ({"name": "he"}, nn.ReLU, 1.0),
        ({"name": "xavier"}, nn.ReLU, 0.5),
        ({"name": "naive-normal", "std": 0.01}, nn.ReLU, 256 * 0.01**2 / 2),
        ({"name": "naive-normal", "std": 0.01}, nn.Identity, 256 * 0.01**2),
        ({"name": "orthogonal"}, nn.Identity, 1.0),
        ({"name": "orthogonal", "gain": "auto"}, nn.ReLU, 1.0),
        ({"name": "sparse"}, nn.ReLU, 1.0),
    ],
)
def test_signal_through_fifty_layers(technique: dict[str, Any], act: Callable[[], nn.Module], factor: float) -> None:
    """In closed form each layer multiplies the mean square by fan_in x variance, ReLU by one half."""
    # At width n the logarithm of one layer's factor has a mean of about -5/(2n) and a spread of sqrt(5/n) (kurtosis of
    # a rectified normal: Hanin and Rolnick, arXiv 1803.01719): 1 % and 14 %, over 50 layers x 4 nets: 2 % in all.
    tolerance = 1e-12 if (technique["name"], act) == ("orthogonal", nn.Identity) else 0.05
    assert kept(technique, act) == pytest.approx(factor, rel=tolerance)


# ---- in a recipe


@pytest.mark.parametrize("name", ["auto", "lsuv", "orthogonal", "skipinit", "sparse", "truncated-normal"])
def test_a_plan_lists_what_is_set_without_any_data(name: str) -> None:
    made = Recipe(
        name="toy",
        data=Toy(),
        model={"name": "cnn", "widths": [4, 4]},
        initialise=name,
        layout={"name": "data-parallel", "threads": 1, "device": "cpu"},
    )
    text = str(kp.plan(made))
    assert "starting weights" in text and name in text
    if name == "auto":
        assert "he normal: relu follows: stages.0.0.weight" in text
    model = assemble(made, made.data.open(), torch.device("cpu")).model
    assert all(bool(p.isfinite().all()) for p in model.parameters())
