"""Freezing: parameters that stay exactly as they were."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

from torch import nn

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError, nearest
from kingpost.net import head_of
from kingpost.option import checked
from kingpost.technique import Technique


def named_by(names: Iterable[str], patterns: Sequence[str], path: str = "patterns") -> set[str]:
    """The names that a pattern stands for: the name itself, with ``*`` and ``?``, or all below a module's path.

    Raises:
        RecipeError: a pattern stands for nothing; the nearest names are given.

    >>> sorted(named_by(["stem.weight", "stages.0.weight", "stages.1.weight"], ["stages.0", "*m.weight"]))
    ['stages.0.weight', 'stem.weight']
    """
    names, found = list(names), set[str]()
    for pattern in patterns:
        chosen = {name for name in names if fits(name, pattern)}
        if not chosen:
            known = {name.rpartition(".")[0] or name for name in names}
            raise RecipeError(f"'{pattern}' matches no parameter", path=path, mend=nearest(pattern.strip(".*"), known))
        found |= chosen
    return found


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern stands for a name or for a module above it."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


class StillBatchNorm1d(nn.BatchNorm1d):
    """A batch norm that uses and keeps its running statistics while the net trains."""

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)


class StillBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that uses and keeps its running statistics while the net trains."""

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)


class StillBatchNorm3d(nn.BatchNorm3d):
    """A batch norm that uses and keeps its running statistics while the net trains."""

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)


STILL: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: StillBatchNorm1d,
    nn.BatchNorm2d: StillBatchNorm2d,
    nn.BatchNorm3d: StillBatchNorm3d,
}


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put another module at a path of the model."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def still_norms(model: nn.Module) -> list[str]:
    """Make batch norms whose parameters are all frozen keep their statistics; returns their paths."""
    found = []
    for path, module in list(model.named_modules()):
        still = STILL.get(type(module))
        if still is None or not path or module.running_mean is None:
            continue
        if all(not p.requires_grad for p in module.parameters()):
            new = still.__new__(still)
            new.__dict__.update(module.__dict__)  # the same tensors under the same names
            replace_module(model, path, new.train(False))
            found.append(path)
    return found


def freeze(model: nn.Module, patterns: Sequence[str], but: Sequence[str] = (), norms: bool = True) -> list[str]:
    """Freeze parameters of a model in place, and return their names.

    Args:
        model: to be changed.
        patterns: of names of parameters or modules; ``*`` stands for anything.
        but: patterns of those that stay trained all the same.
        norms: batch norms all of whose parameters are frozen use and keep their running statistics.

    Raises:
        RecipeError: a pattern stands for nothing.

    >>> freeze(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), ["*"], but=["1"])
    ['0.weight', '0.bias']
    """
    named = dict(model.named_parameters())
    chosen = named_by(named, patterns) - named_by(named, but, "but")
    for name in chosen:
        named[name].requires_grad_(False)
    if norms and chosen:
        still_norms(model)
    return [name for name in named if name in chosen]


def check_alone(model: nn.Module, head: str, mend: str) -> None:
    """Refuse a head that shares its weight with another layer: it cannot be trained alone.

    Raises:
        RecipeError: it does (a language model whose last layer is its embedding).
    """
    own = {id(p) for p in model.get_submodule(head).parameters()}
    named = model.named_parameters(remove_duplicate=False)
    if shared := [name for name, p in named if id(p) in own and not fits(name, head)]:
        raise RecipeError(
            f"the head '{head}' shares its weight with '{shared[0]}', so it cannot be trained alone", mend=mend
        )


@checked
class Freeze(Technique):
    """Leave chosen parameters exactly as they start: ``w_t = w_0`` for every step t, with no decay and no momentum.

    Helps with few samples, where a net that starts from another run's weights would forget what it knows; it also
    saves the optimizer's memory and part of the backward pass.
    Fails where the new data is unlike the old: frozen features cannot follow (Kornblith et al., arXiv 1805.08974).
    Source: Yosinski et al., "How transferable are features in deep neural networks?", arXiv 1411.1792.
    """

    patterns: tuple[str, ...] = ("*",)
    """Names of parameters or of modules; ``*`` stands for anything."""
    but: tuple[str, ...] = ()
    """Patterns of those that are trained all the same, such as ``head``."""
    norms: bool = True
    """Batch norms all of whose parameters are frozen use and keep their running statistics."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    neutral: ClassVar[dict[str, Any]] = {"patterns": ()}
    example: ClassVar[dict[str, Any]] = {"patterns": ("layers.0",)}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model is partly frozen."""
        freeze(assembly.model, self.patterns, self.but, self.norms)
        return assembly


@checked
class LinearProbe(Technique):
    """Train the last layer alone, on features that stay as they start: ``min_W loss(W f(x) + b)`` with ``f`` fixed.

    Helps to see what a net's features are worth for a task, and where a task has only dozens of samples.
    Fails to reach fine-tuning once there is enough data (Kornblith et al., arXiv 1805.08974).
    Source: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", arXiv 1610.01644.
    """

    norms: bool = True
    """Batch norms use and keep their running statistics; False lets these follow the new data."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    conflicts: ClassVar[dict[str, str]] = {"freeze": "both say what is frozen", "lora": "both say what is frozen"}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly in which only the head is trained."""
        model, head = assembly.model, head_of(assembly.model)
        check_alone(model, head, "untie them, or use the technique 'freeze'")
        freeze(model, ["*"], but=[head], norms=self.norms)
        return assembly
