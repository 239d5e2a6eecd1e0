"""Writing with a trained model: greedily, by sampling, or by beam search.

All three ask the model for nothing but the scores of the next token, so they serve decoder-only models, recurrent
ones and encoder-decoder models alike. A model that can keep what it computed for earlier tokens says so by being
:class:`Incremental`; any other one is run on the whole sequence again for each token, with the same result.

Legend of shapes: ``B`` sequences, ``T`` tokens, ``V`` vocabulary, ``K`` beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kingpost import seeds

Prompt = Tensor | Sequence[Tensor]


class Cache(Protocol):
    """What a model keeps of the tokens so far; row ``i`` belongs to sequence ``i``."""

    def reorder(self, rows: Tensor, /) -> None:
        """Make row ``i`` what row ``rows[i]`` was; rows may be repeated or left out."""


@runtime_checkable
class Incremental(Protocol):
    """A model that can go on from where it stopped.

    Attributes:
        context: most tokens that it can look at, or None if there is no such limit.
    """

    context: int | None

    def new_cache(self, capacity: int, *inputs: Tensor) -> Any:
        """An empty :class:`Cache` with room for so many tokens; ``inputs`` are what an encoder reads."""

    def extend(self, tokens_bt: Tensor, cache: Any) -> Tensor:
        """Scores ``(B, T, V)`` at new tokens, which the cache then holds too."""


class Hypothesis(NamedTuple):
    """One result of a beam search: the whole sequence ``(T,)``, and its score (log-probability over length)."""

    tokens: Tensor
    score: float


def generate(
    model: nn.Module,
    prompt: Prompt,
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    end: int | None = None,
    inputs: Sequence[Tensor] = (),
    context: int | None = None,
    use_cache: bool = True,
) -> list[Tensor]:
    """Continue each prompt, one token after another.

    Each sequence draws from its own seeds, so it is the same alone and among others.

    Args:
        model: called as ``model(*inputs, tokens)`` for scores ``(B, T, V)``, or :class:`Incremental`.
        prompt: int64 ``(B, T)``, ``(T,)``, or a list of ``(T,)`` of any lengths (equal lengths run together).
        tokens: at most so many new ones for each prompt.
        temperature: divides the scores; 0 takes the likeliest token each time.
        top_k: draw only from the so many likeliest tokens.
        top_p: draw only from the smallest set of likeliest tokens that has this much probability (Holtzman et al.,
            "nucleus sampling", arXiv 1904.09751).
        seed: of the draws.
        end: a token after which a sequence is finished.
        inputs: what the model reads besides, ``(B, ...)`` each: the source of a translation.
        context: most tokens that the model is shown, by default its own ``context``; a decoder-only model then
            sees the last ones, each time in a new place, so nothing can be kept.
        use_cache: keep what is computed, where model and context allow it; the result is the same.

    Returns:
        One sequence for each prompt: the prompt, the new tokens, and ``end`` if it was drawn.

    Raises:
        ValueError: an argument out of range.

    >>> model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
    >>> [len(row) for row in generate(model, [torch.tensor([1]), torch.tensor([1, 2, 3])], tokens=4)]
    [5, 7]
    """
    _check(tokens, temperature, top_k, top_p)
    prompts = _rows(prompt)
    done: dict[int, Tensor] = {}
    with _judging(model):
        for rows, start in _by_length(prompts):
            given = [x[rows.to(x.device)] for x in inputs]
            draws = torch.stack([torch.rand(tokens, generator=seeds.generator(seed, "generate", int(r))) for r in rows])
            step = _stepper(model, start.shape[1] + tokens, given, context, use_cache)
            written = _continue(step, start, draws.to(start.device), temperature, top_k, top_p, end)
            for row, new in zip(rows.tolist(), written, strict=True):
                done[row] = torch.cat((prompts[row], _until(new, end)))
    return [done[row] for row in range(len(prompts))]


def beam_search(
    model: nn.Module,
    prompt: Prompt,
    tokens: int,
    *,
    beams: int = 4,
    end: int | None = None,
    length_penalty: float = 1.0,
    inputs: Sequence[Tensor] = (),
    context: int | None = None,
    use_cache: bool = True,
) -> list[list[Hypothesis]]:
    """The likeliest continuations that a search of ``beams`` parallel sequences finds.

    The score of a continuation is the sum of its log-probabilities over its number of tokens (``end`` included) to
    the power ``length_penalty``; 0 prefers short ones, 1 compares means.
    Source: Wu et al., "Google's Neural Machine Translation System", arXiv 1609.08144, with a plain power of length.

    Args:
        model: as for :func:`generate`, and so are prompt, tokens, end, inputs, context and use_cache.
        prompt: what is continued.
        tokens: at most so many new ones.
        beams: ``K``, sequences that are followed at once.
        end: a token after which a sequence is finished.
        length_penalty: power of the length.
        inputs: what the model reads besides.
        context: most tokens that the model is shown.
        use_cache: keep what is computed.

    Returns:
        For each prompt, its at most ``beams`` best sequences, best first.

    Raises:
        ValueError: an argument out of range.
    """
    _check(tokens, 1.0, None, None)
    if beams < 1:
        raise ValueError(f"beams: a search follows at least one sequence, got {beams}")
    prompts = _rows(prompt)
    done: dict[int, list[Hypothesis]] = {}
    with _judging(model):
        for rows, start in _by_length(prompts):
            given = [x[rows.to(x.device)] for x in inputs]
            step = _stepper(model, start.shape[1] + tokens, given, context, use_cache)
            found = _search(step, start, tokens, beams, end, length_penalty)
            for row, best in zip(rows.tolist(), found, strict=True):
                done[row] = [Hypothesis(torch.cat((prompts[row], h.tokens)), h.score) for h in best]
    return [done[row] for row in range(len(prompts))]


def probabilities(
    scores: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """What the next token is drawn from: scores ``(B, V)`` to probabilities ``(B, V)`` in 64 bits.

    >>> probabilities(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), top_k=2).round(decimals=3).tolist()
    [[0.731, 0.269, 0.0, 0.0]]
    """
    if temperature == 0:
        return nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).double()
    ordered, tokens = (scores.double() / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    p = ordered.softmax(-1)
    if top_p is not None:
        p = p.where(p.cumsum(-1) - p < top_p, 0.0)  # a token stays if those before it do not yet reach top_p
        p = p / p.sum(-1, keepdim=True)
    return torch.empty_like(p).scatter_(-1, tokens, p)


class _Whole:
    """Runs the model on all tokens again for each new one."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], context: int | None) -> None:
        self.model, self.inputs, self.context = model, list(inputs), context
        self.tokens: Tensor | None = None

    def __call__(self, new_bt: Tensor) -> Tensor:
        """Scores ``(B, V)`` of the token that follows."""
        self.tokens = new_bt if self.tokens is None else torch.cat((self.tokens, new_bt), 1)
        seen = self.tokens if self.context is None else self.tokens[:, -self.context :]
        scores: Tensor = self.model(*self.inputs, seen)[:, -1]
        return scores

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` what row ``rows[i]`` was."""
        self.inputs = [x[rows] for x in self.inputs]
        self.tokens = None if self.tokens is None else self.tokens[rows]


class _Cached:
    """Runs the model on new tokens only."""

    def __init__(self, model: Incremental, inputs: Sequence[Tensor], capacity: int) -> None:
        self.model, self.cache = model, model.new_cache(capacity, *inputs)

    def __call__(self, new_bt: Tensor) -> Tensor:
        """Scores ``(B, V)`` of the token that follows."""
        return self.model.extend(new_bt, self.cache)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` what row ``rows[i]`` was."""
        self.cache.reorder(rows)


def _stepper(
    model: nn.Module, longest: int, inputs: Sequence[Tensor], context: int | None, use_cache: bool
) -> _Whole | _Cached:
    own = model.context if isinstance(model, Incremental) else None
    limit = min((c for c in (own, context) if c is not None), default=None)
    shown = longest - 1  # the last token is written and not read
    fits = limit is None or shown <= limit
    if inputs and not fits:
        raise ValueError(
            f"tokens: the prompt and the new tokens are {longest}, more than the {limit} that the model can look at, "
            f"and a decoder cannot lose its beginning; write at most {limit} tokens"
        )
    if use_cache and fits and isinstance(model, Incremental):
        return _Cached(model, inputs, shown)
    return _Whole(model, inputs, limit)


def _continue(
    step: Callable[[Tensor], Tensor],
    start_bt: Tensor,
    draws_bt: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    end: int | None,
) -> Tensor:
    """New tokens ``(B, at most T)``; what stands after an ``end`` means nothing."""
    written: list[Tensor] = []
    new, ended = start_bt, torch.zeros(len(start_bt), dtype=torch.bool, device=start_bt.device)
    for draw in draws_bt.double().unbind(1):
        p = probabilities(step(new), temperature, top_k, top_p)
        ladder = p.cumsum(-1)
        # Strictly above draw * total stands a rung of positive height, whatever was lost in rounding.
        new = torch.searchsorted(ladder, draw[:, None] * ladder[:, -1:], right=True)
        written.append(new)
        if end is not None:
            ended |= new[:, 0] == end
            if bool(ended.all()):
                break
    return torch.cat(written, 1)


def _search(
    step: _Whole | _Cached, start_bt: Tensor, tokens: int, beams: int, end: int | None, length_penalty: float
) -> list[list[Hypothesis]]:
    b, device = len(start_bt), start_bt.device
    finished: list[list[Hypothesis]] = [[] for _ in range(b)]
    live = torch.zeros(b, 1, dtype=torch.float64, device=device)  # sums of log-probabilities, (B, K)
    texts, new = start_bt[:, None, :0], start_bt  # (B, K, T) written so far; (B K, T) not yet read
    first = torch.arange(b, device=device)[:, None]
    for length in range(1, tokens + 1):
        log_p = step(new).double().log_softmax(-1)
        k, v = live.shape[1], log_p.shape[-1]
        total = (live[:, :, None] + log_p.view(b, k, v)).flatten(1)
        values, places = total.topk(min(2 * beams, k * v))  # at most one candidate of each beam is an end
        parents, words = places // v, places % v
        texts = torch.cat((texts[first, parents], words[:, :, None]), 2)
        ends = [[word == end for word in row] for row in words.tolist()]
        for row, rank in ((r, i) for r in range(b) for i, is_end in enumerate(ends[r][:beams]) if is_end):
            finished[row].append(Hypothesis(texts[row, rank], float(values[row, rank]) / length**length_penalty))
        finished = [_best(row, beams) for row in finished]
        # As many go on in every row: either all candidates are here, or at least `beams` that are no end.
        on = torch.tensor([[i for i, is_end in enumerate(row) if not is_end][:beams] for row in ends], device=device)
        live, texts = values.gather(1, on), texts[first, on]
        reachable = (live[:, 0] / (tokens if length_penalty > 0 else length) ** length_penalty).tolist()
        if all(len(row) == beams and row[-1].score >= best for row, best in zip(finished, reachable, strict=True)):
            return finished
        step.reorder((first * k + parents.gather(1, on)).flatten())
        new = texts[:, :, -1].reshape(-1, 1)
    scores = (live / tokens**length_penalty).tolist()
    return [
        _best([*finished[row], *(Hypothesis(texts[row, i], score) for i, score in enumerate(scores[row]))], beams)
        for row in range(b)
    ]


def _best(hypotheses: list[Hypothesis], beams: int) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: -h.score)[:beams]


def _rows(prompt: Prompt) -> list[Tensor]:
    rows = list(prompt[None] if isinstance(prompt, Tensor) and prompt.ndim == 1 else prompt)
    for row in rows:
        if row.ndim != 1 or row.is_floating_point() or len(row) == 0:
            raise ValueError(
                f"prompt: expected at least one token, whole numbers of shape (T,) each, got {row.dtype} of shape "
                f"{tuple(row.shape)}; begin with a token such as <bos> or a line feed"
            )
    return rows


def _by_length(rows: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers and prompts ``(B, T)`` of each length."""
    for length in sorted({len(row) for row in rows}):
        numbers = [i for i, row in enumerate(rows) if len(row) == length]
        yield torch.tensor(numbers), torch.stack([rows[i] for i in numbers])


def _until(tokens: Tensor, end: int | None) -> Tensor:
    """The tokens up to and including the first ``end``."""
    if end is None or not bool((tokens == end).any()):
        return tokens
    return tokens[: int((tokens == end).int().argmax()) + 1]


@contextmanager
def _judging(model: nn.Module) -> Iterator[None]:
    """No dropout, no gradients."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training


def _check(tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if tokens < 1:
        raise ValueError(f"tokens: at least one is to be written, got {tokens}")
    if temperature < 0:
        raise ValueError(f"temperature: divides the scores, so it is not negative, got {temperature}; 0 is greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: a draw needs at least one token, got {top_k}; None draws from all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: is a probability above 0, got {top_p}; None draws from all")
