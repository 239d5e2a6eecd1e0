"""The weights of a model: where they are, and which matrices they are made of.

Legend of shapes: ``G`` matrices that are stacked in one parameter (gates, groups, or query, key and value), ``O``
outputs, ``I`` inputs, ``...`` a kernel.

Each parameter draws from a generator of its own, seeded by (seed, its name), so that two models agree in every
parameter whose name and shape they share.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from kingpost import seeds
from kingpost.assembly import Assembly, Slot, Started
from kingpost.build.initialise.follow import UNKNOWN, Follow, follow
from kingpost.build.initialise.gains import gain_of
from kingpost.option import checked
from kingpost.technique import Technique

Fill = Callable[[Tensor, torch.Generator], object]
Gain = Annotated[float, Gt(0)] | Literal["auto"]

_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?")


@dataclass(frozen=True)
class Weight:
    """One parameter that multiplies its input.

    Args:
        name: in the model.
        matrices: a view of it, ``(G, O, I, ...)``, through which it is set.
        bias: name of the bias that is added, if there is one.
        recurrent: it multiplies the net's own last state.
        gates: it makes the gates of a recurrent layer.
        transposed: the parameter itself has its inputs first.
    """

    name: str
    matrices: Tensor
    bias: str | None = None
    recurrent: bool = False
    gates: bool = False
    transposed: bool = False

    @property
    def fan_in(self) -> int:
        """Inputs that are summed into one output."""
        return math.prod(self.matrices.shape[2:])

    @property
    def fan_out(self) -> int:
        """Outputs that one input reaches."""
        return self.matrices.shape[1] * math.prod(self.matrices.shape[3:])

    @property
    def flat(self) -> tuple[int, int, int]:
        """``(G, O, I x kernel)``."""
        g, o = self.matrices.shape[:2]
        return g, o, self.fan_in


@dataclass
class Found:
    """All weights of a model, what belongs to them, and what cannot be set."""

    weights: list[Weight] = field(default_factory=list)
    biases: dict[str, Tensor] = field(default_factory=dict)
    forget: dict[str, Tensor] = field(default_factory=dict)  # the part of an input bias that opens a forget gate
    left: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, Weight]:
        """The weights by name."""
        return {weight.name: weight for weight in self.weights}


def find_weights(model: nn.Module) -> Found:
    """The weights of linear, convolution, attention and recurrent layers, each once; embeddings are none.

    A head that is tied to an embedding is an embedding.

    >>> found = find_weights(nn.LSTM(3, 5))
    >>> [(w.name, tuple(w.matrices.shape)) for w in found.weights]
    [('weight_ih_l0', (4, 5, 3)), ('weight_hh_l0', (4, 5, 5))]
    """
    found = Found()
    seen = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, p in module.named_parameters(path, recurse=False):
            if isinstance(p, UninitializedParameter):
                found.left[name] = "has no shape before the first batch: call the model once before it is passed"
        if torch.nn.utils.parametrize.is_parametrized(module):
            for name, _ in module.parametrizations.named_parameters(f"{prefix}parametrizations"):
                found.left[name] = "parametrised: the weight itself is computed from it"
        for weight, p in _of_module(prefix, module):
            if id(p) not in seen and weight.name not in found.left:
                seen.add(id(p))
                found.weights.append(weight)
                if weight.bias is not None:
                    found.biases[weight.bias] = module.get_parameter(weight.bias.removeprefix(prefix)).detach()
        _recurrent_biases(prefix, module, found)
    return found


def _of_module(prefix: str, module: nn.Module) -> Iterator[tuple[Weight, nn.Parameter]]:
    own = {name: p for name, p in module._parameters.items() if p is not None}
    own = {name: p for name, p in own.items() if not isinstance(p, UninitializedParameter)}
    bias = f"{prefix}bias" if "bias" in own else None
    if isinstance(module, nn.Linear) and "weight" in own:
        yield Weight(f"{prefix}weight", own["weight"].detach()[None], bias), own["weight"]
    elif isinstance(module, _ConvNd) and "weight" in own:
        grouped = _stacked(own["weight"], module.groups)
        if turned := isinstance(module, _ConvTransposeNd):
            grouped = grouped.transpose(1, 2)
        yield Weight(f"{prefix}weight", grouped, bias, transposed=turned), own["weight"]
    elif isinstance(module, nn.MultiheadAttention):
        bias = f"{prefix}in_proj_bias" if "in_proj_bias" in own else None
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if name in own:
                stacked = _stacked(own[name], 3 if name == "in_proj_weight" else 1)
                yield Weight(prefix + name, stacked, bias), own[name]
    else:
        gates = _gates(own)
        for name, p in own.items():
            if p.ndim == 2 and _RECURRENT.fullmatch(name):
                stacked = _stacked(p, 1 if "_hr" in name else gates)
                yield Weight(prefix + name, stacked, recurrent="_hh" in name, gates="_hr" not in name), p


def _stacked(p: nn.Parameter, count: int) -> Tensor:
    """A view of a parameter as ``count`` matrices, ``(G, rows, ...)``."""
    return p.detach().view(count, p.shape[0] // count, *p.shape[1:])


def _gates(own: Mapping[str, nn.Parameter]) -> int:
    """Gates that are stacked in a recurrent weight: with a projection (``_hr``) it is an LSTM, which has four."""
    if any("weight_hr" in name for name in own):
        return 4
    square = next((p for name, p in own.items() if name.startswith("weight_hh") and p.ndim == 2), None)
    return 1 if square is None else square.shape[0] // square.shape[1]


def _recurrent_biases(prefix: str, module: nn.Module, found: Found) -> None:
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if not any(_RECURRENT.fullmatch(name) for name in own):
        return
    for name, p in own.items():
        if re.match(r"bias_(ih|hh)", name):
            found.biases[prefix + name] = p.detach()
            if _gates(own) == 4 and name.startswith("bias_ih"):  # input, forget, cell, output; the two biases add up
                found.forget[prefix + name] = p.detach().chunk(4)[1]


def set_weights(
    model: nn.Module,
    seed: int,
    values: Callable[[Weight, torch.Generator], tuple[Tensor, str]],
    forget_bias: float = 0.0,
) -> Started:
    """Set every weight of a model in place, and its biases to zero.

    Args:
        model: whose weights.
        seed: of all generators.
        values: from a weight and its generator, new values ``(G, O, I, ...)`` and how they came about.
        forget_bias: of the forget gates of LSTMs.
    """
    found = find_weights(model)
    done: dict[str, str] = {}
    with torch.no_grad():
        for weight in found.weights:
            draw = seeds.generator(seed, "initialise", weight.name, device=weight.matrices.device)
            new, done[weight.name] = values(weight, draw)
            weight.matrices.copy_(new)
        for name, bias in found.biases.items():
            bias.zero_()
            done[name] = "zero"
        for name, part in found.forget.items():
            if forget_bias:
                part.fill_(forget_bias)
                done[name] = f"zero, {forget_bias:g} for the forget gate"
    return Started(done, found.left)


def initialise_weights(model: nn.Module, fill: Fill, seed: int, how: str = "set") -> Started:
    """Fill the weights of linear, convolution, attention and recurrent layers in place, and set their biases to zero.

    Embeddings, norms and others stay as they are. What is stacked in one parameter (the gates of an LSTM, the groups
    of a convolution) is filled matrix by matrix.

    Args:
        model: whose weights.
        fill: sets one matrix or kernel ``(O, I, ...)`` from a generator.
        seed: of all generators.
        how: what is said of each weight.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> initialise_weights(model, lambda w, g: nn.init.ones_(w), seed=0, how="ones").done
    {'0.weight': 'ones', '0.bias': 'zero'}
    """

    def values(weight: Weight, draw: torch.Generator) -> tuple[Tensor, str]:
        new = torch.empty_like(weight.matrices, memory_format=torch.contiguous_format)
        for matrix in new:
            fill(matrix, draw)
        return new, how

    return set_weights(model, seed, values)


def normal(weight: Weight, draw: torch.Generator, std: float) -> Tensor:
    """``(G, O, I, ...)`` from N(0, std^2)."""
    return torch.empty_like(weight.matrices, memory_format=torch.contiguous_format).normal_(0, std, generator=draw)


def uniform(weight: Weight, draw: torch.Generator, std: float) -> Tensor:
    """``(G, O, I, ...)`` from the uniform distribution of this standard deviation."""
    bound = math.sqrt(3) * std
    new = torch.empty_like(weight.matrices, memory_format=torch.contiguous_format)
    return new.uniform_(-bound, bound, generator=draw)


@checked
class WeightFill(Technique):
    """Base of the initialisers that set each weight on its own; a subclass says which values."""

    # Described as pydantic wants it: a docstring below a field is not handed on to subclasses.
    forget_bias: float = Field(
        default=0.0,
        description="Bias of the forget gates of LSTMs; 1 lets them remember from the start (Jozefowicz et al. 2015).",
    )

    touches: ClassVar[frozenset[Slot]] = frozenset({"initialise"})

    @abstractmethod
    def values(self, weight: Weight, draw: torch.Generator, gain: float, because: str) -> tuple[Tensor, str]:
        """New values ``(G, O, I, ...)`` of one weight, and how they came about.

        Args:
            weight: which is set.
            draw: its generator.
            gain: as given, or that of the activation that follows.
            because: what follows, where the gain hangs on it; else ''.
        """

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""

        def initialise(model: nn.Module, seed: int) -> Started:
            asked = getattr(self, "gain", 1.0)
            follows = follow(model, assembly.setting.first_batch(), seed).follows if asked == "auto" else {}

            def values(weight: Weight, draw: torch.Generator) -> tuple[Tensor, str]:
                if asked != "auto":
                    return self.values(weight, draw, asked, "")
                next_one = Follow("gates") if weight.gates else follows.get(weight.name, UNKNOWN)
                return self.values(weight, draw, gain_of(next_one), f": {next_one}")

            return set_weights(model, seed, values, self.forget_bias)

        return assembly.with_(initialise=initialise)
