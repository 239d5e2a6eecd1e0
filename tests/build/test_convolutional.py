"""Convolutional blocks and nets: closed forms, slow twins, published counts, sizes that fit and that do not."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kingpost.build.activations import ACTIVATIONS
from kingpost.build.blocks import inception as modules
from kingpost.build.blocks.convolution import ConvNormActivation, GlobalPool, adaptive_pooling, pooling
from kingpost.build.blocks.dense import DenseLayer, dense_block, transition
from kingpost.build.blocks.norms import grid_norm, vector_norm
from kingpost.build.blocks.residual import BlockStyle, PaddedShortcut, PreActivationBlock, ResidualBlock
from kingpost.build.blocks.squeeze_excite import SqueezeExcite
from kingpost.build.blocks.stochastic_depth import StochasticDepth, set_stochastic_depth
from kingpost.build.images import divided
from kingpost.build.nets.cnn import CNN
from kingpost.build.nets.densenet import DenseNet
from kingpost.build.nets.inception import Inception
from kingpost.build.nets.resnet import ResNet
from kingpost.errors import RecipeError
from kingpost.net import Net, image_facts
from kingpost.train import checkpoint

OPTIONS = (CNN, ResNet, DenseNet, Inception)
NORMS = ("batch", "layer", "group", "rms", "none")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def stirred(model: nn.Module) -> nn.Module:
    """The model in use, with norms that do something."""
    generator = torch.Generator().manual_seed(7)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return model.eval()


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Batch norm in use, written out."""
    gain, shift = (norm.weight / (norm.running_var + norm.eps).sqrt(), norm.bias)
    return (x - norm.running_mean[:, None, None]) * gain[:, None, None] + shift[:, None, None]


# -- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "size"), [(option, size) for option in OPTIONS for size in option.sizes])
def test_sizes_have_the_published_number_of_parameters(option: type[Net], size: str) -> None:
    named = option.sizes[size]
    with torch.device("meta"):
        counted = count(option(size=size).make(named.data, len(named.data.classes)))
    if named.parameters is not None:
        assert counted == named.parameters
    if rounded := re.search(r"rounds to ([\d.]+)M", named.source):
        digits = len(rounded[1].partition(".")[2])
        assert f"{counted / 1e6:.{digits}f}" == rounded[1]


def test_counts_of_variants_agree_with_other_sources() -> None:
    images = image_facts(3, 224, 224, 1000)
    with torch.device("meta"):
        paper = Inception(size="googlenet", kernel=5, norm="none").make(images, 1000)
        v3 = Inception(size="v3").make(image_facts(3, 299, 299, 1000), 1000)
        excited = ResNet(size="resnet-50", squeeze_excite=16).make(images, 1000)
        ahead = ResNet(size="resnet-50", preactivation=True).make(images, 1000)
    assert count(paper) == 6_998_552  # Caffe's GoogLeNet, which has no batch norm, less its auxiliary heads
    normed_channels = sum(m.num_features for m in v3.modules() if isinstance(m, nn.BatchNorm2d))
    assert count(v3) + normed_channels == 23_851_784  # Keras counts two running statistics and has no gain
    assert count(excited) == 28_088_024  # timm's seresnet50
    assert count(ahead) == 25_549_352  # timm's resnetv2_50


@pytest.mark.parametrize("profile", [(2, 2, 2, 2), (3, 4, 6, 3), (3, 8, 36, 3), (6, 12, 48, 32), (1,)])
def test_depth_is_divided_in_proportion(profile: tuple[int, ...]) -> None:
    whole = sum(profile)
    assert divided(whole, profile) == profile
    before = (0,) * len(profile)
    for depth in range(len(profile), 3 * whole):
        blocks = divided(depth, profile)
        assert sum(blocks) == depth and min(blocks) >= 1
        assert all(b >= a for a, b in zip(before, blocks, strict=True))  # a deeper net has every stage as deep
        if depth >= whole:
            exact = [depth * part / whole for part in profile]
            assert all(abs(b - e) < 1 for b, e in zip(blocks, exact, strict=True))
        before = blocks


