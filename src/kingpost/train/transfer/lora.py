"""LoRA: a frozen matrix plus a trained product of two thin ones.

Legend of shapes: ``I`` inputs, ``O`` outputs, ``r`` rank.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError, nearest
from kingpost.net import head_of
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.transfer.freeze import check_alone, fits, freeze, replace_module, still_norms


class LoRALinear(nn.Linear):
    """A linear layer with an adapter: ``y = x W^T + b + scale (x A^T) B^T``; ``A`` is ``(r, I)``, ``B`` is ``(O, r)``.

    ``weight`` and ``bias`` are those of the layer it was made from, under the same names; ``lora_down`` is A and
    ``lora_up`` is B, which starts at zero, so that nothing has changed yet.
    """

    lora_down: nn.Parameter
    lora_up: nn.Parameter

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        _add_adapter(self, linear.weight, rank)

    def forward(self, input: Tensor) -> Tensor:
        """``(..., I)`` to ``(..., O)``."""
        inside = nn.functional.linear(input, self.lora_down)
        return super().forward(input) + self.scale * nn.functional.linear(inside, self.lora_up)

    def merged(self) -> nn.Linear:
        """A plain layer that gives the same: ``W + scale B A``."""
        return _merged(self, nn.Linear(self.in_features, self.out_features, self.bias is not None))


class LoRAConv1x1(nn.Conv2d):
    """A 1x1 convolution with an adapter, alike."""

    lora_down: nn.Parameter
    lora_up: nn.Parameter

    def __init__(self, convolution: nn.Conv2d, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in convolution.__dict__.items() if not k.startswith(("_param", "_modul"))})
        self._parameters, self._modules, self.scale = dict(convolution._parameters), {}, scale
        _add_adapter(self, convolution.weight, rank)

    def forward(self, input: Tensor) -> Tensor:
        """``(B, I, H, W)`` to ``(B, O, H', W')``."""
        inside = nn.functional.conv2d(input, self.lora_down[:, :, None, None], stride=self.stride)
        return super().forward(input) + self.scale * nn.functional.conv2d(inside, self.lora_up[:, :, None, None])

    def merged(self) -> nn.Conv2d:
        """A plain convolution that gives the same."""
        plain = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=self.bias is not None)
        plain.stride = self.stride
        return _merged(self, plain)


Adapted = LoRALinear | LoRAConv1x1


def _add_adapter(module: Adapted, weight: Tensor, rank: int) -> None:
    outputs, inputs = weight.shape[:2]
    down = weight.new_empty(rank, inputs)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # as a linear layer starts
    module.lora_down = nn.Parameter(down)
    module.lora_up = nn.Parameter(weight.new_zeros(outputs, rank))


P = TypeVar("P", nn.Linear, nn.Conv2d)


def _merged(module: Adapted, plain: P) -> P:
    plain = plain.to(module.weight)
    with torch.no_grad():
        change = (module.lora_up @ module.lora_down).view_as(module.weight)
        tensors = {"weight": module.weight + module.scale * change}
        if module.bias is not None:
            tensors["bias"] = module.bias
        plain.load_state_dict(tensors)
    return plain.train(module.training)


def can_adapt(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a 1x1 convolution that is not grouped."""
    if type(module) is nn.Linear:
        return True
    plain = type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.groups == 1
    return plain and module.padding == (0, 0)


def add_lora(model: nn.Module, patterns: tuple[str, ...], rank: int, alpha: float) -> list[str]:
    """Give chosen layers an adapter of scale ``alpha / rank``, in place; returns their paths.

    Raises:
        RecipeError: a pattern stands for no linear layer or 1x1 convolution; the nearest are given.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> add_lora(model, ("0",), rank=2, alpha=2.0), [name for name, _ in model.named_parameters()][:4]
    (['0'], ['0.weight', '0.bias', '0.lora_down', '0.lora_up'])
    """
    layers = {path: module for path, module in model.named_modules() if path and can_adapt(module)}
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        found = {path: module for path, module in layers.items() if fits(path, pattern)}
        if not found:
            raise RecipeError(
                f"'{pattern}' matches no linear layer or 1x1 convolution",
                path="patterns",
                mend=nearest(pattern.strip(".*"), layers),
            )
        chosen |= found
    for path, module in chosen.items() if rank else ():  # rank 0 is no adapter
        made = LoRALinear if isinstance(module, nn.Linear) else LoRAConv1x1
        replace_module(model, path, made(module, rank, alpha / rank))  # type: ignore[arg-type]
    return list(chosen)


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every adapter into its layer, in place: the same outputs, the original names, no extra cost.

    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> _ = add_lora(model, ("0",), rank=2, alpha=2.0)
    >>> [name for name, _ in merge_lora(model).named_parameters()]
    ['0.weight', '0.bias']
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, LoRALinear | LoRAConv1x1):
            if not path:
                return module.merged()
            replace_module(model, path, module.merged())
    return model


@checked
class LoRA(Technique):
    """Train ``W + (alpha / rank) B A`` with ``W`` frozen, ``B`` from zero, of a low rank; the head is trained in full.

    The adapters are parameters ``lora_down`` (A) and ``lora_up`` (B) beside the layer's own, whose names stay;
    ``merge_lora`` folds them into it. Helps to adapt a large net in little memory, and to keep many adaptations.
    Fails where the new task is far from the old one: a low rank cannot follow (Biderman et al., arXiv 2405.09673).
    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
    """

    rank: Annotated[int, Ge(1)] = 8
    """Of the product; also the number of inner units of an adapter."""
    alpha: Annotated[float, Ge(0)] = 8.0
    """The product is scaled by alpha / rank, so that the rate need not change with the rank."""
    patterns: tuple[str, ...] = ("*",)
    """Paths of the linear layers and 1x1 convolutions that get one, such as ``*.query``; the head never does."""
    head: bool = True
    """Also train the head, which a new task needs anew."""
    norms: bool = True
    """Batch norms use and keep their running statistics."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    conflicts: ClassVar[dict[str, str]] = {"freeze": "both say what is frozen"}
    example: ClassVar[dict[str, Any]] = {"rank": 2}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model is frozen but for adapters and head."""
        model = assembly.model
        head = head_of(model)
        if self.head:
            check_alone(model, head, "untie them, or set head=false")
        kept = model.get_submodule(head)
        replace_module(model, head, nn.Identity())
        try:
            freeze(model, ["*"], norms=False)
            add_lora(model, self.patterns, self.rank, self.alpha)
        finally:
            replace_module(model, head, kept)
        kept.requires_grad_(self.head)
        if self.norms:
            still_norms(model)
        return assembly
