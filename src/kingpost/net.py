"""A Net: the technique that fills ``model``, with one dial for its size.

What is common to all architectures stands here once: which form of sample a net reads, its named sizes, and
which numbers were derived from the ones that were given.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from kingpost import catalogue
from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.source import DataFacts, Form
from kingpost.technique import Technique

FORMS: Mapping[Form, str] = {
    "features": "numbers (F,)",
    "table": "numbers (F,) and codes of categories (K,)",
    "image": "images (channels, rows, columns)",
    "clip": "clips (frames, channels, rows, columns)",
    "series": "sequences of numbers (steps, features)",
    "tokens": "sequences of tokens (T,)",
    "token-pair": "pairs of token sequences (S,) and (T,)",
    "nodes": "nodes of one graph",
    "graph": "graphs: nodes (N, F) and edges (E, 2)",
    "other": "something else",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """A named size of a net.

    Args:
        fields: what it stands for.
        data: the samples on which its parameters are counted.
        parameters: as published, or None for a size of our own.
        source: where the size is published.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    data: DataFacts
    parameters: int | None = None
    source: str = ""


class Net(Technique):
    """Base of all networks; a subclass says what it reads, which sizes have a name, and how it is made.

    Class attributes:
        reads: the forms of samples that it takes.
        sizes: named sizes, small ones first; at least one.
        paper: who proposed it, and where.
    """

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    reads: ClassVar[tuple[Form, ...]]
    sizes: ClassVar[Mapping[str, Size]]
    paper: ClassVar[str]

    @abstractmethod
    def make(self, data: DataFacts, outputs: int) -> nn.Module:
        """The network as a plain module.

        Args:
            data: shapes of the samples.
            outputs: units of the last layer, as the task wants them.

        Raises:
            RecipeError: this size does not fit these samples.
        """

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """The numbers that were not given, each with the reason for its value."""
        return ()

    def of(self, name: str) -> Any:
        """A field's value: as given, else that of the named ``size``, else None."""
        if (given := getattr(self, name)) is not None:
            return given
        size = getattr(self, "size", None)
        return self.sizes[size].fields.get(name) if size else None

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the net."""
        setting = assembly.setting
        self.check_form(setting.data)
        return assembly.with_(model=self.make(setting.data, setting.task.outputs_per_sample(setting.data)))

    def check_form(self, data: DataFacts) -> None:
        """Refuse samples of a form that this net does not read, and name nets that do.

        Raises:
            RecipeError: the form is another one.
        """
        if data.form in self.reads:
            return
        wanted = " or ".join(FORMS[form] for form in self.reads)
        shapes = " and ".join(str(shape) for shape, _ in data.inputs)
        raise RecipeError(
            f"'{self.name}' reads {wanted}, but this data gives {FORMS[data.form]}, of shape {shapes}",
            path="name",
            mend="nets that read it: " + (", ".join(nets_for(data.form)) or "none; write your own as module:Net"),
        )


def all_nets() -> dict[str, type[Net]]:
    """Every net of the catalogue, by name."""
    found = {name: catalogue.find("model", name) for name in catalogue.CATALOGUE["model"]}
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, Net)}


def nets_for(form: Form) -> list[str]:
    """Names of the nets that read samples of this form.

    >>> "cnn" in nets_for("image"), "cnn" in nets_for("tokens")
    (True, False)
    """
    return [name for name, cls in all_nets().items() if form in cls.reads]


def image_facts(channels: int, rows: int, columns: int, classes: int) -> DataFacts:
    """Facts of classified images, on which an image net's sizes are counted."""
    return DataFacts(
        task="classification",
        inputs=(((channels, rows, columns), torch.float32),),
        classes=tuple(map(str, range(classes))),
    )


def token_facts(vocabulary: int, length: int, classes: int = 0, padding: int | None = None) -> DataFacts:
    """Facts of token sequences: classified, or (``classes`` = 0) for language modelling."""
    named = tuple(map(str, range(classes)))
    return DataFacts(
        task="classification" if classes else "language-modelling",
        inputs=(((length,), torch.int64),),
        target_shape=() if classes else (length,),
        classes=named,
        vocabulary=vocabulary,
        padding=padding,
    )


def head_of(model: nn.Module) -> str:
    """Path of the layer that gives the outputs: the one called ``head``, else the last linear layer.

    Raises:
        RecipeError: there is no linear layer.

    >>> head_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    '2'
    """
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path]
    if not linear:
        raise RecipeError(f"{type(model).__name__} has no linear layer that could be its head", path="model")
    return "head" if "head" in linear else linear[-1]
