"""Inception modules: several branches see the same grid, and their outputs stand side by side.

Legend of shapes: ``B`` samples, ``C`` channels, ``H`` rows, ``W`` columns.

The modules of v3 have letters, in the order in which the paper's network uses them: A (5x5 and a double 3x3), B (to
half the grid), C (7x7 as 1x7 and 7x1), D (to half the grid), E (3x3 as 1x3 beside 3x1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from kingpost.build.blocks.convolution import ConvNormActivation, pooling

Unit = Callable[..., ConvNormActivation]
"""Makes the convolutions of a module: :class:`ConvNormActivation` with its norm and activation chosen."""


class Branches(nn.ModuleList):
    """Modules that read the same grid, their outputs side by side: ``(B, C, H, W)`` to ``(B, sum of theirs, ...)``.

    >>> Branches([nn.Conv2d(3, 2, 1), nn.Identity()])(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 5, 4, 4])
    """

    def forward(self, x_bchw: Tensor) -> Tensor:
        """The outputs of all branches, in order."""
        return torch.cat([branch(x_bchw) for branch in self], 1)

    def outputs(self, inputs: int) -> int:
        """Channels that it gives, for so many that come in.

        >>> Branches([nn.Conv2d(3, 2, 1), nn.Identity()]).outputs(3)
        5
        """
        return sum(_outputs(branch, inputs) for branch in self)


@dataclass(frozen=True)
class Widths:
    """Channels of a first module: of its 1x1, of its 3x3 and 5x5 with their reductions, and after the pooling."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int

    @property
    def outputs(self) -> int:
        """Channels of the whole module."""
        return self.one + self.three + self.five + self.pool

    def scaled(self, scale: Callable[[int], int]) -> Widths:
        """All channels changed alike."""
        return Widths(*(scale(getattr(self, field.name)) for field in fields(self)))


def inception_v1(inputs: int, widths: Widths, unit: Unit = ConvNormActivation, *, kernel: int = 5) -> Branches:
    """The first module: 1x1, 3x3 and 5x5 convolutions, and 3x3 max pooling, each with a 1x1 to few channels.

    ``(B, inputs, H, W)`` to ``(B, widths.outputs, H, W)``. Source: Szegedy et al., arXiv 1409.4842.

    Args:
        inputs: channels that come in.
        widths: of the branches.
        unit: makes the convolutions.
        kernel: side of the largest convolution: 5 in the paper, 3 in the widespread version with batch norm.

    >>> inception_v1(8, Widths(4, 2, 6, 2, 3, 3))(torch.zeros(2, 8, 5, 5)).shape
    torch.Size([2, 16, 5, 5])
    """
    return Branches(
        [
            unit(inputs, widths.one, 1),
            nn.Sequential(unit(inputs, widths.three_reduce, 1), unit(widths.three_reduce, widths.three, 3)),
            nn.Sequential(unit(inputs, widths.five_reduce, 1), unit(widths.five_reduce, widths.five, kernel)),
            nn.Sequential(pooling("max", 3, 1, 1, odd=True), unit(inputs, widths.pool, 1)),
        ]
    )


def inception_a(inputs: int, widths: Sequence[int], unit: Unit = ConvNormActivation) -> Branches:
    """v3: 1x1; 5x5; two 3x3; average pooling. Keeps the grid. Source: Szegedy et al., arXiv 1512.00567, figure 5.

    Args:
        inputs: channels that come in.
        widths: channels of (1x1, 5x5 reduction, 5x5, double 3x3 reduction, double 3x3, after the pooling).
        unit: makes the convolutions.
    """
    one, five_reduce, five, double_reduce, double, pool = widths
    return Branches(
        [
            unit(inputs, one, 1),
            nn.Sequential(unit(inputs, five_reduce, 1), unit(five_reduce, five, 5)),
            nn.Sequential(unit(inputs, double_reduce, 1), unit(double_reduce, double, 3), unit(double, double, 3)),
            _average(inputs, pool, unit),
        ]
    )


