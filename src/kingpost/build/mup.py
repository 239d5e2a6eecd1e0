"""Maximal-update parametrisation: the learning rate that is best for a narrow net is best for a wide one.

Which axes of a parameter are width is found by comparing its shape with that in a narrow net, the base. With ``r_in``
and ``r_out`` for how much longer the input and output axes are than in the base (1 where an axis is no width), and
sigma for the spread of the starting weights in the base net:

============================  ==============  ====================  ===========  ================  =======
parameter                     where width is  spread                Adam's rate  SGD's rate        output
============================  ==============  ====================  ===========  ================  =======
input weights, embeddings,
biases, gains                 outputs         sigma                 lr           lr r_out
hidden weights                both            sigma / sqrt(r_in)    lr / r_in    lr r_out / r_in
output weights                inputs          sigma                 lr           lr r_in           / r_in
============================  ==============  ====================  ===========  ================  =======

This is table 8 of Yang et al., "Tensor Programs V", arXiv 2203.03466. At the base's own width nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Initialise, OptimizerFactory, Slot, Started
from kingpost.build.blocks.attention import Attention
from kingpost.build.initialise.weights import find_weights
from kingpost.errors import RecipeError, nearest
from kingpost.foreign import Foreign
from kingpost.net import Net
from kingpost.option import checked, field_names
from kingpost.technique import Technique

Role = Literal["fixed", "input", "hidden", "output"]


@dataclass(frozen=True)
class Width:
    """What width means for one parameter.

    Args:
        role: which row of the table it is.
        r_in: how much longer its input axis is than in the base.
        r_out: the same of its output axis.
    """

    role: Role
    r_in: float = 1.0
    r_out: float = 1.0

    @property
    def spread(self) -> float:
        """Factor on the standard deviation that the parameter has in the base net."""
        return 1 / math.sqrt(self.r_in) if self.role == "hidden" else 1.0

    def rate(self, adaptive: bool) -> float:
        """Factor on the learning rate, for Adam (``adaptive``) or for SGD."""
        if adaptive:
            return 1 / self.r_in if self.role == "hidden" else 1.0
        return {"hidden": self.r_out / self.r_in, "output": self.r_in}.get(self.role, self.r_out)

    def __str__(self) -> str:
        return f"{self.role} ({self.r_in:g} x inputs)" if self.r_in != 1 else self.role


def widths(model: nn.Module, base: nn.Module) -> dict[str, Width]:
    """What width means for each parameter of a model, from the shapes of the same net at another width.

    Raises:
        RecipeError: the two nets have other parameters, or one has width on axes that no rule covers.

    >>> def net(n):
    ...     return nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 2))
    >>> {name: str(width) for name, width in widths(net(32), net(8)).items() if name.endswith("weight")}
    {'0.weight': 'input', '2.weight': 'hidden (4 x inputs)', '4.weight': 'output (4 x inputs)'}
    """
    wide, narrow = dict(model.named_parameters()), dict(base.named_parameters())
    if wide.keys() != narrow.keys():
        other = sorted(wide.keys() ^ narrow.keys())
        raise RecipeError(
            f"the base net has other parameters than the model, first '{other[0]}'",
            mend="the two may differ in width only: give the depth",
        )
    products = find_weights(model).names
    return {name: _width(name, p.shape, narrow[name].shape, products) for name, p in wide.items()}


def _width(name: str, shape: torch.Size, base: torch.Size, products: Mapping[str, Any]) -> Width:
    if len(shape) != len(base):
        raise RecipeError(f"'{name}' has {len(shape)} axes, and {len(base)} in the base net")
    ratios = [a / b for a, b in zip(shape, base, strict=True)]
    grown = [ratio for ratio in ratios if ratio != 1]
    if not grown:
        return Width("fixed")
    if len(grown) > 2 or (len(grown) == 2 and name not in products and grown[0] != grown[1]):
        raise RecipeError(
            f"'{name}' is {tuple(shape)}, and {tuple(base)} in the base net: no rule says which axis is its input",
            mend="keep the ratio of its axes fixed, or train without mu-parametrisation",
        )
    if name not in products:  # a vector, an embedding, or matrices whose two axes grow alike
        return Width("input", r_out=grown[0]) if len(grown) == 1 else Width("hidden", *grown)
    r_out, r_in = ratios[1::-1] if products[name].transposed else ratios[:2]
    if len(grown) == 2:
        return Width("hidden", r_in, r_out)
    return Width("output", r_in=r_in) if r_in != 1 else Width("input", r_out=r_out)


# ---- the output's multiplier


class _Multiplied:
    """A layer whose input is multiplied first, so that its bias is not."""

    multiplier: float

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        y: Tensor = super().forward(x * self.multiplier)  # type: ignore[misc]
        return y

    def extra_repr(self) -> str:
        """The layer's sizes, and the factor."""
        return f"{super().extra_repr()}, multiplier={self.multiplier:g}"  # type: ignore[misc]


