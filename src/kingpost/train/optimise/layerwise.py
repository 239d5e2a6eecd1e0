"""Layer-wise rates: the further a layer is from the head, the slower it learns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt, Le
from torch import nn

from kingpost.assembly import Assembly, OptimizerFactory, Slot
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.optimise.groups import split_groups


def layers_of(model: nn.Module) -> list[list[str]]:
    """Names of the trained parameters of each layer, from the input to the head, in the order of registration.

    Where the net has stacks (a Sequential or ModuleList of at least two modules of one class that have parts of
    their own), each block is a layer; all before the first block is one layer, and all behind the last block is one.
    Without stacks, each matrix or kernel is a layer, with the vectors that follow it.

    >>> layers_of(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)))
    [['0.weight', '0.bias', '1.weight', '1.bias'], ['2.weight', '2.bias']]
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    blocks = _blocks(model, "")
    where = {name: next((b for b in blocks if name.startswith(f"{b}.")), "") for name in named}
    owner = list(where.values())
    inside = [i for i, block in enumerate(owner) if block]
    layers: list[list[str]] = []
    last: object = None
    for i, (name, p) in enumerate(named.items()):
        if inside and i < inside[0]:
            key: object = "before"
        elif inside and i > inside[-1]:
            key = "behind"
        elif inside and owner[i]:
            key = owner[i]
        else:
            key = name if p.ndim >= 2 else last
        if key != last or not layers:
            layers.append([])
        layers[-1].append(name)
        last = key
    return layers


def _blocks(module: nn.Module, path: str) -> list[str]:
    """Paths of all blocks of stacks, in order; of stacks inside blocks, the outer blocks."""
    found: list[str] = []
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if is_stack(child):
            found += [f"{inner}.{i}" for i, block in child.named_children() if any(True for _ in block.parameters())]
        else:
            found += _blocks(child, inner)
    return found


def is_stack(module: nn.Module) -> bool:
    """Whether a module is a stack of blocks.

    >>> is_stack(nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]))
    False
    """
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return False
    kinds = [type(child) for child in module.children() if any(True for _ in child.children())]
    return len(kinds) >= 2 and len(set(kinds)) < len(kinds)


def slowed(make: OptimizerFactory, decay: float) -> OptimizerFactory:
    """A factory whose optimizer's rates fall by ``decay`` for each layer away from the head."""

    def made(model: nn.Module) -> torch.optim.Optimizer:
        layers = layers_of(model)
        factors = {name: decay ** (len(layers) - 1 - i) for i, layer in enumerate(layers) for name in layer}
        return split_groups(make(model), model, lambda name: (factors.get(name, 1.0), 1.0))

    return made


@checked
class LayerwiseRates(Technique):
    """Layer l of L learns at ``lr * decay^(L - l)``; the last layer, the head, at lr.

    Layers are told by the order in which the net registers its parts: each block of a stack (a ModuleList or
    Sequential of blocks), all before the first block, all behind the last; without stacks each matrix with the vectors
    behind it. A head that is tied to an embedding counts as the embedding. ``kingpost plan`` shows the rates.
    Helps to fine-tune a net that was trained before: its first layers are general, and change little.
    Fails from fresh weights, where the first layers have as much to learn as the last.
    Source: Howard and Ruder, arXiv 1801.06146; Clark et al., "ELECTRA", arXiv 2003.10555.
    """

    decay: Annotated[float, Gt(0), Le(1)] = 0.8
    """Factor on the rate for each layer away from the head."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"optimizer"})
    neutral: ClassVar[dict[str, Any]] = {"decay": 1.0}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose optimizer has a rate for each layer."""
        return assembly.with_(optimizer=slowed(assembly.optimizer, self.decay))
