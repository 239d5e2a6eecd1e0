"""Objects and callables that are not ours, standing in a recipe: any module, optimizer, schedule or loader."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar, cast

import torch
from torch import nn

from kingpost import catalogue, seeds
from kingpost.assembly import Assembly, Slot, Started
from kingpost.errors import RecipeError, nearest
from kingpost.option import GIVEN, NAME, checked, plain
from kingpost.source import Source
from kingpost.technique import Technique

SLOT_OF_KIND: dict[str, Slot] = {
    "model": "model",
    "initialise": "initialise",
    "optimizer": "optimizer",
    "schedule": "schedule",
}


@checked
class Foreign(Technique):
    """Somebody else's object or callable in one slot.

    A reference (``my_package.my_module:Net``, or a class or function that can be imported) is written to the
    recipe's file with its arguments. An object cannot be: the file then says that it is not reproducible.

    What the target is called with: a model with its arguments; an initialiser with the model; an optimizer
    with the parameters and its arguments; a schedule with ``(step, total_steps)`` and its arguments.
    """

    kind: str
    """The kind of the catalogue that it stands for."""
    target: Any
    """The object, or what makes it."""
    reference: str = ""
    """``module:name``, if it was given so."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Passed to the target by name."""

    touches: ClassVar[frozenset[Slot]] = frozenset()  # depends on the instance, see __post_init__

    def __post_init__(self) -> None:
        if self.kind not in SLOT_OF_KIND:
            raise RecipeError(
                f"{_describe(self.target)} is not a kingpost {self.kind}",
                mend=f"pass a subclass; by name: {nearest('', catalogue.CATALOGUE.get(self.kind, {}))}",
            )
        if not callable(self.target) and not isinstance(self.target, torch.optim.Optimizer):
            known = nearest("", catalogue.CATALOGUE[self.kind])
            raise RecipeError(f"got {self.target!r}", mend=f"pass a name, an object or what makes it; {known}")
        if not self.reference:
            object.__setattr__(self, "reference", _reference_to(self.target))
        object.__setattr__(self, "touches", frozenset({SLOT_OF_KIND[self.kind]}))

    @property
    def name(self) -> str:
        """The reference, or ``given`` for an object that no file can hold."""
        return self.reference or GIVEN

    @property
    def reproducible(self) -> bool:
        """Whether the recipe's file alone can make it again."""
        return bool(self.reference)

    def to_value(self) -> dict[str, Any]:
        """The arguments, or for an object a description of it."""
        return cast(dict[str, Any], plain(self.arguments)) if self.reference else {"what": _describe(self.target)}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the foreign thing in its slot."""
        if self.kind == "model":
            return assembly.with_(model=self._model())
        if self.kind == "optimizer":
            return assembly.with_(optimizer=self._optimizer)
        if self.kind == "initialise":
            return assembly.with_(initialise=self._initialise)
        return assembly.with_(
            schedule=lambda step, total_steps: float(self.target(step, total_steps, **self.arguments))
        )

    def _model(self) -> nn.Module:
        model = self.target
        if not isinstance(model, nn.Module):
            _check_arguments(self.target, self.arguments, given=0)
            model = self.target(**self.arguments)
        if not isinstance(model, nn.Module):
            raise RecipeError(f"{self.name} made {_describe(model)}, expected an nn.Module")
        return model

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if not isinstance(self.target, torch.optim.Optimizer):
            try:
                _check_arguments(self.target, self.arguments, given=1)
            except RecipeError as error:  # made after mounting, where nobody else adds the path
                raise error.under(self.kind) from error.__cause__
            made = self.target([p for p in model.parameters() if p.requires_grad], **self.arguments)
            return cast(torch.optim.Optimizer, made)
        held = {id(p) for group in self.target.param_groups for p in group["params"]}
        if foreign := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]:
            raise RecipeError(
                f"the optimizer that was passed in does not hold {len(foreign)} of the model's parameters, "
                f"first '{foreign[0]}'",
                path="optimizer",
                mend="pass the optimizer's class with its arguments, or make it from this very model",
            )
        return self.target

    def _initialise(self, model: nn.Module, seed: int) -> Started:
        with seeds.DrawsByShape(seed):
            self.target(model, **self.arguments)
        return Started({name: self.name for name, _ in model.named_parameters()})


def call(target: Any, **arguments: Any) -> dict[str, Any]:
    """A callable with arguments, for a recipe in Python: ``model=kp.call(Net, width=64)``.

    >>> call(torch.nn.Linear, in_features=2, out_features=1)
    {'name': 'torch.nn.modules.linear:Linear', 'in_features': 2, 'out_features': 1}
    """
    reference = _reference_to(target)
    if not reference:
        raise RecipeError(
            f"{_describe(target)} cannot be imported by name",
            mend="define it in a module, or pass the object itself",
        )
    return {NAME: reference, **arguments}


def as_source(target: object, reference: str, arguments: Mapping[str, Any]) -> Source:
    """A DataLoader, or a callable that returns loaders, as a data source."""
    loaders = cast(type[Source], catalogue.find("data", "loaders"))
    if isinstance(target, torch.utils.data.DataLoader):
        return loaders(train=target)  # type: ignore[call-arg]
    if callable(target):
        return loaders(make=target, reference=reference or _reference_to(target), arguments=dict(arguments))  # type: ignore[call-arg]
    raise RecipeError(
        f"cannot use {_describe(target)} as data",
        mend="pass a DataLoader, kp.Loaders(train=..., validation=...), kp.Arrays(inputs=..., targets=...), or a name",
    )


def _describe(thing: object) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"an object of type {type(thing).__name__}"


def _reference_to(target: object) -> str:
    """``module:name`` if importing that gives the very same object, else ''."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not module or not name or module == "__main__" or "<" in name:
        return ""
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return ""
    return f"{module}:{name}" if found is target else ""


def _check_arguments(target: Any, arguments: Mapping[str, Any], given: int) -> None:
    """Refuse arguments that the target does not take, before it is called."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some built-in callables have none
        return
    try:
        signature.bind(*[None] * given, **arguments)
    except TypeError as error:
        names = [name for name in signature.parameters if name not in ("self", "params")]
        unknown = next((key for key in arguments if key not in names), "")
        raise RecipeError(str(error), path=unknown, mend=nearest(unknown, names)) from error