class OutputLinear(_Multiplied, nn.Linear):
    """A linear layer whose input is multiplied by ``multiplier``."""


class OutputConv1d(_Multiplied, nn.Conv1d):
    """A convolution whose input is multiplied by ``multiplier``."""


class OutputConv2d(_Multiplied, nn.Conv2d):
    """A convolution whose input is multiplied by ``multiplier``."""


_OUTPUTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: OutputLinear,
    nn.Conv1d: OutputConv1d,
    nn.Conv2d: OutputConv2d,
}


def multiply_outputs(model: nn.Module, known: Mapping[str, Width]) -> int:
    """Give output layers their factor ``1 / r_in``, in place; the layers keep their names and parameters.

    A head that is tied to an embedding is an output layer too. Returns how many there are.

    Raises:
        RecipeError: an output layer is of a kind that cannot be multiplied.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    products = find_weights(model).names
    count = 0
    for path, layer in model.named_modules():
        weight = layer._parameters.get("weight")
        if weight is None:
            continue
        width, tied = known[names[id(weight)]], names[id(weight)] not in products and isinstance(layer, nn.Linear)
        if width.role != "output" and not (tied and width.role == "input"):
            continue
        if type(layer) not in _OUTPUTS:
            raise RecipeError(
                f"'{path}' turns width into outputs, but {type(layer).__name__} has no form with a multiplier",
                mend="make the output layer an nn.Linear, nn.Conv1d or nn.Conv2d",
            )
        layer.__class__ = _OUTPUTS[type(layer)]  # in place: whoever holds the layer, and its hooks, still do
        layer.multiplier = 1 / (width.r_out if tied else width.r_in)
        count += 1
    return count


def scale_attention(model: nn.Module, base: nn.Module) -> None:
    """Make the factor on attention scores fall as ``1 / d`` with the width of a head, from that of the base net.

    Raises:
        RecipeError: heads of torch's own attention grow, whose factor is fixed.
    """
    narrow = dict(base.named_modules())
    for path, layer in model.named_modules():
        twin = narrow[path]
        if isinstance(layer, Attention) and isinstance(twin, Attention):
            d, d_base = (a.query.out_features // a.heads for a in (layer, twin))
            if d != d_base:
                layer.scale = (twin.scale or d_base**-0.5) * d_base / d
        elif isinstance(layer, nn.MultiheadAttention) and layer.head_dim != twin.head_dim:
            raise RecipeError(
                f"the heads of '{path}' grow with the width, and nn.MultiheadAttention has no factor on its scores",
                mend="let the number of heads grow instead",
            )


# ---- starting weights


def spread_as_base(initialise: Initialise, base: nn.Module, known: Mapping[str, Width]) -> Initialise:
    """An initialiser that gives each parameter the spread that it has in the base net, times the rule's factor.

    The spread is the root mean square as the wrapped initialiser draws it in both nets; what is zero stays zero.
    """

    def start(model: nn.Module, seed: int) -> Started:
        device = next(model.parameters()).device
        if next(base.parameters()).device != device:
            base.to(device)
        started = initialise(model, seed)
        initialise(base, seed)
        done, spreads = dict(started.done), dict(base.named_parameters())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if known[name].role == "fixed":
                    continue
                own, there = (x.square().mean().sqrt() for x in (p, spreads[name]))
                p.mul_(torch.where(own > 0, known[name].spread * there / own, 1.0))
                if done.get(name, "").startswith("zero"):
                    continue
                factor = f" x {known[name].spread:.4g}" if known[name].role == "hidden" else ""
                how = f"{done[name]}; " if name in done else ""
                done[name] = f"{how}{known[name]}: spread of the base net{factor}"
        return Started(done, started.left)

    return start


# ---- learning rates


def rates_by_width(make: OptimizerFactory, known: Mapping[str, Width]) -> OptimizerFactory:
    """A factory whose optimizer has one group for each learning rate that the rules ask for.

    Weight decay is divided by the factor, so that ``lr * weight_decay``, which is what pulls at a weight in one step
    of torch's SGD and AdamW, is the same at every width.

    Raises:
        RecipeError: there is no rule for this optimizer.
    """

    def made(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = make(model)
        adaptive = _adaptive(optimizer)
        names = {id(p): name for name, p in model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            factors: dict[float, list[Tensor]] = {}
            for p in group["params"]:
                width = known[names[id(p)]] if id(p) in names else Width("fixed")  # of the loss, say
                factors.setdefault(width.rate(adaptive), []).append(p)
            for factor, params in factors.items():
                changed = {"lr": group["lr"] * factor, "weight_decay": group["weight_decay"] / factor}
                groups.append({**group, **changed, "params": params})
        optimizer.param_groups = groups
        return optimizer

    return made


def _adaptive(optimizer: torch.optim.Optimizer) -> bool:
    """Whether steps have the size of the rate whatever the gradient's (Adam), or grow with the gradient (SGD)."""
    if type(optimizer) is torch.optim.SGD:
        return False
    if type(optimizer) is torch.optim.AdamW:
        return True
    if type(optimizer) is torch.optim.Adam:
        if any(group["weight_decay"] and not group.get("decoupled_weight_decay") for group in optimizer.param_groups):
            raise RecipeError(
                "Adam divides the decay's pull by the gradient's size, which changes with the width",
                path="optimizer.weight_decay",
                mend="use adamw, or no weight decay",
            )
        return True
    raise RecipeError(
        f"mu-parametrisation has no rule for {type(optimizer).__name__}",
        path="optimizer",
        mend="use adamw, torch.optim:Adam or sgd",
    )


