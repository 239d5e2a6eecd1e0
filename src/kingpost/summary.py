"""What a network consists of: layers, shapes of their outputs, parameters, FLOPs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kingpost.figure import readable
from kingpost.flops import flop_counter
from kingpost.verb import make_callable

make_callable(__name__)

LAYERS_SHOWN = 24


@dataclass(frozen=True)
class Layer:
    """One module of a network.

    Args:
        path: its place, such as ``stages.0``.
        kind: its class.
        output: shape of what it gives, ``B`` included; empty if it was not run or gives no tensor.
        parameters: numbers trained in it and below, those that are shared counted where they come first.
        flops: of one forward pass over the batch, matrix products and convolutions.
    """

    path: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True)
class Summary:
    """A network at a glance; all of its modules are in ``layers``, the print shows the topmost."""

    kind: str
    layers: tuple[Layer, ...]
    parameters: int
    flops: int

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text(LAYERS_SHOWN)

    def text(self, most: int) -> str:
        """The table with at most so many layers; deeper ones are part of their parents."""
        shown = _topmost(self.layers, most)
        lines = [f"{'layer':<28} {'kind':<22} {'output':<20} {'parameters':>12} {'FLOPs':>13}"]
        for layer in shown:
            output = " x ".join(map(str, layer.output))
            flops = readable(layer.flops, "FLOPs") if layer.flops else ""
            lines.append(f"{layer.path:<28} {layer.kind:<22} {output:<20} {layer.parameters:>12,} {flops:>13}")
        return "\n".join([*lines, f"{'all':<28} {self.kind:<22} {'':<20} {self.parameters:>12,} "
                                  f"{readable(self.flops, 'FLOPs'):>13}"])  # fmt: skip


def summary(model: nn.Module, *inputs: Tensor) -> Summary:
    """Run a network once, without gradients, and say what each of its modules gave and cost.

    Args:
        model: any module; its mode, weights and buffers stay as they are.
        inputs: what it is called with; on the ``meta`` device or under a fake tensor mode nothing is computed.

    >>> print(summary(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4)))
    layer                        kind                   output                 parameters         FLOPs
    0                            Linear                 2 x 3                          15      48 FLOPs
    1                            ReLU                   2 x 3                           0
    all                          Sequential                                            15      48 FLOPs
    """
    outputs: dict[str, tuple[int, ...]] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor):
                outputs.setdefault(path, tuple(first.shape))

        return hook

    paths = dict(model.named_modules())
    handles = [module.register_forward_hook(note(path)) for path, module in paths.items() if path]
    modes = {path: module.training for path, module in paths.items()}
    try:
        model.eval()
        with torch.no_grad(), flop_counter() as counter:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for path, module in paths.items():
            module.training = modes[path]
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    parameters = _parameters(model)
    prefix = type(model).__name__
    for path in reversed(paths):  # a list of modules is not run itself: what is in it counts
        if path and path not in outputs and f"{prefix}.{path}" not in flops:
            inside = [f"{prefix}.{child}" for child in paths if child.rpartition(".")[0] == path]
            flops[f"{prefix}.{path}"] = sum(flops.get(child, 0) for child in inside)
    layers = tuple(
        Layer(path, type(module).__name__, outputs.get(path, ()), parameters[path], flops.get(f"{prefix}.{path}", 0))
        for path, module in paths.items()
        if path
    )
    return Summary(prefix, layers, parameters[""], counter.get_total_flops())


def _parameters(model: nn.Module) -> dict[str, int]:
    """Parameters in each module and below it; what is shared counts where it comes first."""
    counts = {path: 0 for path, _ in model.named_modules()}
    for name, p in model.named_parameters():
        path = name.rpartition(".")[0]
        while True:
            counts[path] += p.numel()
            if not path:
                break
            path = path.rpartition(".")[0]
    return counts


def _topmost(layers: tuple[Layer, ...], most: int) -> list[Layer]:
    """The modules of the deepest level that still fit; a level deeper takes the place of its parent."""
    shown = [layer for layer in layers if "." not in layer.path]
    while True:
        deeper: list[Layer] = []
        for layer in shown:
            children = [c for c in layers if c.path.rpartition(".")[0] == layer.path]
            deeper += children or [layer]
        if len(deeper) > most or deeper == shown:
            return shown
        shown = deeper
