"""Multilayer perceptron: the baseline for tables, with embeddings for categories and an option for depth.

Legend of shapes: ``B`` samples, ``F`` numbers, ``K`` categories.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.activations import ACTIVATIONS, Activation
from kingpost.build.blocks.embeddings import CategoryEmbeddings, category_width
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, image_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form


class ResidualLayer(nn.Module):
    """``x + drop(activation(linear(norm(x))))``: keeps the width, so that many can be stacked.

    Source: He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027; for tables, Gorishniy et al.,
    "Revisiting Deep Learning Models for Tabular Data", arXiv 2106.11959.

    >>> ResidualLayer(8, "relu")(torch.zeros(2, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        self.activation, self.drop = ACTIVATIONS[activation](), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, D)``."""
        y: Tensor = x + self.drop(self.activation(self.linear(self.norm(x))))
        return y


class MLPNet(nn.Module):
    """Linear layers with an activation between them.

    Input ``(B, ...)``, flattened to ``(B, inputs)``, and codes of categories ``(B, K)`` int64 if there are such;
    output ``(B, outputs)``.
    Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986; embeddings
    of categories from Guo and Berkhahn, "Entity Embeddings of Categorical Variables", arXiv 1604.06737.

    Args:
        inputs: numbers per sample.
        widths: units of each hidden layer.
        outputs: units of the last layer, which has no activation.
        activation: between layers.
        residual: all hidden layers but the first are added to their input; they must be equally wide.
        cardinalities: number of codes of each category.

    >>> MLPNet(64, [32], 10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    >>> MLPNet(3, [8], 2, cardinalities=[4, 7])(torch.zeros(5, 3), torch.zeros(5, 2, dtype=torch.long)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int,
        activation: Activation = "relu",
        residual: bool = False,
        cardinalities: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if residual and len(set(widths)) > 1:
            raise ValueError(f"residual layers keep their width, but the widths {list(widths)} differ; make them equal")
        self.embeddings = CategoryEmbeddings(cardinalities) if cardinalities else None
        sizes = [inputs + (self.embeddings.width if self.embeddings else 0), *widths]
        hidden: list[nn.Module] = []
        for index, (a, b) in enumerate(itertools.pairwise(sizes)):
            if residual and index > 0:
                hidden.append(ResidualLayer(b, activation))
            else:
                hidden += [nn.Linear(a, b), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))

    def forward(self, x: Tensor, codes_bk: Tensor | None = None) -> Tensor:
        """Scores ``(B, outputs)``."""
        x = x.flatten(1)
        if self.embeddings is not None:
            assert codes_bk is not None, "this net was made with cardinalities: it needs the codes of categories"
            x = self.embeddings(x, codes_bk)
        y: Tensor = self.layers(x)
        return y


@checked
class MLP(Net):
    """Fills ``model`` with a multilayer perceptron sized to the data; categories that are codes are embedded."""

    depth: Annotated[int, Ge(0)] | None = None
    """Hidden layers; null takes 2."""
    width: Annotated[int, Ge(1)] | None = None
    """Units of each hidden layer; null takes 256."""
    widths: tuple[Annotated[int, Ge(1)], ...] | None = None
    """Units of each hidden layer one by one, instead of depth and width."""
    activation: Activation = "relu"
    """Between layers."""
    residual: bool = False
    """Add each hidden layer after the first to its input, with a layer norm before it; for many layers."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label", "multi-task", "forecasting")
    reads: ClassVar[tuple[Form, ...]] = ("features", "table", "image", "series", "clip")
    sizes: ClassVar[Mapping[str, Size]] = {"default": Size(data=image_facts(1, 28, 28, 10))}
    paper: ClassVar[str] = "Rumelhart, Hinton and Williams 1986"
    example: ClassVar[Mapping[str, object]] = {"widths": (16,)}

    def __post_init__(self) -> None:
        given = [name for name in ("depth", "width") if getattr(self, name) is not None]
        if self.widths is not None and given:
            raise RecipeError(f"given together with {' and '.join(given)}", path="widths", mend="keep one or the other")
        if self.residual and self.widths and len(set(self.widths)) > 1:
            raise RecipeError(
                f"residual layers keep their width, got {list(self.widths)}",
                path="widths",
                mend=f"depth={len(self.widths)} width={self.widths[0]}",
            )

    def layer_widths(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        if self.widths is not None:
            return self.widths
        depth = 2 if self.depth is None else self.depth
        return (self.width or 256,) * depth

    def make(self, data: DataFacts, outputs: int) -> MLPNet:
        """The network, sized to the data."""
        inputs = math.prod(data.inputs[0][0])
        return MLPNet(inputs, self.layer_widths(), outputs, self.activation, self.residual, data.cardinalities)

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Depth and width, and the units of each embedding."""
        figures = []
        if self.widths is None:
            for name, value in (("depth", 2), ("width", 256)):
                if getattr(self, name) is None:
                    figures.append(Figure(f"model.{name}", value, "", "not given: the default"))
        if data.cardinalities:
            units = sum(map(category_width, data.cardinalities))
            reason = f"{len(data.cardinalities)} categories, 1.6 x codes ^ 0.56 each, at most 600"
            figures.append(Figure("embeddings", units, "units", reason))
        return tuple(figures)
