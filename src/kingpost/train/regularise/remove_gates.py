"""From a net with closed gates to a smaller one that computes the same.

Legend of shapes: ``C`` channels of a chain, ``K`` of them that stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kingpost.errors import RunError
from kingpost.summary import summary
from kingpost.train.regularise.chains import Chain, chains
from kingpost.train.regularise.l0 import GATED, gated_layers

PLAIN = {gated: layer for layer, gated in GATED.items()}


@dataclass(frozen=True)
class Smaller:
    """A net without the channels whose gates are closed.

    Args:
        model: plain layers, in eval mode.
        kept: of each layer that had gates, how many channels it reads now, and how many it read before.
        left: layers that never had gates, each with the reason.
        parameters: before (without the gates) and after.
        flops: of matrix products in one forward pass of the given inputs, before and after.
        largest_difference: between the outputs of the two nets on the given inputs.
    """

    model: nn.Module
    kept: Mapping[str, tuple[int, int]]
    left: Mapping[str, str]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    largest_difference: float

    def __str__(self) -> str:
        lines = [
            f"{word:<12} {before:>14,} -> {after:>14,}   {after / max(1, before):.1%}"
            for word, (before, after) in (("parameters", self.parameters), ("FLOPs", self.flops))
        ]
        lines += [f"  {name}: reads {kept} of {of} channels" for name, (kept, of) in self.kept.items()]
        lines += [f"  {name}: as it was; {reason}" for name, reason in self.left.items()]
        return "\n".join([*lines, f"largest difference of outputs: {self.largest_difference:.3g}"])


@torch.no_grad()
def remove_gates(model: nn.Module, *inputs: Tensor) -> Smaller:
    """A copy of the model without gates, and without the channels that they close.

    Open gates are multiplied into the weights, so outputs in eval mode are the same up to rounding; this is measured
    on the inputs. A layer keeps at least one channel. ``model`` itself is left as it is.

    Args:
        model: trained with ``l0``.
        inputs: what it is called with, a few samples.

    Raises:
        RunError: the model has no gates, or the outputs differ by more than rounding.

    >>> from kingpost.train.regularise.l0 import add_gates
    >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(3, 4)
    >>> _ = add_gates(net, x)
    >>> net[2].gate.weight.data[2:] = -1.0  # as if training had closed six of the eight gates
    >>> smaller = remove_gates(net, x)
    >>> smaller.parameters, smaller.kept
    ((58, 16), {'2': (2, 8)})
    """
    if not gated_layers(model):
        raise RunError("the model has no gates; train it with the technique 'l0'")
    gates = sum(layer.gate.weight.numel() for layer in gated_layers(model))
    made = copy.deepcopy(model)
    kept = {}
    for layer in gated_layers(made):
        chain: Chain = layer.chain
        stay = _open(layer)
        kept[chain.reader] = (len(stay), chain.channels)
        layer.weight.copy_(_eval_weight(layer))
        layer.__class__ = PLAIN[type(layer)]
        del layer.gate, layer.chain
        _shrink(made, chain, stay)
    with _judged(model), _judged(made):
        before, after = summary(model, *inputs), summary(made, *inputs)
        difference, size = _difference(model(*inputs), made(*inputs))
    made.eval()
    if not difference <= 1e4 * torch.finfo(next(made.parameters()).dtype).eps * max(1.0, size):
        raise RunError(f"the smaller net gives other outputs: they differ by up to {difference:.3g}; please report it")
    left = chains(made, *inputs)[1]
    parameters = (before.parameters - gates, after.parameters)
    return Smaller(made, kept, left, parameters, (before.flops, after.flops), difference)


def _open(layer: Any) -> Tensor:
    """Indices of the channels that stay, ``(K,)``: those with an open gate, at least one."""
    training, layer.gate.training = layer.gate.training, False
    gates: Tensor = layer.gate()
    layer.gate.training = training
    stay = gates.nonzero().flatten()
    return stay if len(stay) else gates.new_zeros(1, dtype=torch.int64)


def _eval_weight(layer: Any) -> Tensor:
    layer.gate.training = False
    weight: Tensor = layer.used()
    return weight


def _shrink(model: nn.Module, chain: Chain, stay: Tensor) -> None:
    """Cut all but these channels out of a chain, in place."""
    reader: Any = model.get_submodule(chain.reader)
    columns = (stay[:, None] * chain.each + torch.arange(chain.each, device=stay.device)).flatten()
    _cut(reader, "weight", columns, axis=1)
    setattr(reader, "in_features" if isinstance(reader, nn.Linear) else "in_channels", len(columns))
    for name in chain.writers:
        writer: Any = model.get_submodule(name)
        _cut(writer, "weight", stay)
        _cut(writer, "bias", stay)
        setattr(writer, "out_features" if isinstance(writer, nn.Linear) else "out_channels", len(stay))
    for name in chain.norms:
        norm: Any = model.get_submodule(name)
        for part in ("weight", "bias", "running_mean", "running_var"):
            _cut(norm, part, stay)
        norm.num_features = len(stay)


def _cut(module: nn.Module, name: str, stay: Tensor, axis: int = 0) -> None:
    if (parameter := module._parameters.get(name)) is not None:
        module._parameters[name] = nn.Parameter(parameter.index_select(axis, stay), parameter.requires_grad)
    elif (buffer := module._buffers.get(name)) is not None:
        module._buffers[name] = buffer.index_select(axis, stay)


def _difference(a: Any, b: Any) -> tuple[float, float]:
    pairs = zip(a, b, strict=True) if isinstance(a, tuple | list) else [(a, b)]
    both = [(float((x - y).abs().max()), float(x.abs().max())) for x, y in pairs]
    return max(d for d, _ in both), max(size for _, size in both)


@contextmanager
def _judged(model: nn.Module) -> Iterator[None]:
    """In eval mode inside, and in the mode it had afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
