"""Capsules: groups of units whose length says that a thing is there, and whose direction says how it looks.

Legend of shapes: ``B`` samples, ``N`` capsules below of ``D`` units, ``M`` capsules above of ``E`` units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kingpost.task import at_least_float32

TINY = 1e-12


def squash(x: Tensor) -> Tensor:
    """``|x|^2 / (1 + |x|^2) x / |x|`` along the last axis: keeps the direction, and the length below 1.

    Source: Sabour, Frosst and Hinton, arXiv 1710.09829, equation 1.

    >>> squash(torch.tensor([[3.0, 4.0]]))
    tensor([[0.5769, 0.7692]])
    """
    squared = x.square().sum(-1, keepdim=True)
    return x * ((squared + TINY).sqrt() / (1 + squared))


def squash_exponential(x: Tensor) -> Tensor:
    """``(1 - exp(-|x|)) x / |x|`` along the last axis: its slope at 0 is 1, where that of :func:`squash` is 0.

    Source: Mazzia, Salvetti and Chiaberge, "Efficient-CapsNet", arXiv 2101.12491.

    >>> squash_exponential(torch.tensor([[3.0, 4.0]]))
    tensor([[0.5960, 0.7946]])
    """
    length = (x.square().sum(-1, keepdim=True) + TINY).sqrt()
    return x * (-torch.expm1(-length) / length)


def log_odds_of_length(capsules: Tensor) -> Tensor:
    """``ln(v / (1 - v))`` of the lengths ``v`` along the last axis, so that their sigmoid is the length.

    Softmax over lengths themselves would be flat, since they lie in 0..1: of ten classes, the one that is certain would
    get the probability e / (e + 9) = 0.23. For :func:`squash`, the log odds are ``ln |x|^2``.

    >>> log_odds_of_length(torch.tensor([[0.0, 0.5]])).sigmoid()
    tensor([0.5000])
    """
    length = (capsules.square().sum(-1) + TINY).sqrt().clamp(max=1 - 1e-6)
    return length.log() - (-length).log1p()


class PrimaryCapsules(nn.Module):
    """A convolution whose channels are cut into capsules, squashed; ``(B, channels, H, W)`` to ``(B, N, D)``.

    Args:
        channels: of the input; with ``depthwise``, divided by ``dimension`` without rest.
        capsules: kinds of capsules at each place; not used with ``depthwise``.
        dimension: ``D``.
        kernel: rows and columns.
        stride: of the convolution.
        depthwise: each channel is read on its own, so there are ``channels / D`` kinds.
        exponential: use :func:`squash_exponential`.

    >>> PrimaryCapsules(4, capsules=3, dimension=8, kernel=(3, 3), stride=2)(torch.zeros(2, 4, 7, 7)).shape
    torch.Size([2, 27, 8])
    """

    def __init__(
        self,
        channels: int,
        capsules: int,
        dimension: int,
        kernel: tuple[int, int],
        stride: int = 1,
        depthwise: bool = False,
        exponential: bool = False,
    ) -> None:
        super().__init__()
        if depthwise and channels % dimension:
            raise ValueError(f"got {channels} channels, expected a multiple of the capsules' {dimension} units")
        outputs = channels if depthwise else capsules * dimension
        self.convolution = nn.Conv2d(channels, outputs, kernel, stride, groups=channels if depthwise else 1)
        self.dimension, self.exponential = dimension, exponential

    def forward(self, x: Tensor) -> Tensor:
        """Capsules of all kinds and places, ``(B, N, D)``."""
        y = at_least_float32(self.convolution(x)).flatten(2)
        capsules_bnd = y.reshape(y.shape[0], -1, self.dimension, y.shape[2]).movedim(2, 3).flatten(1, 2)
        return squash_exponential(capsules_bnd) if self.exponential else squash(capsules_bnd)


class CapsuleLayer(nn.Module):
    """What its subclasses share: each capsule below foretells each one above, ``u_ij = W_ij u_i``."""

    def __init__(self, inputs: int, input_dimension: int, outputs: int, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs, input_dimension, dimension))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (input_dimension + dimension)))

    def predicted(self, u_bnd: Tensor) -> Tensor:
        """What each capsule says of each one above, ``(B, M, N, E)``."""
        return at_least_float32(torch.einsum("bnd,nmde->bmne", u_bnd, self.weight.to(u_bnd.dtype)))


class RoutedCapsules(CapsuleLayer):
    """Capsules that agree choose together: routing by agreement; ``(B, N, D)`` to ``(B, M, E)``.

    ``b = 0``; then ``iterations`` times: ``c = softmax_j(b)``, ``s_j = sum_i c_ij u_ij``, ``v_j = squash(s_j)``,
    ``b_ij += u_ij . v_j``. Costs memory for ``B N M E`` numbers. The gradient goes through all iterations.
    Source: Sabour, Frosst and Hinton, "Dynamic Routing Between Capsules", arXiv 1710.09829, procedure 1.

    Args:
        inputs: ``N``.
        input_dimension: ``D``.
        outputs: ``M``.
        dimension: ``E``.
        iterations: of the routing; 1 is a plain mean.

    >>> RoutedCapsules(27, 8, 10, 16)(torch.zeros(2, 27, 8)).shape
    torch.Size([2, 10, 16])
    """

    def __init__(self, inputs: int, input_dimension: int, outputs: int, dimension: int, iterations: int = 3) -> None:
        super().__init__(inputs, input_dimension, outputs, dimension)
        if iterations < 1:
            raise ValueError(f"got {iterations} iterations, expected 1 or more")
        self.iterations = iterations

    def forward(self, u_bnd: Tensor) -> Tensor:
        """Capsules above, ``(B, M, E)``."""
        u_bmne = self.predicted(u_bnd)
        b_bmn = torch.zeros_like(u_bmne[..., 0])
        for _ in range(self.iterations - 1):
            v_bme = self._vote(u_bmne, b_bmn)
            b_bmn = b_bmn + (u_bmne * v_bme.unsqueeze(2)).sum(-1)
        return self._vote(u_bmne, b_bmn)

    @staticmethod
    def _vote(u_bmne: Tensor, b_bmn: Tensor) -> Tensor:
        return squash((b_bmn.softmax(1).unsqueeze(-1) * u_bmne).sum(2))


class AttentionCapsules(CapsuleLayer):
    """Routing in one pass by self-attention among what is foretold; ``(B, N, D)`` to ``(B, M, E)``.

    ``a_ij = sum_k u_ij . u_kj / sqrt(E)``, ``c = softmax_j(a)``, ``s_j = sum_i (c_ij + prior_ij) u_ij``,
    ``v_j = squash(s_j)`` with :func:`squash_exponential`. The root is that of the authors' published code.
    Source: Mazzia, Salvetti and Chiaberge, "Efficient-CapsNet", arXiv 2101.12491.

    Args:
        inputs: ``N``.
        input_dimension: ``D``.
        outputs: ``M``.
        dimension: ``E``.

    >>> AttentionCapsules(16, 8, 10, 16)(torch.zeros(2, 16, 8)).shape
    torch.Size([2, 10, 16])
    """

    def __init__(self, inputs: int, input_dimension: int, outputs: int, dimension: int) -> None:
        super().__init__(inputs, input_dimension, outputs, dimension)
        self.prior = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, u_bnd: Tensor) -> Tensor:
        """Capsules above, ``(B, M, E)``."""
        u_bmne = self.predicted(u_bnd)
        # The sum over k comes first: u_i . (sum_k u_k), so that no N x N matrix is made.
        agreement_bmn = (u_bmne * u_bmne.sum(2, keepdim=True)).sum(-1) / math.sqrt(u_bmne.shape[-1])
        share_bmn = agreement_bmn.softmax(1) + self.prior
        return squash_exponential((share_bmn.unsqueeze(-1) * u_bmne).sum(2))


class Decoder(nn.Module):
    """The input rebuilt from the capsule of one class: all others are set to zero, then a perceptron.

    The last layer is linear, since inputs here are standardised; in the paper, of pixels in 0..1, it is a sigmoid.
    Source: Sabour, Frosst and Hinton, arXiv 1710.09829, section 4.1.

    Args:
        capsules: number of classes, ``M``.
        dimension: of each capsule, ``E``.
        outputs: numbers of an input.
        widths: units of the hidden layers.

    >>> Decoder(10, 16, 784)(torch.zeros(2, 10, 16), torch.tensor([3, 7])).shape
    torch.Size([2, 784])
    """

    def __init__(self, capsules: int, dimension: int, outputs: int, widths: tuple[int, ...] = (512, 1024)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = capsules * dimension
        for width in widths:
            layers += [nn.Linear(before, width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, outputs))

    def forward(self, v_bme: Tensor, classes: Tensor) -> Tensor:
        """Inputs, flat, ``(B, outputs)``, of classes ``(B,)`` or of shares of each class ``(B, M)``."""
        if not classes.is_floating_point():
            classes = nn.functional.one_hot(classes, v_bme.shape[1])
        y: Tensor = self.layers((v_bme * classes.to(v_bme.dtype).unsqueeze(-1)).flatten(1))
        return y
