"""Watch a model run once: which activation follows each weight, and where its residual branches are.

Every function that torch calls passes by a mode, which keeps for each tensor where it came from. What is hidden in
one call (a scripted module, somebody's own autograd function) cannot be seen; its weights are then missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from kingpost.assembly import Batch
from kingpost.build.initialise.running import run


@dataclass(frozen=True)
class Follow:
    """What is done with a weight's output.

    Args:
        name: torch's name of the activation, or ``linear``, ``attention``, ``gates``, ``output``, ``unknown``.
        slope: of its negative side, for leaky ones.
    """

    name: str
    slope: float = 0.0

    def __str__(self) -> str:
        words = {
            "linear": "no activation follows",
            "attention": "attention follows",
            "gates": "gates of a recurrent layer",
            "output": "the model's output",
            "unknown": "what follows could not be told",
        }
        return words.get(self.name, f"{self.name} follows" + (f" (slope {self.slope:g})" if self.slope else ""))


UNKNOWN = Follow("unknown")

ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "threshold", "elu", "selu", "celu", "gelu", "silu", "mish",
    "hardswish", "softplus", "softsign", "tanh", "sigmoid", "hardtanh", "hardsigmoid", "logsigmoid", "tanhshrink",
    "softmax", "log_softmax", "softmin", "gumbel_softmax", "glu",
}  # fmt: skip
SLOPES = {"leaky_relu": 0.01, "prelu": 0.25}  # where the call does not say
PRODUCTS = {
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
}  # fmt: skip
ADDITIONS = {"add", "iadd", "radd"}
ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


@dataclass(frozen=True)
class Branch:
    """What one residual addition adds to the stream.

    Args:
        weights: names of the weights in it, in the order of use.
        last: those whose output is added with no activation between.
        norms: weights of the norms that come after the last one.
        activation: the one that the branch ends in; then ``last`` is empty.
    """

    weights: tuple[str, ...]
    last: tuple[str, ...]
    norms: tuple[str, ...]
    activation: str


@dataclass
class Seen:
    """What was seen of a run.

    Args:
        follows: by name of a weight, what follows it first; weights that were not used are missing.
        branches: the residual branches, in order.
    """

    follows: dict[str, Follow] = field(default_factory=dict)
    branches: list[Branch] = field(default_factory=list)


@dataclass(frozen=True)
class _Past:
    """Where a tensor came from. Sets of events are bits of whole numbers; events are numbered in order of time.

    Args:
        event: that made it.
        before: all events that it depends on, its own included.
        stream: those of them that it still carries: reached without a weight or an activation.
        waiting: weights whose output it is, with no activation since.
        norms: weights of norms that it passed since.
    """

    event: int
    before: int
    stream: int
    waiting: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()


class _Watch(TorchFunctionMode):
    """Keeps the past of every tensor that depends on the model's inputs."""

    def __init__(self, weights: Mapping[int, str], norms: Mapping[int, str]) -> None:
        super().__init__()
        self.seen = Seen()
        self.names, self.norm_names = weights, norms
        self.pasts: MutableMapping[Tensor, _Past] = WeakTensorKeyDictionary()
        self.products: MutableMapping[Tensor, tuple[str, ...]] = WeakTensorKeyDictionary()  # made of weights alone
        self.made: list[_Past] = []
        self.used: dict[int, tuple[str, ...]] = {}
        self.activated: dict[int, str] = {}
        self.additions = 0  # bits of residual additions

    def start(self, tensors: Iterable[Any]) -> None:
        """These are the model's inputs."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._keep(tensor, self._past([]))

    def finish(self, outputs: Iterable[Any]) -> None:
        """These are the model's outputs."""
        for tensor in outputs:
            if isinstance(tensor, Tensor) and (past := self.pasts.get(tensor)) is not None:
                self._note(past.waiting, Follow("output"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, and note what it did."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if name == "setitem":
            made = given[:1]
        if made:
            self._follow(name, args, kwargs, given, made)
        return result

    def _follow(self, name: str, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]) -> None:
        pasts = [past for x in given if (past := self.pasts.get(x)) is not None]
        weights = [w for x in given for w in self._weights_in(x)]
        if weights and (pasts or name in PRODUCTS):
            past = self._product(name, pasts, weights)
        elif weights:  # a weight that is transposed, normed, masked
            for x in made:
                self.products[x] = tuple(weights)
            return
        elif not pasts:
            return
        elif (activation := _activation(name, args, kwargs)) is not None:
            past = self._activation(activation, pasts)
        else:
            norms = frozenset(self.norm_names[id(x)] for x in given if id(x) in self.norm_names)
            if name in ADDITIONS and len(pasts) == 2:
                self._addition(*pasts)
            past = self._past(pasts, norms=norms, keeps=len(pasts) == 1 or name in (*ADDITIONS, "dropout"))
        for x in made:
            self._keep(x, past)

    def _weights_in(self, x: Tensor) -> tuple[str, ...]:
        if id(x) in self.names:
            return (self.names[id(x)],)
        return self.products.get(x, ())

    def _past(
        self,
        pasts: list[_Past],
        *,
        norms: frozenset[str] = frozenset(),
        waiting: frozenset[str] | None = None,
        keeps: bool = False,
    ) -> _Past:
        """A new event; ``waiting`` None hands on what waits, and ``keeps`` the stream."""
        event, before, stream = len(self.made), 0, 0
        for past in pasts:
            before |= past.before
            stream |= past.stream if keeps else 0
        if waiting is None:
            waiting = frozenset().union(*(past.waiting for past in pasts))
            norms = norms or frozenset().union(*(past.norms for past in pasts))
        past = _Past(event, before | 1 << event, stream | 1 << event, waiting, norms)
        self.made.append(past)
        return past

    def _keep(self, x: Tensor, past: _Past) -> None:
        self.pasts[x] = past

    def _note(self, names: Iterable[str], follow: Follow) -> None:
        for name in names:
            self.seen.follows.setdefault(name, follow)

    def _product(self, name: str, pasts: list[_Past], weights: list[str]) -> _Past:
        for past in pasts:
            self._note(past.waiting, Follow("linear"))
        waiting = frozenset(weights)
        if name in ATTENTION:
            waiting = frozenset(w for w in weights if w.endswith("out_proj.weight"))
            self._note(set(weights) - waiting, Follow("attention"))
        elif name in PRODUCTS and name.startswith(("lstm", "gru", "rnn")):
            self._note(weights, Follow("gates"))
            waiting = frozenset()
        past = self._past(pasts, waiting=waiting)
        self.used[past.event] = tuple(weights)
        return past

    def _activation(self, activation: Follow, pasts: list[_Past]) -> _Past:
        for past in pasts:
            self._note(past.waiting, activation)
        past = self._past(pasts, waiting=frozenset())
        self.activated[past.event] = activation.name
        return past

    def _addition(self, a: _Past, b: _Past) -> None:
        """Keep it if it is residual: one side carries, or is a projection of, what the other grew from."""
        for skip, branch in ((a, b), (b, a)):
            if carried := skip.stream & branch.before:
                grown = branch.before & ~self.made[_latest(carried)].before
                if self._weights(grown):
                    self._branch(branch, self.made[_latest(carried)], grown)
                    return
        common = a.before & b.before
        if not common:
            return
        fork = self.made[_latest(common)]
        for skip, branch in ((a, b), (b, a)):
            short, grown = skip.before & ~fork.before, branch.before & ~fork.before
            projection, others = self._weights(short), self._weights(grown)
            activated = any(short >> event & 1 for event in self.activated)
            if len(projection) == 1 < len(others) and not activated and projection[0] not in others:
                if not grown & self.additions:  # whole residual blocks are no branch
                    self._branch(branch, fork, grown)
                return

    def _weights(self, events: int) -> list[str]:
        return [name for event, names in self.used.items() if events >> event & 1 for name in names]

    def _branch(self, branch: _Past, fork: _Past, grown: int) -> None:
        last = branch.waiting - fork.waiting
        ends = [name for event, name in self.activated.items() if grown >> event & 1]
        weights = tuple(dict.fromkeys(self._weights(grown)))
        found = Branch(
            weights=weights,
            last=tuple(name for name in weights if name in last),
            norms=tuple(sorted(branch.norms - fork.norms)),
            activation="" if last or not ends else ends[-1],
        )
        if found not in self.seen.branches:
            self.seen.branches.append(found)
        self.additions |= 1 << len(self.made)


def _latest(events: int) -> int:
    return events.bit_length() - 1


def _activation(name: str, args: Any, kwargs: Any) -> Follow | None:
    if name in ("clamp", "clamp_min"):  # relu by another name
        floor = kwargs.get("min", args[1] if len(args) > 1 else None)
        return Follow("relu") if isinstance(floor, int | float) and floor == 0 else None
    if name == "scaled_dot_product_attention":
        return Follow("attention")
    if name not in ACTIVATIONS:
        return None
    if name not in SLOPES:
        return Follow("linear" if name in ("glu", "softmax", "log_softmax") else name)
    slope = kwargs.get("negative_slope", args[1] if len(args) > 1 else None)
    return Follow(name, float(slope) if isinstance(slope, int | float) else SLOPES[name])


def follow(model: nn.Module, batch: Batch, seed: int = 0) -> Seen:
    """Run the model on the first samples of a batch, and say what follows each weight and where the branches are.

    Args:
        model: is left as it was.
        batch: at most two of its samples are used.
        seed: of random draws in the model.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 1))
    >>> x = torch.zeros(4, 2)
    >>> {name: str(what) for name, what in follow(model, Batch((x,), x, 0, 4)).follows.items()}
    {'0.weight': 'relu follows', '3.weight': "the model's output"}
    """
    from kingpost.build.initialise.weights import find_weights

    known = find_weights(model).names
    named = {id(p): name for name, p in model.named_parameters() if name in known}
    few = batch.rows(0, 2)
    watch = _Watch(named, {id(p): name for name, p in _norm_weights(model)})
    watch.start(few.inputs)
    with watch:
        outputs = run(model, few, seed)
    watch.finish(tree_leaves(outputs))
    return watch.seen


def _norm_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The gains of norms; somebody's own norm is known by its class's name."""
    for path, module in model.named_modules():
        own = module._parameters.get("weight")
        if own is not None and own.ndim == 1 and "Norm" in type(module).__name__:
            yield f"{path}.weight".lstrip("."), own
