"""Convolutional nets against Keras (its own channels-last layers on the torch backend) and timm."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from kingpost.build.blocks.residual import BlockStyle
from kingpost.build.nets.densenet import DenseNetNet
from kingpost.build.nets.inception import InceptionV3Net
from kingpost.build.nets.resnet import ResNetNet
from parity.case import Case, Errors, largest, relative

os.environ.setdefault("KERAS_BACKEND", "torch")  # before the first import of keras, wherever that is

CLASSES = 7
WHY = (
    "64 bits (unit roundoff 1e-16) through at most 200 layers, each of which sums up to ten thousand products in "
    "another order, with the losses of batch norm's divisions on top"
)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stir(module: nn.Module) -> None:
    """Weights, gains, shifts and running statistics that are nothing special; a sum of products keeps its scale."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.ndim > 1 else 25
            noise = torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator) * (2 / fan) ** 0.5
            special = tensor.ndim == 1 and name.endswith(("weight", "running_var"))  # around one, others around zero
            tensor.copy_(noise.mul(0.3).exp() if special else noise)


def in_64_bits(make: Callable[[], Errors]) -> Callable[[], Errors]:
    """What the reference and we make is made in 64 bits."""

    def run() -> Errors:
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return make()
        finally:
            torch.set_default_dtype(default)

    return run


def compared(
    ours: nn.Module,
    theirs: Callable[[Tensor], Tensor],
    pixels: int,
    weights: Sequence[tuple[Tensor, Any, Callable[[Tensor], Tensor]]],
) -> Errors:
    """Outputs, and gradients of a scalar of them for the input and for pairs of weights (ours, theirs, their form)."""
    x = draw(2, 3, pixels, pixels)
    direction = draw(2, CLASSES, seed=2)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, other = ours(a), theirs(b)
    (mine * direction).sum().backward()
    (other * direction).sum().backward()
    pairs = [(a.grad, b.grad)] + [(w.grad, form(v.grad)) for w, v, form in weights]
    return Errors(relative(mine.detach(), other.detach()), largest(pairs))


# timm: the same layers in the same order, so weights are copied one after the other.


def with_timm(name: str, make: Callable[[], nn.Module], pixels: int, train: bool) -> Callable[[], Errors]:
    @in_64_bits
    def compare() -> Errors:
        import timm

        ours = make()
        theirs = timm.create_model(name, pretrained=False, num_classes=CLASSES).double()
        stir(ours)
        if name == "inception_v3":  # timm pads averages with zeros that count; the authors' own code does not
            for part in ours.modules():
                if isinstance(part, nn.AvgPool2d):
                    part.count_include_pad = True
        mapped = _preactivation_order(theirs) if name.startswith("resnetv2") else list(theirs.state_dict().values())
        for mine, other in zip(ours.state_dict().values(), mapped, strict=True):
            other.copy_(mine.reshape(other.shape))  # 1x1 convolutions of squeeze-and-excitation are linear layers here
        ours.train(train)
        theirs.train(train)
        parameters, where = dict(ours.named_parameters()), {p.data_ptr(): p for p in theirs.parameters()}
        pairs = [
            (parameters[key], where[other.data_ptr()], lambda g, shape=parameters[key].shape: g.reshape(shape))
            for key, other in zip(ours.state_dict(), mapped, strict=True)
            if key in parameters
        ]
        return compared(ours, theirs, pixels, pairs)

    return compare


def _preactivation_order(theirs: nn.Module) -> list[Tensor]:
    """Its tensors in our order: norm, branch, shortcut, where it has the shortcut first."""

    def rank(key: str) -> tuple[float, ...]:
        found = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.(.*)", key)
        if not found:
            return (-1.0,) if key.startswith("stem") else (8.0,) if key.startswith("norm") else (9.0,)
        part = found[3]
        number = re.match(r"(norm|conv)(\d)", part)
        place = 9.0 if number is None else int(number[2]) + (0.5 if number[1] == "conv" else 0.0)
        return float(found[1]), float(found[2]), place

    state = theirs.state_dict()
    return [state[key] for key in sorted(state, key=rank)]


# Keras: channels last, biases before norms (zero here), and other epsilons.


def with_keras(name: str, make: Callable[[], nn.Module], pixels: int, train: bool = False) -> Callable[[], Errors]:
    @in_64_bits
    def compare() -> Errors:
        import keras

        assert keras.backend.backend() == "torch"
        before = keras.config.floatx(), keras.config.dtype_policy()
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        try:
            options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
            theirs = getattr(keras.applications, name)(**options, input_shape=(pixels, pixels, 3))
            ours = make()
            stir(ours)
            pairs = copy_to_keras(ours, theirs, ORDER[name])
            ours.train(train)
            for layer in theirs.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    for part in (p for p in ours.modules() if isinstance(p, nn.BatchNorm2d)):
                        part.eps = layer.epsilon  # 1.001e-5, or 1e-3 in Inception
                    break
            # Its batch norm and its mean go down to 32 bits whatever the policy says; here they are made to stay.
            ways = keras.src.backend, keras.src.backend.common.dtypes
            with mock.patch.object(ways[0], "result_type", wide), mock.patch.object(ways[1], "result_type", wide):
                return compared(ours, lambda x: theirs(x.permute(0, 2, 3, 1), training=train), pixels, pairs)
        finally:
            keras.config.set_floatx(before[0])
            keras.config.set_dtype_policy(before[1])

    return compare


def wide(*dtypes: object) -> str:
    """The common type of floating point numbers, without Keras's rule that 64 bits with 32 bits are 32 bits."""
    return "float64"