def test_the_dials() -> None:
    facts = image_facts(3, 32, 32, 10)
    wide, usual = (ResNet(size="cifar-20", width=width).make(facts, 10) for width in (32, 16))
    assert 3.9 < count(wide) / count(usual) < 4.1  # kernels have width squared, all else is little
    assert ResNet(size="resnet-50", depth=19).blocks_by_stage() == (4, 5, 7, 3)
    assert ResNet(blocks=(2, 3)).blocks_by_stage() == (2, 3)
    assert DenseNet(size="densenet-121", depth=116).layers_by_block() == (12, 24, 48, 32)
    assert Inception(size="googlenet", depth=18).modules() == (4, 10, 4)
    assert CNN(depth=2, width=5).stage_widths() == (5, 10)
    assert CNN(widths=(3, 4, 5)).stage_widths() == (3, 4, 5)
    for option in OPTIONS:
        for size in option.sizes:
            net = option(size=size)
            assert isinstance(net.of("depth"), int) and isinstance(net.of("width"), int)
            same = option(size=size, depth=net.of("depth"), width=net.of("width"))
            facts = option.sizes[size].data
            with torch.device("meta"):
                assert count(same.make(facts, 10)) == count(net.make(facts, 10))


# -- blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_keep_the_shape_and_pass_a_gradient(name: Any) -> None:
    x = numbers(3, 4).requires_grad_()
    y = ACTIVATIONS[name]()(x)
    y.sum().backward()
    assert y.shape == x.shape and x.grad is not None and bool(x.grad.any())
    assert ACTIVATIONS["swish"]()(x).equal(ACTIVATIONS["silu"]()(x))


