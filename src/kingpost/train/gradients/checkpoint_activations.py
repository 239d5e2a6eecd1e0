"""Activation checkpointing: keep less for the backward pass, and compute it a second time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from fnmatch import fnmatch
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import nn
from torch.utils.checkpoint import checkpoint

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.sam import frozen_statistics

LISTS = (nn.ModuleList, nn.Sequential)


class Recomputed(nn.Module):
    """What a checkpointed block also is: in training, its forward pass keeps nothing but its inputs.

    ``second_pass`` is what surrounds the pass that computes the rest again (to count it, say).
    """

    second_pass: Callable[[], AbstractContextManager[object]] = nullcontext

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward pass, made again in the backward pass."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        options: dict[str, Any] = {"use_reentrant": False}
        if not torch.compiler.is_compiling():  # a compiled graph does not compute statistics a second time
            options["context_fn"] = lambda: (nullcontext(), self._again())
        return checkpoint(super().forward, *args, **options, **kwargs)

    @contextmanager
    def _again(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(frozen_statistics(self))  # the batch has been counted
            stack.enter_context(self.second_pass())
            yield


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}  # blocks of one class stay blocks of one class


def recompute(block: nn.Module) -> None:
    """Let a block compute its activations again in the backward pass; parameters and their names stay.

    The block's class becomes a subclass of what it was, so that copies of the model work too.

    >>> block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> recompute(block)
    >>> type(block).__name__, isinstance(block, nn.Sequential), [*block.state_dict()]
    ('RecomputedSequential', True, ['0.weight', '0.bias'])
    """
    cls = type(block)
    if cls not in _CLASSES:
        _CLASSES[cls] = type(f"Recomputed{cls.__name__}", (Recomputed, cls), {"__module__": cls.__module__})
    block.__class__ = _CLASSES[cls]


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated parts of a model by name: children of a ``ModuleList`` or ``Sequential`` that have layers inside.

    A child that is itself such a list (a stage) is looked into first.

    >>> stage = lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2), nn.TransformerEncoderLayer(4, 2))
    >>> [*blocks_of(nn.Sequential(nn.Linear(4, 4), stage(), nn.ModuleList([stage()])))]
    ['1.0', '1.1', '2.0.0', '2.0.1']
    """
    found: dict[str, nn.Module] = {}
    in_list = isinstance(model, LISTS)
    for name, child in model.named_children():
        whole = any(True for _ in child.children()) and any(True for _ in child.parameters())
        inner = {} if in_list and not isinstance(child, LISTS) else blocks_of(child)
        if inner or not (in_list and whole):
            found |= {f"{name}.{place}": block for place, block in inner.items()}
        else:
            found[name] = child
    return found


@checked
class CheckpointActivations(Technique):
    """Keep only the inputs of each block for the backward pass, and run the block again there.

    Memory for activations falls from ``n a`` to ``n i + a`` (n blocks, each keeping a, with inputs of size i); the time
    of a step grows by up to that of one forward pass. The gradient is the same to the bit: random draws are
    repeated, and running statistics count a batch once. ``kingpost plan --measure`` shows both, with and without.
    Helps where memory limits the depth, the length of sequences or the batch.
    Fails to save anything in nets of one large block, and to pay where memory is not short.
    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
    """

    blocks: tuple[str, ...] = ()
    """Names of the modules that run again, with wildcards (``blocks.*``); empty for the repeated blocks of the net."""
    every: Annotated[int, Ge(1)] = 1
    """Only each so-many-th of them: 2 costs and saves about half as much."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    example_model: ClassVar[str] = "vit"

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model computes its blocks again."""
        for block in [*self._chosen(assembly.model).values()][:: self.every]:
            recompute(block)
        return assembly

    def _chosen(self, model: nn.Module) -> Mapping[str, nn.Module]:
        modules = {name: module for name, module in model.named_modules() if name}
        if not self.blocks:
            if not (found := blocks_of(model)):
                raise RecipeError(
                    f"{type(model).__name__} has no repeated blocks to compute again",
                    path="blocks",
                    mend=f"name modules; there are: {_some(modules)}",
                )
            return found
        for pattern in self.blocks:
            if not any(fnmatch(name, pattern) for name in modules):
                raise RecipeError(
                    f"no module is called '{pattern}'", path="blocks", mend=f"there are: {_some(modules)}"
                )
        named = {name: m for name, m in modules.items() if any(fnmatch(name, x) for x in self.blocks)}
        # A wildcard also matches what is inside a block; that is computed again with it.
        inner = {name for name in named for other in named if name.startswith(f"{other}.")}
        return {name: module for name, module in named.items() if name not in inner}


def _some(modules: Mapping[str, nn.Module]) -> str:
    return ", ".join([*modules][:6]) + (" ..." if len(modules) > 6 else "")
