"""Which channels of a net can be removed as a whole: layers that alone read what others alone write.

Legend of shapes: ``C`` channels of a chain, ``N`` numbers that a layer reads for each of them.

A chain is a layer that reads, the layers that write what it reads, and the norms between. A channel can go if every
function between works on each channel by itself, and nobody else reads it. This is found by watching the model run
once and walking back from each layer. What is not understood stays, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
POINTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh", "tanh",
    "sigmoid", "softplus", "softsign", "hardsigmoid", "logsigmoid", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "feature_dropout", "clone", "contiguous", "to", "float", "double", "clamp", "square", "abs", "exp", "neg", "detach",
}  # fmt: skip
JOINING = {"add", "radd", "sub", "mul", "rmul", "truediv", "div"}
POOLING = {f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("max", "avg", "adaptive_avg", "adaptive_max")}
OVER_AXES = {"mean", "sum", "amax"}
RESHAPING = {"flatten", "view", "reshape", "unflatten"}


@dataclass(frozen=True)
class Chain:
    """Channels that can be removed one by one.

    Args:
        reader: name of the layer that reads them.
        writers: names of the layers whose output units they are (several where outputs are multiplied or added).
        norms: names of the batch norms between.
        channels: ``C``.
        each: ``N``, consecutive inputs of the reader for each channel; more than 1 after a flattened grid.
    """

    reader: str
    writers: tuple[str, ...]
    norms: tuple[str, ...]
    channels: int
    each: int


class Blocked(Exception):  # noqa: N818
    """The walk back ended at something that is not understood; says at what."""


@dataclass
class _Event:
    name: str
    args: Any
    kwargs: Any
    made: list[int]  # numbers of the values that came out
    given: dict[int, int]  # id of each tensor that went in -> number of its value
    layer: str = ""


class _Watch(TorchFunctionMode):
    """Writes down every function that torch calls; a tensor that is changed in place is a new value."""

    def __init__(self, layers: Mapping[int, str]) -> None:
        super().__init__()
        self.layers = layers  # by id of the weight
        self.events: list[_Event] = []
        self.numbers: dict[int, int] = {}
        self.shapes: list[torch.Size] = []
        self.alive: list[Any] = []  # else an id could be used again

    def number(self, x: Tensor) -> int:
        """Of the tensor's present value."""
        if id(x) not in self.numbers:
            self._new(x)
        return self.numbers[id(x)]

    def _new(self, x: Tensor) -> int:
        self.alive.append(x)
        self.shapes.append(x.shape)
        self.numbers[id(x)] = len(self.shapes) - 1
        return len(self.shapes) - 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, and note what it did."""
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        given = {id(x): self.number(x) for x in tensors}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        made = [self._new(x) for x in tree_leaves(result) if isinstance(x, Tensor)]
        if name == "setitem":
            made = [self._new(args[0])]
        if made:
            layer = next((self.layers[key] for key in given if key in self.layers), "")
            self.alive.append((args, kwargs))
            self.events.append(_Event(name, args, kwargs, made, given, layer))
        return result


@dataclass
class _Found:
    writers: dict[str, int]  # with their number of outputs
    norms: list[str]
    inside: dict[int, int]  # events, each with the axis of channels of what it made


class _Back:
    """Walks back from what a layer reads."""

    def __init__(self, watch: _Watch, model: nn.Module, outputs: set[int]) -> None:
        self.watch, self.outputs, self.modules = watch, outputs, dict(model.named_modules())
        self.maker = {value: index for index, event in enumerate(watch.events) for value in event.made}
        self.readers: dict[int, set[int]] = {}
        for index, event in enumerate(watch.events):
            for value in event.given.values():
                self.readers.setdefault(value, set()).add(index)
        self.runs: dict[str, int] = {}
        for event in watch.events:
            if event.layer:
                self.runs[event.layer] = self.runs.get(event.layer, 0) + 1

    def chain(self, index: int) -> Chain:
        """The chain that the layer at this event reads."""
        event = self.watch.events[index]
        layer = self._layer(event, event.layer)
        inputs = layer.weight.shape[1]
        value = event.given[id(_argument(event, 0, "input"))]
        found = _Found({}, [], {})
        axis = len(self.watch.shapes[value]) - 1 if isinstance(layer, nn.Linear) else 1
        each = self._walk(value, axis, found)
        inside = {*found.inside, index}
        for at in found.inside:
            for made in self.watch.events[at].made:
                if made in self.outputs or not self.readers.get(made, set()) <= inside:
                    raise Blocked("what it reads is also read elsewhere")
        if len(set(found.writers.values())) != 1 or inputs != each * next(iter(found.writers.values())):
            raise Blocked("the layers that write what it reads have other numbers of units")
        norms = tuple(dict.fromkeys(found.norms))
        return Chain(event.layer, tuple(found.writers), norms, inputs // each, each)

    def _layer(self, event: _Event, name: str) -> Any:
        layer = self.modules[name]
        if self.runs[name] != 1:
            raise Blocked(f"'{name}' is used {self.runs[name]} times")
        if type(layer) not in LAYERS:
            raise Blocked(f"'{name}' is a {type(layer).__name__}")
        if getattr(layer, "groups", 1) != 1:
            raise Blocked(f"'{name}' has groups of channels")
        return layer

    def _walk(self, value: int, axis: int, found: _Found) -> int:
        """Collect writers and norms; returns how many numbers there are for a channel at this value."""
        index = self.maker.get(value)
        if index is None:
            raise Blocked("it reads the model's input or a weight")
        event = self.watch.events[index]
        if index in found.inside:  # reached a second time, by x * f(x)
            if found.inside[index] != axis:
                raise Blocked(f"what '{event.name}' made is read along two axes")
            return 1
        found.inside[index] = axis
        shape = self.watch.shapes[value]
        if event.layer and isinstance(self.modules[event.layer], _BatchNorm):
            if axis != 1 or event.name != "batch_norm":
                raise Blocked(f"'{event.layer}' norms another axis")
            if self.runs[event.layer] != 1:
                raise Blocked(f"'{event.layer}' is used {self.runs[event.layer]} times")
            found.norms.append(event.layer)
            return self._walk(self._given(event), axis, found)
        if event.layer:
            layer = self._layer(event, event.layer)
            if axis != (len(shape) - 1 if isinstance(layer, nn.Linear) else 1):
                raise Blocked(f"the units of '{event.layer}' are not what it reads")
            found.writers[event.layer] = layer.weight.shape[0]
            return 1
        if event.name in JOINING:
            return self._join(event, shape, axis, found)
        return self._through(event, shape, axis, found)

    def _join(self, event: _Event, shape: torch.Size, axis: int, found: _Found) -> int:
        tensors = [x for x in event.args if isinstance(x, Tensor)]
        if any(x.shape != shape for x in tensors):
            raise Blocked(f"'{event.name}' with something of another shape is between")
        return max(self._walk(event.given[id(x)], axis, found) for x in tensors)

    def _through(self, event: _Event, shape: torch.Size, axis: int, found: _Found) -> int:
        name, value = event.name, self._given(event)
        before = self.watch.shapes[value]
        tensors = len(event.given)
        if name in POINTWISE and before == shape and tensors == 1:
            return self._walk(value, axis, found)
        if name == "prelu" and self._prelu_is_shared(event):
            return self._walk(value, axis, found)
        if name in POOLING and axis == 1 and len(before) == len(shape):
            return self._walk(value, axis, found)
        if name == "pad" and before[axis] == shape[axis]:
            return self._walk(value, axis, found)
        if name in OVER_AXES and (axes := _axes(event, len(before))) is not None:
            kept = [a for a in range(len(before)) if a not in axes or len(shape) == len(before)]
            if kept[axis] not in axes:
                return self._walk(value, kept[axis], found)
        if name == "transpose":
            a, b = (int(n) % len(shape) for n in event.args[1:3])
            return self._walk(value, {a: b, b: a}.get(axis, axis), found)
        if name == "permute":
            order = event.args[1] if isinstance(event.args[1], tuple | list) else event.args[1:]
            return self._walk(value, int(order[axis]) % len(shape), found)
        if name in RESHAPING:
            start, inner = _same_numbers(before, shape, axis)
            return inner * self._walk(value, start, found)
        raise Blocked(f"'{name}' is between, which is not known to work on each channel by itself")

    def _given(self, event: _Event) -> int:
        return event.given[id(_argument(event, 0, "input"))]

    def _prelu_is_shared(self, event: _Event) -> bool:
        return bool(_argument(event, 1, "weight").numel() == 1)


def _argument(event: _Event, place: int, name: str) -> Any:
    found = event.args[place] if len(event.args) > place else event.kwargs.get(name)
    if not isinstance(found, Tensor):
        raise Blocked(f"'{event.name}' is between, and what it reads is not a tensor")
    return found


def _axes(event: _Event, ndim: int) -> set[int] | None:
    given = event.kwargs.get("dim", event.args[1] if len(event.args) > 1 else None)
    if given is None:
        return None
    return {int(axis) % ndim for axis in (given if isinstance(given, tuple | list) else (given,))}


def _same_numbers(before: torch.Size, after: torch.Size, axis: int) -> tuple[int, int]:
    """The axis of channels before a reshape, and how many numbers of each lie on ``axis`` after it."""
    outer, start = math.prod(after[:axis]), 0
    starts = [i for i in range(len(before)) if math.prod(before[:i]) == outer]
    if starts:
        start = starts[-1]
        for stop in range(start, len(before)):
            if math.prod(before[start : stop + 1]) == after[axis]:
                return start, math.prod(before[start + 1 : stop + 1])
    raise Blocked(f"a reshape of {tuple(before)} to {tuple(after)} is between")


def eagerly(model: nn.Module) -> AbstractContextManager[object]:
    """Inside, a compiled model runs as it was written; without one, torch's compiler is not even imported."""
    if any(module._compiled_call_impl is not None for module in model.modules()):
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