def copy_to_keras(
    ours: nn.Module, theirs: Any, order: Callable[[Any], list[tuple[Any, Any]]]
) -> list[tuple[Tensor, Any, Callable[[Tensor], Tensor]]]:
    """Copies weights; returns pairs for the comparison of gradients."""
    convolutions = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    heads = [m for m in ours.modules() if isinstance(m, nn.Linear)]
    pairs = []
    kernels, batch_norms, denses = order(theirs)
    for conv, layer in zip(convolutions, kernels, strict=True):
        layer.kernel.assign(conv.weight.detach().permute(2, 3, 1, 0))
        pairs.append((conv.weight, layer.kernel.value, lambda g: g.permute(3, 2, 0, 1)))
    for norm, layer in zip(norms, batch_norms, strict=True):
        if layer.scale:
            layer.gamma.assign(norm.weight.detach())
            pairs.append((norm.weight, layer.gamma.value, lambda g: g))
        else:
            nn.init.ones_(norm.weight)
        layer.beta.assign(norm.bias.detach())
        layer.moving_mean.assign(norm.running_mean)
        layer.moving_variance.assign(norm.running_var)
        pairs.append((norm.bias, layer.beta.value, lambda g: g))
    (head,), (dense,) = heads, denses
    dense.kernel.assign(head.weight.detach().T)
    dense.bias.assign(head.bias.detach())
    pairs += [(head.weight, dense.kernel.value, lambda g: g.T), (head.bias, dense.bias.value, lambda g: g)]
    return pairs


def _of_kind(theirs: Any, key: Callable[[str], Any]) -> list[list[Any]]:
    """Its convolutions, norms and linear layers, each in the order of a key of their names."""
    kinds = ("Conv2D", "BatchNormalization", "Dense")
    return [sorted((x for x in theirs.layers if type(x).__name__ == kind), key=lambda x: key(x.name)) for kind in kinds]


def _resnet_key(name: str) -> tuple[int, ...]:
    """``conv2_block1_0_conv`` is the shortcut (last with us), ``conv1_conv`` the stem, ``predictions`` the head."""
    found = re.match(r"conv(\d)_block(\d+)_(\d)", name)
    return (int(found[1]), int(found[2]), int(found[3]) or 9) if found else (0, 0, 0)


def _densenet_key(name: str) -> tuple[int, ...]:
    """``conv2_block1_1_conv`` in a layer, ``pool2_conv`` in a transition, ``conv1_conv`` and ``bn`` at the ends."""
    if found := re.match(r"conv(\d)_block(\d+)_(\d)", name):
        return int(found[1]), int(found[2]), int(found[3])
    if found := re.match(r"pool(\d)_", name):
        return int(found[1]), 99, 0
    return (9, 0, 0) if name == "bn" else (0, 0, 0)


def _made_key(name: str) -> int:
    """Layers without names of their own are numbered as they are made: ``conv2d``, ``conv2d_1``; the offset cancels."""
    number = name.rpartition("_")[2]
    return int(number) if number.isdigit() else 0


ORDER: dict[str, Any] = {
    "ResNet50": lambda theirs: _of_kind(theirs, _resnet_key),
    "DenseNet121": lambda theirs: _of_kind(theirs, _densenet_key),
    "InceptionV3": lambda theirs: _of_kind(theirs, _made_key),
}


def resnet(*blocks: int, **style: Any) -> Callable[[], nn.Module]:
    return lambda: ResNetNet(3, CLASSES, blocks, 64, "imagenet", BlockStyle(**style))


def densenet() -> nn.Module:
    return DenseNetNet(3, CLASSES, (6, 12, 24, 16), 32, "imagenet")


def inception() -> nn.Module:
    return InceptionV3Net(3, CLASSES, (3, 4, 2), 32)


def case(ours: str, reference: str, needs: str, compare: Callable[[], Errors], tolerance: float = 1e-11) -> Case:
    return Case(ours=ours, reference=reference, needs=needs, compare=compare, tolerance=tolerance, why=WHY)


fifty = {"bottleneck": True}
CASES = [
    case("resnet size=resnet-50, stride in the first convolution", "keras ResNet50", "keras",
         with_keras("ResNet50", resnet(3, 4, 6, 3, **fifty, stride_first=True), 64)),
    case("resnet size=resnet-50, stride in the first convolution, training", "keras ResNet50, training", "keras",
         with_keras("ResNet50", resnet(3, 4, 6, 3, **fifty, stride_first=True), 65, train=True)),
    case("densenet size=densenet-121", "keras DenseNet121", "keras", with_keras("DenseNet121", densenet, 64)),
    case("inception size=v3", "keras InceptionV3", "keras", with_keras("InceptionV3", inception, 96)),
    case("resnet size=resnet-18", "timm resnet18", "timm", with_timm("resnet18", resnet(2, 2, 2, 2), 64, False)),
    case("resnet size=resnet-34, training", "timm resnet34, training", "timm",
         with_timm("resnet34", resnet(3, 4, 6, 3), 65, True)),
    case("resnet size=resnet-50, training", "timm resnet50, training", "timm",
         with_timm("resnet50", resnet(3, 4, 6, 3, **fifty), 64, True)),
    case("resnet size=resnet-50 squeeze_excite=16", "timm seresnet50", "timm",
         with_timm("seresnet50", resnet(3, 4, 6, 3, **fifty, squeeze_excite=16), 64, False)),
    case("resnet size=resnet-50 preactivation=true", "timm resnetv2_50", "timm",
         with_timm("resnetv2_50", resnet(3, 4, 6, 3, **fifty, preactivation=True), 64, False)),
    case("densenet size=densenet-121, training", "timm densenet121, training", "timm",
         with_timm("densenet121", densenet, 64, True)),
    case("inception size=v3, zeros of the padding counted in averages", "timm inception_v3", "timm",
         with_timm("inception_v3", inception, 96, False)),
]  # fmt: skip