def inception_b(inputs: int, widths: Sequence[int], unit: Unit = ConvNormActivation) -> Branches:
    """v3: to half the grid by a 3x3, two 3x3, and max pooling, side by side. Same source, figure 10.

    Args:
        inputs: channels that come in, and go out of the pooling.
        widths: channels of (3x3, double 3x3 reduction, double 3x3).
        unit: makes the convolutions.
    """
    three, double_reduce, double = widths
    return Branches(
        [
            unit(inputs, three, 3, 2, 0),
            nn.Sequential(
                unit(inputs, double_reduce, 1), unit(double_reduce, double, 3), unit(double, double, 3, 2, 0)
            ),
            pooling("max", 3, 2),
        ]
    )


def inception_c(inputs: int, widths: Sequence[int], unit: Unit = ConvNormActivation) -> Branches:
    """v3: 1x1; 7x7 as 1x7 and 7x1; that twice; average pooling. Keeps the grid. Same source, figure 6.

    Args:
        inputs: channels that come in.
        widths: channels (inside the 7x7s, at the end of each branch).
        unit: makes the convolutions.
    """
    inside, out = widths
    return Branches(
        [
            unit(inputs, out, 1),
            nn.Sequential(unit(inputs, inside, 1), unit(inside, inside, (1, 7)), unit(inside, out, (7, 1))),
            nn.Sequential(
                unit(inputs, inside, 1),
                unit(inside, inside, (7, 1)),
                unit(inside, inside, (1, 7)),
                unit(inside, inside, (7, 1)),
                unit(inside, out, (1, 7)),
            ),
            _average(inputs, out, unit),
        ]
    )


def inception_d(inputs: int, widths: Sequence[int], unit: Unit = ConvNormActivation) -> Branches:
    """v3: to half the grid by a 3x3, a 7x7 and a 3x3, and max pooling, side by side. Same source, section 5.

    Args:
        inputs: channels that come in, and go out of the pooling.
        widths: channels (inside both branches, end of the 3x3, end of the 7x7).
        unit: makes the convolutions.
    """
    inside, three, seven = widths
    return Branches(
        [
            nn.Sequential(unit(inputs, inside, 1), unit(inside, three, 3, 2, 0)),
            nn.Sequential(
                unit(inputs, inside, 1),
                unit(inside, inside, (1, 7)),
                unit(inside, inside, (7, 1)),
                unit(inside, seven, 3, 2, 0),
            ),
            pooling("max", 3, 2),
        ]
    )


def inception_e(inputs: int, widths: Sequence[int], unit: Unit = ConvNormActivation) -> Branches:
    """v3: 1x1; 3x3 as 1x3 beside 3x1; a 3x3 and that; average pooling. Keeps the grid. Same source, figure 7.

    Args:
        inputs: channels that come in.
        widths: channels of (1x1, each half of a split 3x3, double 3x3 reduction, after the pooling).
        unit: makes the convolutions.
    """
    one, half, double_reduce, pool = widths

    def split() -> Branches:
        return Branches([unit(half, half, (1, 3)), unit(half, half, (3, 1))])

    return Branches(
        [
            unit(inputs, one, 1),
            nn.Sequential(unit(inputs, half, 1), split()),
            nn.Sequential(unit(inputs, double_reduce, 1), unit(double_reduce, half, 3), split()),
            _average(inputs, pool, unit),
        ]
    )


def _outputs(module: nn.Module, inputs: int) -> int:
    if isinstance(module, Branches):
        return module.outputs(inputs)
    if isinstance(module, nn.Sequential):
        for part in module:
            inputs = _outputs(part, inputs)
    return module.out_channels if isinstance(module, nn.Conv2d) else inputs


def _average(inputs: int, outputs: int, unit: Unit) -> nn.Sequential:
    return nn.Sequential(pooling("average", 3, 1, 1), unit(inputs, outputs, 1))