@torch.no_grad()
def chains(model: nn.Module, *inputs: Tensor) -> tuple[list[Chain], dict[str, str]]:
    """The chains of a model, in the order in which it runs; and the other layers, each with the reason.

    Args:
        model: is left as it was.
        inputs: what it is called with, in any precision; two samples are best, so that no axis is of length 1.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> found, left = chains(net, torch.zeros(2, 1, 4, 4))
    >>> found
    [Chain(reader='4', writers=('0',), norms=('1',), channels=4, each=4)]
    >>> left
    {'0': "it reads the model's input or a weight"}
    """
    names = {}
    for path, module in model.named_modules():
        if isinstance(module, (*LAYERS, _BatchNorm)):
            own = {**module._parameters, **module._buffers}  # a norm may have running statistics alone
            keys = [own[name] for name in ("weight", "running_mean") if own.get(name) is not None]
            names.update({id(key): path for key in keys[:1]})
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    inputs = tuple(x.to(precision) if x.is_floating_point() else x for x in inputs)
    watch, training = _Watch(names), model.training
    for x in inputs:
        watch.number(x)
    model.eval()
    try:
        with eagerly(model), watch:
            outputs = model(*inputs)
    finally:
        model.train(training)
    back = _Back(watch, model, {watch.number(x) for x in tree_leaves(outputs) if isinstance(x, Tensor)})
    found, left = [], {}
    for index, event in enumerate(watch.events):
        if event.layer and not isinstance(back.modules[event.layer], _BatchNorm):
            try:
                found.append(back.chain(index))
            except Blocked as blocked:
                left[event.layer] = str(blocked)
    for path, module in model.named_modules():
        if isinstance(module, LAYERS) and path not in left and all(chain.reader != path for chain in found):
            left[path] = "it was not run, or its weight is computed"
    return found, left
