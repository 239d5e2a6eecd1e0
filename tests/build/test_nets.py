"""The networks: shapes, counts in closed form, errors, and what each of them must not do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from kingpost.assembly import Batch, Setting
from kingpost.build.nets.cnn import CNN, CNNNet
from kingpost.build.nets.gpt import GPT, GPTNet
from kingpost.build.nets.mlp import MLP, MLPNet
from kingpost.errors import RecipeError, RunError
from kingpost.source import DataFacts
from kingpost.train import checkpoint
from kingpost.train.assemble import plain_assembly
from kingpost.train.tasks import Classification, LanguageModelling, MultiLabel, Regression


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def tokens(b: int, t: int, vocabulary: int = 13) -> Tensor:
    return torch.randint(0, vocabulary, (b, t), generator=torch.Generator().manual_seed(0))


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def gpt(context: int = 8, depth: int = 2) -> GPTNet:
    torch.manual_seed(0)
    return GPTNet(13, context=context, depth=depth, width=12, heads=3)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], tuple[int, ...]]] = {
    "mlp": (lambda: MLPNet(12, [7, 5], 4), lambda b: numbers(b, 3, 4), (4,)),
    "mlp without hidden layers": (lambda: MLPNet(12, [], 4), lambda b: numbers(b, 12), (4,)),
    "cnn, batch norm": (lambda: CNNNet(3, [4, 6], 5), lambda b: numbers(b, 3, 9, 7), (5,)),
    "cnn, group norm": (lambda: CNNNet(1, [8, 24], 5, norm="group"), lambda b: numbers(b, 1, 4, 4), (5,)),
    "cnn, no norm": (lambda: CNNNet(2, [3], 5, norm="none", activation="gelu"), lambda b: numbers(b, 2, 5, 2), (5,)),
    "gpt": (gpt, lambda b: tokens(b, 8), (8, 13)),
    "gpt, short input": (gpt, lambda b: tokens(b, 3), (3, 13)),
}
each_net = pytest.mark.parametrize("name", NETS)


@each_net
@pytest.mark.parametrize("b", [1, 2, 5])
def test_shapes(name: str, b: int) -> None:
    make, draw, expected = NETS[name]
    model = make().eval()
    out = model(draw(b))
    assert out.shape == (b, *expected)
    assert out.isfinite().all()


@each_net
def test_a_sample_does_not_see_the_others(name: str) -> None:
    make, draw, _ = NETS[name]
    model = make().eval()
    x = draw(5)
    one_by_one = torch.cat([model(row) for row in x.split(1)])
    torch.testing.assert_close(model(x), one_by_one, rtol=0, atol=1e-13)  # sums of up to a hundred numbers around 1


@each_net
def test_one_small_step_lowers_the_loss(name: str) -> None:
    make, draw, expected = NETS[name]
    torch.manual_seed(0)
    model, x = make(), draw(6)
    classes = tokens(6, math.prod(expected[:-1]), expected[-1]).flatten()

    def loss() -> Tensor:
        return F.cross_entropy(model(x).reshape(-1, expected[-1]), classes)

    before = loss()
    before.backward()
    slope = sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None)
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    gain = float((before - loss()).detach())
    assert slope > 1e-4
    # First order: the gain is lr |g|^2; the curvature over a step of 1e-4 |g| takes away some percent at most.
    assert gain == pytest.approx(1e-4 * slope, rel=0.1)


@each_net
def test_every_parameter_gets_a_gradient(name: str) -> None:
    make, draw, _ = NETS[name]
    model = make()
    model(draw(6)).square().sum().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and bool(p.grad.any()), key


@each_net
def test_weights_survive_the_file(name: str, tmp_path: Path) -> None:
    make, draw, _ = NETS[name]
    torch.manual_seed(1)
    model = make()
    for p in model.parameters():
        torch.nn.init.normal_(p)
    for b in model.buffers():
        b.copy_(torch.full_like(b, 2))
    checkpoint.save_weights(tmp_path / "w.safetensors", model)
    torch.manual_seed(2)
    other = make()
    checkpoint.load_weights(tmp_path / "w.safetensors", other)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert torch.equal(other.eval()(draw(3)), model.eval()(draw(3)))


@each_net
def test_export_gives_the_same_numbers(name: str) -> None:
    make, draw, _ = NETS[name]
    model = make().eval()
    program = torch.export.export(model, (draw(2),))
    # Exported operations are the same kernels; decompositions of the norm may add in another order.
    torch.testing.assert_close(program.module()(draw(2)), model(draw(2)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("widths", [[], [5], [5, 7, 3]])
def test_mlp_parameter_count(widths: list[int]) -> None:
    expected = sum(a * b + b for a, b in itertools.pairwise([12, *widths, 4]))
    assert count(MLPNet(12, widths, 4)) == expected


def test_mlp_is_the_composition_of_its_layers() -> None:
    model, x = MLPNet(12, [7], 4, activation="tanh"), numbers(5, 12)
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in (model.layers[0], model.layers[2]))
    expected = torch.stack([w2 @ torch.tanh(w1 @ row + b1) + b2 for row in x])
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-14)  # sums of a dozen numbers


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_cnn_parameter_count(norm: Any) -> None:
    widths = [3, 16, 24]
    kernels = sum(9 * a * b for a, b in itertools.pairwise([2, *widths]))
    per_channel = {"batch": 2, "group": 2, "none": 1}[norm] * sum(widths)  # gain and shift, or a bias
    assert count(CNNNet(2, widths, 5, norm=norm)) == kernels + per_channel + 24 * 5 + 5


def test_cnn_groups_divide_the_channels_and_have_at_least_eight() -> None:
    for channels in (1, 3, 7, 8, 12, 16, 20, 24, 34, 64, 97):
        norm = CNNNet(1, [channels], 2, norm="group").stages[0][1]
        assert isinstance(norm, nn.GroupNorm)
        assert channels % norm.num_groups == 0
        assert channels / norm.num_groups >= 8 or norm.num_groups == 1


def test_cnn_head_sees_the_mean_of_the_grid() -> None:
    model = CNNNet(1, [4], 3, norm="none").eval()
    x = numbers(2, 1, 6, 6)
    rows = [F.conv2d(x, model.stages[0][0].weight, model.stages[0][0].bias, padding=1).clamp(min=0)]
    pooled = torch.stack([rows[0][:, :, i : i + 2, j : j + 2].amax((2, 3)) for i in (0, 2, 4) for j in (0, 2, 4)])
    expected = model.head(pooled.mean(0))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-14)  # a mean of nine in another order


def test_tied_weights_stay_tied_and_are_written_once(tmp_path: Path) -> None:
    model, path = gpt(), tmp_path / "w.safetensors"
    checkpoint.save_weights(path, model)
    saved = load_file(path)
    assert ("head.weight" in saved) != ("tokens.weight" in saved)
    other = gpt()
    with torch.no_grad():
        other.head.weight.add_(1.0)
    checkpoint.load_weights(path, other)
    assert other.head.weight is other.tokens.weight
    assert torch.equal(other.head.weight, model.tokens.weight)
    own = model.state_dict()
    other.load_state_dict(own)  # torch's own way knows both names
    assert other.head.weight is other.tokens.weight


def test_weights_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    checkpoint.save_weights(path, MLPNet(12, [7], 4))
    with pytest.raises(RunError, match=r"other shape \['layers.0.bias \(7,\) for \(6,\)'"):
        checkpoint.load_weights(path, MLPNet(12, [6], 4))
    with pytest.raises(RunError, match=r"missing \['layers.4.weight', 'layers.4.bias'\]"):
        checkpoint.load_weights(path, MLPNet(12, [7, 4], 4))
    with pytest.raises(RunError, match=r"unknown \['layers.2.bias', 'layers.2.weight'\]"):
        checkpoint.load_weights(path, MLPNet(12, [], 7))


def facts(task: str, shape: tuple[int, ...], **more: Any) -> DataFacts:
    whole = task == "language-modelling"
    return DataFacts(task=task, inputs=((shape, torch.int64 if whole else torch.float64),), **more)


def mount(technique: Any, task: Any, data: DataFacts) -> nn.Module:
    def no_batch() -> Batch:
        raise AssertionError("no net asks for data")

    setting = Setting(
        task=task, data=data, batch_size=4, total_steps=1, seed=0, device=torch.device("cpu"), first_batch=no_batch
    )
    return technique.mount(plain_assembly(setting)).model


def test_nets_are_sized_to_the_data() -> None:
    three = facts("classification", (3, 8, 8), classes=("a", "b", "c"))
    assert mount(MLP(widths=(5,)), Classification(), three)(numbers(2, 3, 8, 8)).shape == (2, 3)
    assert mount(CNN(widths=(4, 4)), Classification(), three)(numbers(2, 3, 8, 8)).shape == (2, 3)
    values = facts("regression", (6,), target_shape=(2,))
    assert mount(MLP(widths=(5,)), Regression(), values)(numbers(2, 6)).shape == (2, 2)
    assert mount(MLP(widths=(5,)), Regression(), facts("regression", (6,)))(numbers(2, 6)).shape == (2, 1)
    labels = facts("multi-label", (6,), target_shape=(4,), classes=tuple("abcd"))
    assert mount(MLP(), MultiLabel(), labels)(numbers(2, 6)).shape == (2, 4)
    text = facts("language-modelling", (9,), target_shape=(9,), vocabulary=13)
    net = mount(GPT(depth=1, width=8, heads=2), LanguageModelling(), text)
    assert net(tokens(2, 9)).shape == (2, 9, 13)


def test_errors_say_what_to_do() -> None:
    flat = facts("classification", (64,), classes=("a", "b"))
    with pytest.raises(RecipeError, match=r"'cnn' reads images .* numbers \(F,\), of shape \(64,\); nets .*mlp"):
        mount(CNN(), Classification(), flat)
    small = facts("classification", (1, 8, 8), classes=("a", "b"))
    with pytest.raises(RecipeError, match=r"widths: 4 stages halve 8 x 8 pixels to nothing; use at most 3 stages"):
        mount(CNN(widths=(4, 4, 4, 4)), Classification(), small)
    assert mount(CNN(widths=(4, 4, 4)), Classification(), small)(numbers(1, 1, 8, 8)).shape == (1, 2)
    with pytest.raises(RecipeError, match="widths: needs at least one stage"):
        CNN(widths=())
    with pytest.raises(RecipeError, match="heads: got 5, which does not divide the width 128; use 4"):
        GPT(heads=5)
    two = DataFacts(task="language-modelling", inputs=(((4,), torch.int64), ((4,), torch.int64)), vocabulary=5)
    with pytest.raises(RecipeError, match=r"'gpt' reads .*\(T,\), but this data gives pairs of token sequences"):
        mount(GPT(), LanguageModelling(), two)


def test_an_input_of_the_wrong_shape_is_an_error_and_not_a_number() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MLPNet(12, [7], 4)(numbers(2, 13))
    with pytest.raises(RuntimeError, match="channels"):
        CNNNet(3, [4], 2)(numbers(2, 1, 8, 8))
    with pytest.raises(ValueError, match="got 9 tokens, but positions are learned for 8"):
        gpt(context=8)(tokens(2, 9))


def test_the_task_refuses_targets_that_would_broadcast() -> None:
    with pytest.raises(RecipeError, match=r"the model gives \(4, 3\); targets should be \(4, 3\), got \(4,\)"):
        Regression().criterion(numbers(4, 3), numbers(4))
    with pytest.raises(RecipeError, match=r"the model gives \(4, 3\); targets should be \(4, 3\), got \(4, 1\)"):
        MultiLabel().criterion(numbers(4, 3), numbers(4, 1))
    with pytest.raises(RecipeError, match=r"targets should be \(2, 5\), got \(2, 4\)"):
        LanguageModelling().criterion(numbers(2, 5, 7), tokens(2, 4))
