"""Starts in which residual branches are silent, so that a net of any depth begins as a shallow one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from kingpost.assembly import Assembly, Slot, Started
from kingpost.build.initialise.follow import Branch, Seen, follow
from kingpost.build.initialise.scaled import He
from kingpost.build.initialise.weights import find_weights
from kingpost.option import Kind, checked
from kingpost.technique import Technique

NO_BRANCH = "no residual addition was seen in the model, so there is no branch to silence"


@checked
class ResidualStart(Technique):
    """Base of the initialisers that treat residual branches; what they do comes on top of another initialiser."""

    # Described as pydantic wants it: a docstring below a field is not handed on to subclasses.
    base: Annotated[Technique | None, Kind("initialise")] = Field(
        default_factory=lambda: He(),
        description="Sets all weights first; null leaves them as the model's constructor made them.",
    )

    touches: ClassVar[frozenset[Slot]] = frozenset({"initialise"})
    example_model: ClassVar[str] = "vit"

    @abstractmethod
    def treat(self, model: nn.Module, seen: Seen) -> Started:
        """Change a model's branches in place."""

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""
        base = (self.base.mount(assembly) if self.base else assembly).initialise

        def initialise(model: nn.Module, seed: int) -> Started:
            first = base(model, seed)
            with torch.no_grad():
                then = self.treat(model, follow(model, assembly.setting.first_batch(), seed))
            done = {**first.done, **then.done}
            left = {**first.left, **then.left}
            return Started(done, {name: why for name, why in left.items() if name not in then.done})

        return assembly.with_(initialise=initialise)


@checked
class SkipInit(ResidualStart):
    """The last layer of each residual branch is zero: the net starts as its skip connections alone.

    De and Smith put a learned factor of zero at the end of each branch; here the last layer itself is zero, so that
    the model gets no new parameter. Where a norm follows that layer, the norm's gain is zero instead: a norm would
    divide by the zero. A branch that ends in an activation is left alone: ReLU passes no gradient at zero.
    Source: De and Smith, arXiv 2002.10444.
    """

    def treat(self, model: nn.Module, seen: Seen) -> Started:
        """Zero the ends of branches."""
        return silence(model, seen.branches)


@checked
class Fixup(ResidualStart):
    """As skipinit; besides, other layers of a branch are scaled by ``L^(-1 / (2m - 2))``, and the model's last is zero.

    ``L`` branches of ``m`` layers each; a step then changes the output by as much in a deep net as in a shallow one.
    The learned scalars that the paper puts into each branch are left out: the model gets no new parameter. Meant for
    nets without norms. Source: Zhang, Dauphin and Ma, arXiv 1901.09321.
    """

    def treat(self, model: nn.Module, seen: Seen) -> Started:
        """Scale and zero."""
        started = silence(model, seen.branches)
        done, left, count = dict(started.done), dict(started.left), len(seen.branches)
        weights = find_weights(model)
        for branch in seen.branches:
            inner = [name for name in branch.weights if name not in branch.last and name in weights.names]
            if branch.last and inner:
                layers = len(inner) + 1
                for name in inner:
                    weights.names[name].matrices.mul_(count ** (-1 / (2 * layers - 2)))
                    done[name] = f"base, x {count}^(-1/{2 * layers - 2}): {count} branches of {layers} layers"
        for name, then in seen.follows.items():
            inside = any(name in branch.weights for branch in seen.branches)
            if then.name == "output" and not inside and count and name in weights.names:
                weights.names[name].matrices.zero_()
                done[name] = "zero: the model's last layer"
        return Started(done, left)


@checked
class ZeroLastNorm(ResidualStart):
    """The gain of the last norm of each residual branch is zero: the net starts as its skip connections alone.

    For nets such as ResNet, whose branches end in a norm. Source: Goyal et al., arXiv 1706.02677.
    """

    base: Annotated[Technique | None, Kind("initialise")] = None
    """Sets all weights first; null leaves them as the model's constructor made them."""

    def treat(self, model: nn.Module, seen: Seen) -> Started:
        """Zero the last norms."""
        done, left = dict[str, str](), dict[str, str]()
        for branch in seen.branches:
            for name in branch.norms:
                model.get_parameter(name).zero_()
                done[name] = "zero: the last norm of a residual branch"
            if not branch.norms:
                for name in branch.last or branch.weights[-1:]:
                    left[name] = "no norm with a gain follows it in its residual branch"
        return Started(done, left or _nothing(model, seen))


def silence(model: nn.Module, branches: Iterable[Branch]) -> Started:
    """Make what the branches add zero; says which could not be.

    Args:
        model: to be changed in place.
        branches: as :func:`kingpost.build.initialise.follow.follow` saw them.
    """
    done, left = dict[str, str](), dict[str, str]()
    weights = find_weights(model).names
    branches = list(branches)
    for branch in branches:
        if not branch.last and not branch.norms:
            end = branch.activation or "something that cannot be told"
            why = f"its residual branch ends in {end}, which may pass no gradient at zero"
            left |= dict.fromkeys(branch.weights[-1:], why)
        elif branch.norms:
            for name in branch.norms:
                model.get_parameter(name).zero_()
                done[name] = "zero: the norm at the end of a residual branch"
        else:
            for name in branch.last:
                weights[name].matrices.zero_()
                done[name] = "zero: the last layer of a residual branch"
                if (bias := weights[name].bias) is not None:
                    model.get_parameter(bias).zero_()
                    done[bias] = "zero: the last layer of a residual branch"
    return Started(done, left if branches else _nothing(model, Seen()))


def _nothing(model: nn.Module, seen: Seen) -> dict[str, str]:
    return {} if seen.branches else {weight.name: NO_BRANCH for weight in find_weights(model).weights}
