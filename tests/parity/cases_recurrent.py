"""Recurrent cells, layers over padded sequences, and attention against PyTorch's and Keras' own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kingpost.build.blocks.recurrent import Kind, Recurrent
from kingpost.build.blocks.recurrent_cells import Cell, GRUCell, LSTMCell, RNNCell
from kingpost.build.blocks.seq_attention import Score, SequenceAttention
from parity.case import Case, Errors, largest

os.environ.setdefault("KERAS_BACKEND", "torch")  # before the first import of keras, wherever that is

B, T, S, INPUTS, H = 4, 7, 6, 5, 8
LENGTHS = (7, 1, 4, 6)
WHY = "64 bits; the same sums of about a dozen numbers in another order, over at most seven steps and two layers"
TOLERANCE = 1e-12
PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

CELLS: dict[Kind, type[Cell]] = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell}
TORCH: dict[Kind, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(net: nn.Module) -> nn.Module:
    """The net in 64 bits with random weights."""
    with torch.no_grad():
        for seed, p in enumerate(net.double().parameters()):
            p.copy_(0.4 * numbers(100 + seed, *p.shape))
    return net


def slope(outputs: Iterable[Tensor]) -> None:
    """Backward of a random weighted sum, the same for both sides."""
    total = sum((y * numbers(50 + i, *y.shape)).sum() for i, y in enumerate(outputs))
    total.backward()  # type: ignore[union-attr]


def unrolled(cell: Cell, x: Tensor) -> list[Tensor]:
    """Outputs ``(B, T, H)`` and last state of a cell, one step after another."""
    h = c = x.new_zeros(len(x), H)
    outputs = []
    for step in x.unbind(1):
        if isinstance(cell, LSTMCell):
            h, c = cell(step, (h, c))
        else:
            h = cell(step, h)
        outputs.append(h)
    return [torch.stack(outputs, 1), c if isinstance(cell, LSTMCell) else h]


def cell(kind: Kind) -> Errors:
    ours, theirs = drawn(CELLS[kind](INPUTS, H)), TORCH[kind](INPUTS, H, batch_first=True, dtype=torch.float64)
    assert isinstance(ours, Cell)
    theirs.load_state_dict({f"{name}_l0": p for name, p in ours.state_dict().items()})
    x = numbers(1, B, T, INPUTS)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = unrolled(ours, x_ours)
    outputs, end = theirs(x_theirs)
    z = [outputs, (end[1] if kind == "lstm" else end)[0]]
    slope(y)
    slope(z)
    pairs = [(getattr(ours, part).grad, getattr(theirs, f"{part}_l0").grad) for part in PARTS]
    return Errors(largest(zip(y, z, strict=True)), largest([*pairs, (x_ours.grad, x_theirs.grad)]))


def stack(kind: Kind) -> Errors:
    """Two layers, both directions, padded: outputs, states, and gradients of weights and inputs."""
    ours = drawn(Recurrent(kind, INPUTS, H, depth=2, bidirectional=True))
    theirs = TORCH[kind](INPUTS, H, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
    assert isinstance(ours, Recurrent)
    names = {
        (layer, way, part): f"{part}_l{layer}{'_reverse' * way}"
        for layer, way, part in itertools.product(range(2), range(2), PARTS)
    }

    def own(layer: int, way: int, part: str) -> nn.Parameter:
        p = getattr(ours.layers[layer][way], f"{part}_l0")  # type: ignore[index]
        assert isinstance(p, nn.Parameter)
        return p

    with torch.no_grad():
        for place, name in names.items():
            getattr(theirs, name).copy_(own(*place))
    lengths, x = torch.tensor(LENGTHS), numbers(1, B, T, INPUTS)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs, state = ours(x_ours, lengths)
    packed = pack_padded_sequence(x_theirs, lengths, batch_first=True, enforce_sorted=False)
    their_outputs, end = theirs(packed)
    y = [outputs, *state]
    z = [pad_packed_sequence(their_outputs, batch_first=True, total_length=T)[0], *(end if kind == "lstm" else (end,))]
    slope(y)
    slope(z)
    pairs = [(own(*place).grad, getattr(theirs, name).grad) for place, name in names.items()]
    return Errors(
        largest(zip(y, z, strict=True)),
        largest([*((a, b) for a, b in pairs if a is not None), (x_ours.grad, x_theirs.grad)]),  # type: ignore[list-item]
    )


@contextmanager
def keras() -> Iterator[Any]:
    """Keras on torch, in 64 bits; it has a rule of its own by which 64 bits become 32 where two numbers meet."""
    import keras as library

    assert library.backend.backend() == "torch"
    before = library.config.floatx(), library.config.dtype_policy()
    narrow = library.src.backend.common.dtypes.result_type

    def wide(*dtypes: Any) -> str:
        found: str = narrow(*dtypes)
        return "float64" if found.startswith("float") else found

    library.config.set_floatx("float64")
    library.config.set_dtype_policy("float64")
    ways = library.src.backend, library.src.backend.common.dtypes
    try:
        with mock.patch.object(ways[0], "result_type", wide), mock.patch.object(ways[1], "result_type", wide):
            yield library
    finally:
        library.config.set_floatx(before[0])
        library.config.set_dtype_policy(before[1])


def in_keras(compare: Callable[..., Errors], argument: Any) -> Callable[[], Errors]:
    def run() -> Errors:
        with keras() as library:
            return compare(library, argument)

    return run


def as_keras(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    """Gates in another order, and the matrix turned: torch has ``(gates H, I)``, Keras ``(I, gates H)``."""
    parts = rows.chunk(len(order))
    return torch.cat([parts[i] for i in order]).movedim(0, -1)


def keras_layer(library: Any, kind: Kind) -> Errors:
    """Keras has the gates as i, f, g, o (LSTM, as torch) and z, r, n (GRU; torch: r, z, n); an LSTM has one bias."""
    ours = drawn(Recurrent(kind, INPUTS, H))
    assert isinstance(ours, Recurrent)
    (layer,) = ours.layers[0]  # type: ignore[misc]
    order = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "rnn": (0,)}[kind]
    made = {"lstm": library.layers.LSTM, "gru": library.layers.GRU, "rnn": library.layers.SimpleRNN}[kind]
    theirs = made(H, return_sequences=True, **({"reset_after": True} if kind == "gru" else {}))
    theirs.build((B, T, INPUTS))

    def converted(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> list[Tensor]:
        biases = [as_keras(b_ih, order), as_keras(b_hh, order)]
        bias = torch.stack(biases) if kind == "gru" else biases[0] + biases[1]
        return [as_keras(w_ih, order), as_keras(w_hh, order), bias]

    weights = [getattr(layer, f"{part}_l0") for part in PARTS]
    theirs.set_weights([w.detach().numpy() for w in converted(*weights)])
    x = numbers(1, B, T, INPUTS)
    real = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    y = ours.sequence(x, torch.tensor(LENGTHS))
    z = theirs(x, mask=real) * real[..., None]  # in the padding Keras says the last output again
    slope([y])
    slope([z])
    grads = [w.grad for w in weights]
    own = converted(*grads)
    if kind != "gru":
        own[2] = as_keras(grads[2], order)  # both of torch's biases have the gradient of the one
    return Errors(largest([(y, z)]), largest(zip(own, [v.value.grad for v in theirs.trainable_variables], strict=True)))


def keras_attention(library: Any, score: Score) -> Errors:
    """Keras has no matrices in its attention, so ours project its queries and keys; values are the keys."""
    ours = drawn(SequenceAttention(score, H, H))
    assert isinstance(ours, SequenceAttention)
    query, keys = numbers(1, B, T, H).requires_grad_(), numbers(2, B, S, H).requires_grad_()
    real = torch.arange(S) < torch.tensor([6, 1, 4, 5])[:, None]
    if score == "additive":
        theirs = library.layers.AdditiveAttention(use_scale=True)
        projected = [ours.query(query).detach(), keys.detach(), ours.key(keys).detach()]
    else:
        theirs = library.layers.Attention()
        projected = [query.detach(), keys.detach(), ours.key(keys).detach() if score == "general" else keys.detach()]
    q, v, k = (part.clone().requires_grad_() for part in projected)
    everything = torch.ones(B, T, dtype=torch.bool)
    theirs.build([(B, T, H), (B, S, H), (B, S, H)])
    if score == "additive":
        theirs.set_weights([ours.v.weight[0].detach().numpy()])
    context, weights = ours(query, keys, real)
    z, their_weights = theirs([q, v, k], mask=[everything, real, real], return_attention_scores=True)
    slope([context])
    slope([z])
    assert q.grad is not None and k.grad is not None and v.grad is not None
    pairs: list[Any] = []  # by the chain rule through our projections
    if score == "additive":
        (scale,) = theirs.trainable_variables
        pairs += [(ours.v.weight.grad[0], scale.value.grad)]  # type: ignore[index]
        pairs += [(query.grad, q.grad @ ours.query.weight), (keys.grad, v.grad + k.grad @ ours.key.weight)]
        pairs += [(ours.query.weight.grad, q.grad.flatten(0, 1).T @ query.detach().flatten(0, 1))]
        pairs += [(ours.key.weight.grad, k.grad.flatten(0, 1).T @ keys.detach().flatten(0, 1))]
    elif score == "general":
        pairs += [(query.grad, q.grad), (keys.grad, v.grad + k.grad @ ours.key.weight)]
        pairs += [(ours.key.weight.grad, k.grad.flatten(0, 1).T @ keys.detach().flatten(0, 1))]
    else:
        pairs += [(query.grad, q.grad), (keys.grad, v.grad + k.grad)]
    return Errors(largest([(context, z), (weights, their_weights)]), largest(pairs))


def scaled() -> Errors:
    ours = SequenceAttention("scaled", H, H)
    real = torch.arange(S) < torch.tensor([6, 1, 4, 5])[:, None]
    leaves = [[numbers(1, B, T, H).requires_grad_(), numbers(2, B, S, H).requires_grad_()] for _ in range(2)]
    y, _ = ours(*leaves[0], real)
    z = nn.functional.scaled_dot_product_attention(leaves[1][0], leaves[1][1], leaves[1][1], attn_mask=real[:, None])
    slope([y])
    slope([z])
    return Errors(largest([(y, z)]), largest((a.grad, b.grad) for a, b in zip(*leaves, strict=True)))  # type: ignore[misc]


def case(ours: str, reference: str, needs: str, compare: Callable[[], Errors]) -> Case:
    return Case(ours=ours, reference=reference, needs=needs, compare=compare, tolerance=TOLERANCE, why=WHY)


KERAS_NAMES: dict[Kind, str] = {"lstm": "LSTM", "gru": "GRU(reset_after=True)", "rnn": "SimpleRNN"}
CASES: list[Case] = [
    *(
        case(f"{CELLS[kind].__name__} over {T} steps", f"torch.nn.{made.__name__}", "torch", partial(cell, kind))
        for kind, made in TORCH.items()
    ),
    *(
        case(
            f"Recurrent('{kind}', depth=2, bidirectional=True), padded",
            f"torch.nn.{made.__name__} on packed sequences",
            "torch",
            partial(stack, kind),
        )
        for kind, made in TORCH.items()
    ),
    *(
        case(
            f"Recurrent('{kind}'), padded",
            f"keras.layers.{name} with a mask",
            "keras",
            in_keras(keras_layer, kind),
        )
        for kind, name in KERAS_NAMES.items()
    ),
    case(
        "SequenceAttention('additive')",
        "keras.layers.AdditiveAttention",
        "keras",
        in_keras(keras_attention, "additive"),
    ),
    case("SequenceAttention('dot')", "keras.layers.Attention", "keras", in_keras(keras_attention, "dot")),
    case("SequenceAttention('general')", "keras.layers.Attention", "keras", in_keras(keras_attention, "general")),
    case("SequenceAttention('scaled')", "torch's scaled_dot_product_attention", "torch", scaled),
]