@checked
class MuParametrisation(Technique):
    """Starting weights, learning rates and output scaled so that the best learning rate does not move with the width.

    Tune a net of ``base_width``, then train a wide one with the same numbers: only the model's width changes. Hidden
    weights start smaller and, under Adam, learn more slowly as the width grows; outputs are divided by it; attention
    scores are scaled by ``1 / d`` where heads become wider. Works with AdamW, Adam and SGD. Does not transfer over
    depth, batch size, length of training or strength of regularisation, and gains little below a few hundred units.
    Source: Yang et al., arXiv 2203.03466.
    """

    base_width: Annotated[int, Ge(1)] | None = None
    """Width of the net whose learning rate is right: the model's ``width`` there."""
    base: dict[str, Any] = field(default_factory=dict)
    """Fields or arguments of the model that make the base net, where it takes others than ``width``."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model", "initialise", "optimizer"})
    example: ClassVar[dict[str, Any]] = {"base": {"widths": [4]}}

    def __post_init__(self) -> None:
        if (self.base_width is None) == (not self.base):
            raise RecipeError(
                "exactly one of base_width and base must be given",
                path="base_width",
                mend="base_width=128, or base={widths: [128, 128]} for a model without the field 'width'",
            )

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model, starting weights and learning rates know their width."""
        model, base = assembly.model, self._base(assembly)
        known = widths(model, base)
        grown = any(width.role != "fixed" for width in known.values())
        if grown and not multiply_outputs(model, known):
            raise RecipeError(
                "no output layer was found: one whose inputs grow with the width and whose outputs do not",
                mend="the last layer must be an nn.Linear, nn.Conv1d or nn.Conv2d",
            )
        scale_attention(model, base)
        return assembly.with_(
            model=model,
            initialise=spread_as_base(assembly.initialise, base, known),
            optimizer=rates_by_width(assembly.optimizer, known),
        )

    def _base(self, assembly: Assembly) -> nn.Module:
        """The same net at the base's width, and as deep as the model."""
        option, changes = assembly.setting.model, self.base or {"width": self.base_width}
        try:
            if isinstance(option, Foreign):
                if isinstance(option.target, nn.Module):
                    raise RecipeError(
                        "the model was passed as an object, which cannot be made again in another width",
                        mend="pass what makes it: model=kp.call(Net, width=512)",
                    )
                changed: Technique = option.with_(arguments={**option.arguments, **changes})
            else:
                assert option is not None
                known = field_names(type(option))
                if unknown := [key for key in changes if key not in known]:
                    raise RecipeError(f"'{option.name}' has no field '{unknown[0]}'", mend=nearest(unknown[0], known))
                if isinstance(option, Net) and "depth" in known:  # else a net may take its depth from its width
                    figures = {figure.name: figure.value for figure in option.derived(assembly.setting.data)}
                    changes = ({"depth": figures["model.depth"]} if "model.depth" in figures else {}) | changes
                changed = option.with_(**changes)
            return changed.mount(assembly).model
        except RecipeError as error:
            raise error.under("base" if self.base else "base_width") from error.__cause__
