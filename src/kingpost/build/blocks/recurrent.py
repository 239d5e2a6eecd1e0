"""Recurrent layers over padded sequences.

Legend of shapes: ``B`` sequences, ``T`` steps, ``I`` input features, ``H`` units of one direction, ``D`` directions
(1 or 2), ``L`` layers.

Why no packing: ``torch.nn.utils.rnn.pack_padded_sequence`` needs the lengths on the CPU, and shapes that depend on
them, so it can be neither planned on fake tensors, exported nor compiled, and it stalls a GPU. Nothing after the end
of a sequence can change what stands before it, so here a layer runs over the padding too, and its outputs there are
set to zero; backwards, each sequence is first turned around within its own length. The results are those of packing
(tests/build/test_recurrent.py), at the cost of computing the padding: cut sequences to a sensible length.

Under torch.compile the layers run as they are, between two compiled parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["lstm", "gru", "rnn"]
State = tuple[Tensor, ...]  # (h,), or (h, c) for an LSTM; each (L D, B, H), directions of a layer side by side

GATES: dict[Kind, int] = {"lstm": 4, "gru": 3, "rnn": 1}
_LAYERS: dict[Kind, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass
class StateCache:
    """What recurrent layers keep between the steps of generation: the state behind the last token, None at first."""

    state: State | None = None

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` what row ``rows[i]`` was."""
        if self.state is not None:
            self.state = tuple(part[:, rows] for part in self.state)