def test_norms_of_a_pixel_see_its_channels_only() -> None:
    x = numbers(2, 5, 3, 4)
    layer, rms = stirred(grid_norm("layer", 5)), stirred(grid_norm("rms", 5))
    for b, i, j in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        pixel = x[b, :, i, j]
        spread = ((pixel - pixel.mean()) ** 2).mean() + layer.eps
        # A few operations on numbers around one.
        torch.testing.assert_close(
            layer(x)[b, :, i, j], (pixel - pixel.mean()) / spread.sqrt() * layer.weight + layer.bias,
            rtol=0, atol=1e-14,
        )  # fmt: skip
        root = ((pixel**2).mean() + rms.eps).sqrt()
        torch.testing.assert_close(rms(x)[b, :, i, j], pixel / root * rms.weight, rtol=0, atol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_by_name(norm: Any) -> None:
    assert grid_norm(norm, 16)(numbers(3, 16, 4, 5)).shape == (3, 16, 4, 5)
    assert vector_norm(norm, 16)(numbers(3, 16)).shape == (3, 16)
    if norm in ("layer", "rms"):  # channels last
        last, first = vector_norm(norm, 16), grid_norm(norm, 16)
        x = numbers(3, 16, 4, 5)
        assert last(x.movedim(1, -1)).equal(first(x).movedim(1, -1))


@pytest.mark.parametrize("kernel", [1, 3, 5, (1, 7), (7, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rows", [6, 7])
def test_convolutions_keep_or_halve_the_grid_rounded_up(kernel: Any, stride: int, rows: int) -> None:
    unit = ConvNormActivation(2, 3, kernel, stride)
    assert unit(numbers(1, 2, rows, 9).repeat(2, 1, 1, 1)).shape == (2, 3, -(-rows // stride), -(-9 // stride))
    assert unit.conv.bias is None and ConvNormActivation(2, 3, norm="none").conv.bias is not None


def test_convolution_norm_activation_in_this_order() -> None:
    unit, x = stirred(ConvNormActivation(2, 3)), numbers(1, 2, 4, 4)
    expected = normed(unit.norm, F.conv2d(x, unit.conv.weight, padding=1)).clamp(min=0)
    torch.testing.assert_close(unit(x), expected, rtol=0, atol=1e-13)  # sums of 18 products around one


def test_pooling() -> None:
    x = torch.arange(10.0).view(1, 1, 2, 5)
    assert pooling("max")(x).flatten().tolist() == [6, 8]
    assert pooling("max", odd=True)(x).flatten().tolist() == [6, 8, 9]
    assert pooling("average")(x).flatten().tolist() == [3, 5]
    assert pooling("average", odd=True)(x).flatten().tolist() == [3, 5, 6.5]
    ones = pooling("average", 3, 1, 1)(torch.ones(1, 1, 4, 4))
    assert ones.eq(1).all()  # zeros outside do not count
    assert GlobalPool("max")(x).tolist() == [[9]] and GlobalPool()(x).tolist() == [[4.5]]
    assert adaptive_pooling("max", 1, 2)(x).flatten().tolist() == [7, 9]
    assert adaptive_pooling("average", 1, 1)(x).item() == 4.5


def test_squeeze_and_excitation_in_closed_form() -> None:
    block, x = SqueezeExcite(6, units=2), numbers(3, 6, 4, 5)
    for sample in range(3):
        means = [float(x[sample, c].sum()) / 20 for c in range(6)]
        (w1, b1), (w2, b2) = ((layer.weight.tolist(), layer.bias.tolist()) for layer in (block.squeeze, block.excite))
        hidden = [max(0.0, b1[u] + sum(w * m for w, m in zip(w1[u], means, strict=True))) for u in range(2)]
        for c in range(6):
            gate = 1 / (1 + math.exp(-b2[c] - sum(w * h for w, h in zip(w2[c], hidden, strict=True))))
            # A mean of twenty numbers and a sum of eight products.
            torch.testing.assert_close(block(x)[sample, c], gate * x[sample, c], rtol=0, atol=1e-14)
    assert [SqueezeExcite(c).squeeze.out_features for c in (16, 64, 256)] == [4, 4, 16]


def test_stochastic_depth_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, n, p = StochasticDepth(0.3), 20_000, 0.3
    y = drop(torch.ones(n, 2, 3))
    kept = y[:, 0, 0] > 0
    torch.testing.assert_close(y, torch.where(kept[:, None, None], 1 / (1 - p), 0.0).expand(n, 2, 3))
    # The mean of n draws has the standard error sqrt(p / (1 - p) / n) = 0.0046; five of them.
    assert abs(float(y.mean()) - 1) < 5 * math.sqrt(p / (1 - p) / n)
    x = numbers(4, 2)
    assert drop.eval()(x) is x and StochasticDepth()(x) is x
    with pytest.raises(ValueError, match=r"p: got 1.0, expected a probability >= 0 and < 1"):
        StochasticDepth(1.0)


def test_stochastic_depth_grows_linearly() -> None:
    net = ResNet(size="cifar-14", stochastic_depth=0.6).make(image_facts(1, 8, 8, 3), 3)
    drops = [m.p for m in net.modules() if isinstance(m, StochasticDepth)]
    assert drops == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], rel=1e-12)  # rounding of one division
    assert set_stochastic_depth(net, 0.0) == 6
    assert {m.p for m in net.modules() if isinstance(m, StochasticDepth)} == {0.0}


@pytest.mark.parametrize("residual", [True, False])
def test_residual_block_is_norm_after_convolution(residual: bool) -> None:
    block = stirred(ResidualBlock(3, 4, 2, BlockStyle(residual=residual)))
    x = numbers(1, 3, 5, 5)
    one, two = block.branch
    y = normed(one.norm, F.conv2d(x, one.conv.weight, stride=2, padding=1)).clamp(min=0)
    y = normed(two.norm, F.conv2d(y, two.conv.weight, padding=1))
    if residual:
        y = y + normed(block.shortcut.norm, F.conv2d(x, block.shortcut.conv.weight, stride=2))
    # Sums of 36 products of numbers up to ten.
    torch.testing.assert_close(block(x), y.clamp(min=0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("residual", [True, False])
def test_preactivation_block_is_norm_before_convolution(residual: bool) -> None:
    block = stirred(PreActivationBlock(3, 2, 2, BlockStyle(bottleneck=True, preactivation=True, residual=residual)))
    x = numbers(1, 3, 5, 5) - 5  # far below zero: a shortcut of the raw input would show
    one, norm_1, _, two, norm_2, _, three = block.branch
    h = normed(block.norm, x).clamp(min=0)
    y = normed(norm_1, F.conv2d(h, one.weight)).clamp(min=0)
    y = normed(norm_2, F.conv2d(y, two.weight, stride=2, padding=1)).clamp(min=0)
    y = F.conv2d(y, three.weight)
    if residual:
        y = y + F.conv2d(h, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), y, rtol=1e-13, atol=1e-13)  # sums of 18 products of numbers up to ten


def test_preactivation_without_a_change_of_shape_adds_the_raw_input() -> None:
    block = PreActivationBlock(4, 4, 1, BlockStyle(preactivation=True))
    nn.init.zeros_(block.branch[-1].weight)
    x = numbers(2, 4, 5, 5)
    assert block.eval()(x).equal(x)


def test_the_stride_of_a_bottleneck() -> None:
    for first, strides in ((True, [2, 1, 1]), (False, [1, 2, 1])):
        block = ResidualBlock(8, 2, 2, BlockStyle(bottleneck=True, stride_first=first))
        assert [unit.conv.stride[0] for unit in block.branch] == strides


def test_padded_shortcut() -> None:
    x = numbers(2, 3, 5, 4)
    y = PaddedShortcut(3, 5, 2)(x)
    assert y.shape == (2, 5, 3, 2) and not y[:, 3:].any()
    for b, c, i, j in [(0, 0, 0, 0), (1, 2, 2, 1), (1, 1, 1, 1)]:
        assert y[b, c, i, j] == x[b, c, 2 * i, 2 * j]
    with pytest.raises(ValueError, match=r"outputs: got 2, expected at least the 3 channels"):
        PaddedShortcut(3, 2, 1)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_dense_layers_add_to_what_came_in(bottleneck: bool) -> None:
    layer, x = stirred(DenseLayer(3, 2, bottleneck=bottleneck)), numbers(2, 3, 5, 5)
    y = layer(x)
    assert y[:, :3].equal(x)
    parts = list(layer.branch)
    h = F.conv2d(normed(parts[0], x).clamp(min=0), parts[2].weight, padding=parts[2].padding)
    if bottleneck:
        h = F.conv2d(normed(parts[3], h).clamp(min=0), parts[5].weight, padding=1)
    torch.testing.assert_close(y[:, 3:], h, rtol=1e-13, atol=1e-13)  # sums of up to 72 products of numbers up to ten
    whole = dense_block(3, 2, 4, bottleneck=bottleneck).eval()
    assert whole(x)[:, :3].equal(x) and whole(x).shape == (2, 11, 5, 5)
    assert transition(3, 2).eval()(x).shape == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("make", "widths", "outputs", "grid"),
    [
        (modules.inception_a, (4, 2, 3, 2, 5, 6), 4 + 3 + 5 + 6, (9, 8)),
        (modules.inception_b, (4, 2, 3), 4 + 3 + 7, (4, 3)),
        (modules.inception_c, (2, 3), 4 * 3, (9, 8)),
        (modules.inception_d, (2, 3, 4), 3 + 4 + 7, (4, 3)),
        (modules.inception_e, (2, 3, 4, 5), 2 + 2 * 3 + 2 * 3 + 5, (9, 8)),
    ],
)
def test_inception_modules_give_what_they_say(make: Any, widths: Any, outputs: int, grid: tuple[int, int]) -> None:
    module = make(7, widths).eval()
    x = numbers(2, 7, 9, 8)
    assert module(x).shape == (2, outputs, *grid) and module.outputs(7) == outputs
    assert module(x).equal(torch.cat([branch(x) for branch in module], 1))


@pytest.mark.parametrize("kernel", [3, 5])
def test_first_inception_module_sees_as_far_as_its_kernel(kernel: int) -> None:
    widths = modules.Widths(2, 3, 4, 2, 3, 5)
    module = modules.inception_v1(6, widths, kernel=kernel).eval()
    x = numbers(1, 6, 11, 11).requires_grad_()
    y = module(x)
    assert y.shape == (1, widths.outputs, 11, 11) and module.outputs(6) == widths.outputs == 2 + 4 + 3 + 5
    (g,) = torch.autograd.grad(y[0, 6:9, 5, 5].square().sum(), x)  # the branch of the largest kernel
    rows = g.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    assert rows == list(range(5 - kernel // 2, 5 + kernel // 2 + 1))


# -- nets ---------------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[Net, tuple[int, int, int]]] = {
    "cnn, two convolutions, average": (CNN(depth=2, width=4, convolutions=2, pool="average"), (3, 9, 7)),
    "cnn, layer norm": (CNN(depth=2, width=4, norm="layer", activation="gelu"), (1, 8, 8)),
    "resnet": (ResNet(width=4), (3, 9, 7)),
    "resnet, preactivation": (ResNet(width=4, preactivation=True), (1, 8, 8)),
    "resnet, plain": (ResNet(width=4, residual=False), (1, 8, 8)),
    "resnet, plain, preactivation": (ResNet(width=4, residual=False, preactivation=True, norm="rms"), (1, 8, 8)),
    "resnet, bottleneck": (ResNet(size="resnet-50", blocks=(1, 2), width=4, norm="group"), (2, 8, 5)),
    "resnet, everything": (
        ResNet(
            width=4, bottleneck=True, preactivation=True, squeeze_excite=4, activation="prelu", shortcut="projection"
        ),
        (1, 7, 7),
    ),
    "resnet, no norm, large stem": (ResNet(width=4, norm="none", stem="imagenet"), (3, 33, 35)),
    "densenet": (DenseNet(width=3), (3, 9, 7)),
    "densenet, plain": (DenseNet(width=3, blocks=(1, 2), bottleneck=False, compression=1.0, norm="layer"), (1, 4, 5)),
    "densenet, large stem": (DenseNet(width=3, depth=3, stem="imagenet", norm="none"), (1, 33, 35)),
    "inception": (Inception(width=4), (3, 9, 7)),
    "inception, 5x5, group norm": (Inception(width=16, kernel=5, norm="group"), (1, 8, 8)),
    "inception, large stem": (Inception(width=4, depth=4, stem="imagenet"), (1, 33, 47)),
    "inception v3": (Inception(size="v3", width=3, depth=3), (1, 75, 79)),
}
each_net = pytest.mark.parametrize("name", CASES)


def made(name: str) -> tuple[nn.Module, Callable[[int], Tensor]]:
    option, shape = CASES[name]
    torch.manual_seed(0)
    return option.make(image_facts(*shape, 5), 5), lambda b: numbers(b, *shape)


@each_net
@pytest.mark.parametrize("b", [1, 3])
def test_shapes(name: str, b: int) -> None:
    model, draw = made(name)
    out = model.eval()(draw(b))
    assert out.shape == (b, 5) and out.isfinite().all()


@each_net
def test_a_sample_does_not_see_the_others(name: str) -> None:
    model, draw = made(name)
    model.eval()
    x = draw(4)
    whole = model(x).detach()
    # Other batch sizes may sum products in another order; relative to the scores.
    torch.testing.assert_close(
        torch.cat([model(row) for row in x.split(1)]).detach(), whole, rtol=0, atol=1e-12 * float(whole.abs().max())
    )


@each_net
def test_every_parameter_gets_a_gradient_and_a_small_step_lowers_the_loss(name: str) -> None:
    model, draw = made(name)
    x, classes = draw(6), torch.arange(6) % 5
    before = F.cross_entropy(model(x), classes)
    before.backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    slope = sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None)
    step = 1e-6 / slope**0.5  # a step of 1e-6 in weight space stays where the loss is linear
    torch.optim.SGD(model.parameters(), lr=step).step()
    gain = float((before - F.cross_entropy(model(x), classes)).detach())
    assert gain == pytest.approx(step * slope, rel=0.05)  # curvature and kinks of ReLU over that step


@each_net
def test_export_copy_file_and_fake_tensors(name: str, tmp_path: Path) -> None:
    model, draw = made(name)
    model = stirred(model)
    expected = model(draw(2))
    program = torch.export.export(model, (draw(2),), strict=False)
    # The same kernels; decompositions of norms may add in another order.
    torch.testing.assert_close(program.module()(draw(2)), expected, rtol=1e-11, atol=1e-11)
    assert copy.deepcopy(model)(draw(2)).equal(expected)
    checkpoint.save_weights(tmp_path / "w.safetensors", model)
    other, _ = made(name)
    checkpoint.load_weights(tmp_path / "w.safetensors", other)
    assert other.eval()(draw(2)).equal(expected)
    with FakeTensorMode() as mode:
        fake, _ = made(name)
        assert fake(mode.from_tensor(draw(2))).shape == (2, 5)


def test_convolutions_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    net = ResNet(size="cifar-20").make(image_facts(3, 32, 32, 10), 10)
    for name, p in net.named_parameters():
        if p.ndim == 4:
            std = math.sqrt(2 / (p.shape[0] * p.shape[2] * p.shape[3]))
            # The standard error of a deviation is std / sqrt(2 n); five of them.
            assert float(p.detach().std()) == pytest.approx(std, rel=5 / math.sqrt(2 * p.numel())), name


def test_a_plain_net_has_the_layers_of_the_residual_one() -> None:
    facts = image_facts(3, 32, 32, 10)
    residual, plain = (ResNet(size="cifar-56", residual=r).make(facts, 10) for r in (True, False))
    assert count(residual) == count(plain)  # zeros put in have no parameters
    x = numbers(2, 3, 32, 32)
    assert not residual.eval()(x).equal(plain.eval()(x))


def test_auto_looks_at_the_images() -> None:
    for option in (ResNet(), DenseNet(), Inception()):
        for pixels, stem in ((63, "small"), (64, "imagenet")):
            figures = {figure.name: figure for figure in option.derived(image_facts(3, pixels, 80, 10))}
            assert figures["stem"].value == stem
            assert f"{pixels} x 80 pixels" in figures["stem"].reason
    assert "stem" not in {figure.name for figure in ResNet(stem="small").derived(image_facts(3, 80, 80, 10))}


def test_derived_numbers_have_reasons() -> None:
    facts = image_facts(3, 32, 32, 10)
    figures = {figure.name: figure for figure in ResNet(size="cifar-20").derived(facts)}
    assert figures["blocks"].value == "3, 3, 3" and figures["widths"].value == "16, 32, 64"
    assert figures["layers"].value == 20
    assert {f.name: f.value for f in ResNet(size="resnet-101").derived(facts)}["layers"] == 101
    assert {f.name: f.value for f in DenseNet().derived(facts)}["growth"] == 12
    assert {f.name: f.value for f in Inception().derived(facts)}["modules"] == "1, 1, 1"
    assert {f.name: f.value for f in CNN().derived(facts)} == {"widths": "32, 64, 128"}
    assert CNN(widths=(3,)).derived(facts) == ()
    for option in OPTIONS:
        assert all(figure.reason for figure in option().derived(facts))


@pytest.mark.parametrize(
    ("option", "pixels", "message"),
    [
        (lambda: ResNet(), 3, r"blocks: 3 x 20 pixels cannot be halved 2 times; .* 4 x 4 are needed; use fewer stages"),
        (lambda: ResNet(stem="imagenet"), 15, r"stem: 15 x 20 pixels cannot be halved 4 times; .*; use stem=auto"),
        (lambda: DenseNet(), 3, r"blocks: 3 x 20 pixels cannot be halved 2 times; .*; use fewer blocks"),
        (lambda: Inception(size="v3"), 74, r"size: v3 needs images of 75 x 75 .* these have 74 x 20; use size=small"),
        (lambda: Inception(), 3, r"stem: 3 x 20 pixels cannot be halved 2 times"),
        (lambda: CNN(), 7, r"depth: 3 stages halve 7 x 20 pixels to nothing; use at most 2 stages"),
    ],
)
def test_images_that_are_too_small_are_refused(option: Callable[[], Net], pixels: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        option().make(image_facts(1, pixels, 20, 2), 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet(blocks=()), r"blocks: needs at least one stage"),
        (lambda: ResNet(depth=2), r"depth: got 2 for 3 stages, expected at least one block a stage; use 3 or more"),
        (lambda: ResNet(residual=False, stochastic_depth=0.1), r"stochastic_depth: a plain net has no branch"),
        (lambda: ResNet(stochastic_depth=1.0), r"stochastic_depth: got 1.0"),
        (lambda: DenseNet(blocks=()), r"blocks: needs at least one block"),
        (lambda: DenseNet(compression=0.0), r"compression: got 0.0"),
        (lambda: Inception(size="v3", kernel=5), r"kernel: got 5, but v3 has its own; remove it, or change size"),
        (lambda: Inception(size="v3", stem="small"), r"stem: got 'small', but v3 has its own"),
        (lambda: CNN(widths=(4,), depth=2), r"depth: 'widths' says it already: \[4\]; give one of them"),
        (lambda: CNN(widths=(4,), size="tiny"), r"size: 'widths' says it already"),
    ],
)
def test_errors_say_what_to_do(make: Callable[[], Net], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_contracts_that_batch_norm_and_stochastic_depth_break() -> None:
    for option in OPTIONS:
        assert set(option().exceptions) == {"accumulation", "two processes"}
        assert option(norm="group").exceptions == {}
    drawn = ResNet(norm="group", stochastic_depth=0.1).exceptions
    assert "draws which branches" in drawn["accumulation"]
