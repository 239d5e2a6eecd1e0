"""Dropout of whole channels, and of squares, for images.

Legend of shapes: ``B`` samples, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.regularise.chains import eagerly
from kingpost.train.regularise.dropout import ACTIVATIONS

OWN_MASK = "each piece of a batch draws its own mask, so only the expectation is the same"


class DropChannels(nn.Module):
    """In training, channels of ``(B, C, H, W)`` are zero with probability ``p``, the rest times ``1 / (1 - p)``.

    Anything that is not a grid passes as it is.

    >>> drop = DropChannels(0.5)
    >>> set(drop(torch.ones(4, 8, 3, 3)).mean((2, 3)).flatten().tolist()) <= {0.0, 2.0}
    True
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return F.dropout2d(x, self.p, self.training) if x.ndim == 4 else x

    def extra_repr(self) -> str:
        """For the print."""
        return f"p={self.p:.3g}"


def drop_squares(x_bchw: Tensor, p: float, side: int) -> Tensor:
    """Squares of ``side x side`` set to zero, so that about the part ``p`` of a grid is; the rest is scaled up.

    A square begins at a place with probability ``p / side^2 * H W / ((H - side + 1) (W - side + 1))``; squares lie
    inside the grid. What is left is multiplied by ``numbers / numbers left``, over the whole batch.

    Args:
        x_bchw: grids.
        p: part that is dropped, in 0..1.
        side: of a square; at most that of the grid.
    """
    rows, columns = x_bchw.shape[2:]
    side = min(side, rows, columns)
    places = (rows - side + 1) * (columns - side + 1)
    rate = min(1.0, p / side**2 * rows * columns / places)
    begins = torch.empty(*x_bchw.shape[:2], rows - side + 1, columns - side + 1, device=x_bchw.device).bernoulli_(rate)
    kept = 1 - F.max_pool2d(F.pad(begins, [side - 1] * 4), side, stride=1)
    scale = kept.numel() / kept.sum().clamp(min=1)
    return x_bchw * (kept * scale).to(x_bchw.dtype)


class DropSquares(nn.Module):
    """:func:`drop_squares` in training, where grids are at least as large as a square; else the identity.

    >>> DropSquares(0.5, 3).eval()(torch.ones(1, 1, 2, 2)).sum()
    tensor(4.)
    """

    def __init__(self, p: float, side: int) -> None:
        super().__init__()
        self.p, self.side = p, side

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or self.p == 0 or x.ndim != 4 or min(x.shape[2:]) < self.side:
            return x
        return drop_squares(x, self.p, self.side)

    def extra_repr(self) -> str:
        """For the print."""
        return f"p={self.p:.3g}, side={self.side}"


def after_activations(model: nn.Module, make: Callable[[], nn.Module], layers: str, *inputs: Tensor) -> int:
    """Put a module after each activation module that gives grids ``(B, C, H, W)``; returns how many.

    Args:
        model: changed in place; no parameter changes its name.
        make: gives a new module.
        layers: pattern of names of activation modules.
        inputs: what the model is called with, to see who gives grids.
    """
    grids: set[nn.Module] = set()
    activations = {m for name, m in model.named_modules() if isinstance(m, ACTIVATIONS) and fnmatchcase(name, layers)}
    hooks = [m.register_forward_hook(lambda m, _, y: grids.add(m) if y.ndim == 4 else None) for m in activations]
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), eagerly(model):
            model(*inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if child in grids and not list(child.parameters())  # a PReLU's slope would change its name
    ]
    for parent, name, child in places:
        setattr(parent, name, nn.Sequential(child, make()))
    return len(places)


def few_inputs(assembly: Assembly) -> tuple[Tensor, ...]:
    """Two training samples in the model's precision, where the model is."""
    p = next(assembly.model.parameters())
    inputs = assembly.setting.first_batch().rows(0, 2).to(p.device).inputs
    return tuple(x.to(p.dtype) if x.is_floating_point() else x for x in inputs)


def _mount(assembly: Assembly, make: Callable[[], nn.Module], layers: str) -> Assembly:
    if not after_activations(assembly.model, make, layers, *few_inputs(assembly)):
        raise RecipeError(
            f"no activation module that fits '{layers}' gives grids (B, C, H, W)",
            path="layers",
            mend="use it with a convolutional net, or 'dropout' with any other",
        )
    return assembly


@checked
class ChannelDropout(Technique):
    """Set whole channels to zero with probability ``p`` after activations of a convolutional net, in training.

    The rest is multiplied by ``1 / (1 - p)``. Neighbouring pixels say nearly the same, so dropping single ones hides
    nothing; a whole channel is hidden.
    Helps convolutional nets on little data.
    Fails before batch norms, whose variance shifts between training and use, and in narrow nets.
    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", arXiv 1411.4280.
    """

    p: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability that a channel is zero."""
    layers: str = "*"
    """After which activation modules, by a pattern of their names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")
    example_model: ClassVar[str] = "cnn"
    example: ClassVar[dict[str, Any]] = {"p": 0.2}

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Each piece of a batch draws its own mask."""
        return {"accumulation": OWN_MASK, "two processes": OWN_MASK}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model drops channels."""
        return _mount(assembly, lambda: DropChannels(self.p), self.layers)


@checked
class DropBlock(Technique):
    """Set squares of feature maps to zero, about the part ``p``, after activations of a convolutional net.

    A square begins at a place with probability ``p / side^2 * H W / ((H - side + 1) (W - side + 1))``; what is left is
    scaled up to the same sum of ones.
    Helps large convolutional nets in long trainings: hides parts of objects, so that others must be learned.
    Fails in short trainings and small nets; grids smaller than a square are left alone. In the paper, ``p`` rises from
    0 during the run, and only the last stages are treated (name them by ``layers``).
    Source: Ghiasi, Lin and Le, "DropBlock", arXiv 1810.12890.
    """

    p: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Part of each feature map that is dropped, about."""
    side: Annotated[int, Ge(1)] = 3
    """Rows and columns of a square (7 in the paper, on maps of 14 x 14 and more)."""
    layers: str = "*"
    """After which activation modules, by a pattern of their names; ``*`` stands for any text."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label")
    example_model: ClassVar[str] = "resnet"
    example: ClassVar[dict[str, Any]] = {"p": 0.1, "side": 2}

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Each piece of a batch draws its own squares, and is scaled by its own share of ones."""
        return {"accumulation": OWN_MASK, "two processes": OWN_MASK}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model drops squares."""
        return _mount(assembly, lambda: DropSquares(self.p, self.side), self.layers)