class Recurrent(nn.Module):
    """A stack of LSTM, GRU or tanh layers, in one or both directions, with dropout modules between layers.

    The bias of an LSTM's forget gates starts at 1, so that it begins by remembering (Jozefowicz, Zaremba and
    Sutskever, "An Empirical Exploration of Recurrent Network Architectures", 2015); the rest as torch starts it.

    Args:
        kind: of cell; equations in :mod:`kingpost.build.blocks.recurrent_cells`.
        inputs: features of the input, ``I``.
        width: units of each direction, ``H``.
        depth: layers, ``L``.
        bidirectional: also run from the end to the beginning.

    >>> outputs, (h, c) = Recurrent("lstm", 3, 5, depth=2, bidirectional=True)(torch.zeros(4, 7, 3))
    >>> outputs.shape, h.shape
    (torch.Size([4, 7, 10]), torch.Size([4, 4, 5]))
    """

    _untraced: ClassVar[Callable[..., Any]]  # `_steps`; traced, all steps would be unrolled: minutes to compile

    def __init__(self, kind: Kind, inputs: int, width: int, depth: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        if not hasattr(Recurrent, "_untraced"):  # not as a decorator: that would import the compiler with this file
            Recurrent._untraced = torch.compiler.disable(Recurrent._steps)  # type: ignore[no-untyped-call]
        if min(inputs, width, depth) < 1:
            raise ValueError(f"inputs, width and depth must be at least 1, got {inputs}, {width} and {depth}")
        self.kind: Kind = kind
        self.directions = 2 if bidirectional else 1
        self.outputs = width * self.directions
        self.layers = nn.ModuleList(
            nn.ModuleList(
                _LAYERS[kind](inputs if layer == 0 else self.outputs, width, batch_first=True)
                for _ in range(self.directions)
            )
            for layer in range(depth)
        )
        self.drops = nn.ModuleList(nn.Dropout(0.0) for _ in range(depth - 1))
        if kind == "lstm":
            for name, p in self.named_parameters():  # the two biases are added up
                if "bias" in name:
                    nn.init.constant_(p[width : 2 * width], 1.0 if "bias_ih" in name else 0.0)

    def forward(
        self, x_bti: Tensor, lengths_b: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Outputs of the last layer ``(B, T, D H)``, zero in the padding, and the state at each sequence's end.

        Args:
            x_bti: sequences, padded at their end.
            lengths_b: real steps of each, int64; an empty sequence counts as one step. None: all ``T``.
            state: to begin with, shaped as the one returned; None: zero.
        """
        outputs, ends = self._run(x_bti, lengths_b, state, True)
        return outputs, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))

    def sequence(self, x_bti: Tensor, lengths_b: Tensor | None = None, state: State | None = None) -> Tensor:
        """Only the outputs of :meth:`forward`, which are cheaper for a padded LSTM."""
        outputs: Tensor = self._run(x_bti, lengths_b, state, False)[0]
        return outputs

    def summary(self, x_bti: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        """Outputs of the last layer once all is read: at the end and, backwards, at the start; ``(B, D H)``."""
        outputs = self.sequence(x_bti, lengths_b)
        width = self.outputs // self.directions
        return torch.cat([last(outputs[..., :width], lengths_b), outputs[:, 0, width:]], 1)

    def _run(self, *given: Any) -> tuple[Tensor, list[State]]:
        return cast(tuple[Tensor, list[State]], type(self)._untraced(self, *given))

    def _steps(
        self, x: Tensor, lengths: Tensor | None, state: State | None, need_state: bool
    ) -> tuple[Tensor, list[State]]:
        real = None if lengths is None else real_steps(lengths, x.shape[1])
        ends: list[State] = []
        for depth, layer in enumerate(self.layers):
            assert isinstance(layer, nn.ModuleList)
            if depth > 0:
                x = self.drops[depth - 1](x)
            outputs = []
            for direction, rnn in enumerate(layer):
                row = depth * self.directions + direction
                start = None if state is None else tuple(part[row : row + 1].contiguous() for part in state)
                seen = x if direction == 0 else reverse(x, lengths)
                y, end = _one_way(rnn, seen, lengths, real, start, need_state)
                outputs.append(y if direction == 0 else reverse(y, lengths))
                ends.append(end)
            x = torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]
        return x, ends


def _one_way(
    rnn: nn.Module, x: Tensor, lengths: Tensor | None, real: Tensor | None, start: State | None, need_state: bool
) -> tuple[Tensor, State]:
    """One layer in one direction: outputs ``(B, T, H)``, zero in the padding, and the state at the end, ``(B, H)``."""
    is_lstm = isinstance(rnn, nn.LSTM)
    y, end = rnn(x, start if start is None or is_lstm else start[0])
    if lengths is None or real is None:
        return y, tuple(part[0] for part in (end if is_lstm else (end,)))
    y = y.masked_fill(~real[..., None], 0.0)
    if not need_state:
        return y, ()
    h = last(y, lengths)
    return y, (h, _cell_at_the_end(rnn, x, y, real, start)) if isinstance(rnn, nn.LSTM) else (h,)


def _cell_at_the_end(lstm: nn.LSTM, x: Tensor, y: Tensor, real: Tensor, start: State | None) -> Tensor:
    """An LSTM's cell at each sequence's end, ``(B, H)``: torch gives it only for the end of the padding.

    All outputs are known, so the gates of all steps are two matrix products, and only the sum over time is a loop.
    """
    h, c = (torch.zeros_like(y[:, 0]),) * 2 if start is None else (start[0][0], start[1][0])
    before = torch.cat([h[:, None], y[:, :-1]], 1)
    weight_ih, weight_hh, bias_ih, bias_hh = lstm.all_weights[0]
    gates = F.linear(x, weight_ih, bias_ih) + F.linear(before, weight_hh, bias_hh)
    i, f, g, _ = gates.chunk(4, 2)
    keep = torch.where(real[..., None], torch.sigmoid(f), 1.0)
    write = torch.where(real[..., None], torch.sigmoid(i) * torch.tanh(g), 0.0)
    for t in range(x.shape[1]):
        c = keep[:, t] * c + write[:, t]
    return c


def real_steps(lengths_b: Tensor, steps: int) -> Tensor:
    """Where a padded sequence is real, ``(B, T)`` bool; the first step always is.

    >>> real_steps(torch.tensor([2, 0]), 3).tolist()
    [[True, True, False], [True, False, False]]
    """
    return torch.arange(steps, device=lengths_b.device) < lengths_b.clamp(min=1)[:, None]


def lengths_of(tokens_bt: Tensor, padding: int | None) -> Tensor | None:
    """Steps up to the last token that is not padding, ``(B,)`` int64; None if nothing is padded.

    >>> lengths_of(torch.tensor([[5, 0, 6, 0], [0, 0, 0, 0]]), padding=0).tolist()
    [3, 0]
    """
    if padding is None:
        return None
    places = torch.arange(1, tokens_bt.shape[1] + 1, device=tokens_bt.device)
    return ((tokens_bt != padding) * places).amax(1)


def reverse(x_bti: Tensor, lengths_b: Tensor | None) -> Tensor:
    """Each sequence turned around within its own length; the padding stays behind it.

    >>> reverse(torch.tensor([[[1], [2], [3]], [[4], [5], [0]]]), torch.tensor([3, 2])).squeeze(2).tolist()
    [[3, 2, 1], [5, 4, 0]]
    """
    if lengths_b is None:
        return x_bti.flip(1)
    steps = torch.arange(x_bti.shape[1], device=x_bti.device)
    turned = lengths_b[:, None] - 1 - steps
    places = torch.where(turned >= 0, turned, steps)
    return x_bti.gather(1, places[..., None].expand_as(x_bti))


def last(x_bti: Tensor, lengths_b: Tensor | None) -> Tensor:
    """The last real step of each sequence, ``(B, I)``."""
    if lengths_b is None:
        return x_bti[:, -1]
    places = (lengths_b.clamp(min=1) - 1)[:, None, None].expand(-1, 1, x_bti.shape[2])
    return x_bti.gather(1, places).squeeze(1)
