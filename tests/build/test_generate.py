"""Generation against loops written out and brute force over all sequences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kingpost.build.generate import Hypothesis, Incremental, beam_search, generate, probabilities
from kingpost.build.nets.gpt import GPTNet
from kingpost.build.nets.recurrent_lm import RecurrentLMNet

V, CONTEXT = 5, 12
LLAMA: dict[str, Any] = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "bias": False, "tied": False}


def model_of(kind: str) -> nn.Module:
    """A small model whose next token clearly depends on those before it."""
    torch.manual_seed(3)
    if kind == "lstm":
        model: nn.Module = RecurrentLMNet("lstm", V, width=8)
    else:
        more = {**LLAMA, "kv_heads": 2} if kind == "llama" else {}
        model = GPTNet(V, context=CONTEXT, depth=2, width=16, heads=4, **more)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


class Fixed(nn.Module):
    """Scores that do not depend on the tokens; runs the whole sequence each time."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores.expand(*tokens.shape, len(self.scores))


class Translator(nn.Module):
    """Source and target in, scores out: an encoder-decoder of two lines."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source, self.target, self.head = nn.Embedding(V, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, V)
        for p in self.parameters():
            nn.init.normal_(p)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        state = self.source(source).sum(1)[None]
        return self.head(self.target(self.source(target), state)[0])


each_model = pytest.mark.parametrize("kind", ["gpt2", "llama", "lstm"])
PROMPTS = torch.tensor([[1, 2, 3], [4, 0, 1]])


def likeliest(model: nn.Module, prompt: Tensor, tokens: int) -> Tensor:
    """Greedy, written out."""
    for _ in range(tokens):
        prompt = torch.cat((prompt, model(prompt)[:, -1].argmax(-1, keepdim=True)), 1)
    return prompt


@each_model
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_the_likeliest_token_each_time(kind: str, use_cache: bool) -> None:
    model = model_of(kind)
    got = torch.stack(generate(model, PROMPTS, 9, temperature=0, use_cache=use_cache))
    assert torch.equal(got, likeliest(model, PROMPTS, 9))
    assert len({tuple(row) for row in got.tolist()}) == 2


@each_model
def test_with_and_without_cache_the_samples_are_the_same(kind: str) -> None:
    model = model_of(kind)
    assert isinstance(model, Incremental)
    a, b = (generate(model, PROMPTS, 9, top_p=0.95, seed=4, use_cache=use) for use in (True, False))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], generate(model, PROMPTS, 9, top_p=0.95, seed=5)[0])


@each_model
def test_prompts_of_any_lengths_are_as_if_alone(kind: str) -> None:
    model = model_of(kind)
    prompts = [torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4, 4]), torch.tensor([0, 1, 2, 3])]
    together = generate(model, prompts, 6, temperature=0)
    for prompt, row in zip(prompts, together, strict=True):
        assert torch.equal(row, generate(model, prompt, 6, temperature=0)[0])
        assert torch.equal(row[: len(prompt)], prompt)
    drawn = generate(model, prompts, 6, seed=2)
    assert torch.equal(drawn[0], generate(model, prompts[0], 6, seed=2)[0])  # whoever else is in the batch
    assert torch.equal(generate(model, prompts, 3, seed=2)[2], drawn[2][:5])  # fewer tokens are the first of more


def test_beyond_its_context_a_model_sees_the_last_tokens() -> None:
    model, row = model_of("gpt2"), PROMPTS[:1]
    for _ in range(20):
        row = torch.cat((row, model(row[:, -CONTEXT:])[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(generate(model, PROMPTS[:1], 20, temperature=0)[0], row[0])
    short = PROMPTS[:1]
    for _ in range(6):
        short = torch.cat((short, model(short[:, -4:])[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(generate(model, PROMPTS[:1], 6, temperature=0, context=4)[0], short[0])


def test_probabilities_against_a_loop() -> None:
    scores = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    for temperature, top_k, top_p in itertools.product((0.5, 1.0, 3.0), (None, 1, 3), (None, 0.3, 0.8, 1.0)):
        got = probabilities(scores, temperature, top_k, top_p)
        for row, expected_of in zip(got, scores, strict=True):
            weights = {i: math.exp(float(s) / temperature) for i, s in enumerate(expected_of)}
            ranked = sorted(weights, key=lambda i: -weights[i])[: top_k or 7]
            total, kept, reached = sum(weights[i] for i in ranked), [], 0.0
            for i in ranked:
                if top_p is None or reached < top_p - 1e-12:
                    kept.append(i)
                reached += weights[i] / total
            assert set(row.nonzero().flatten().tolist()) == set(kept)
            for i in kept:
                assert float(row[i]) == pytest.approx(weights[i] / sum(weights[j] for j in kept), rel=1e-12)


def test_draws_follow_the_distribution() -> None:
    scores = [1.0, 0.0, -1.0, 2.0, 0.5]
    drawn = generate(Fixed(scores), [torch.tensor([0])] * 40, 500, temperature=1.5, top_k=4, seed=1)
    counts = torch.cat([row[1:] for row in drawn]).bincount(minlength=5).double()
    p = probabilities(torch.tensor([scores]), 1.5, 4)[0]
    assert counts[2] == 0 == p[2]
    kept = p > 0
    chi_squared = float(((counts - 20_000 * p)[kept] ** 2 / (20_000 * p[kept])).sum())
    assert chi_squared < 16.3  # three degrees of freedom: exceeded by chance once in a thousand seeds


def test_low_temperature_and_one_candidate_are_greedy() -> None:
    model = model_of("gpt2")
    greedy = generate(model, PROMPTS, 9, temperature=0)
    for options in ({"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}):
        drawn = generate(model, PROMPTS, 9, seed=7, **options)
        assert all(torch.equal(a, b) for a, b in zip(greedy, drawn, strict=True))


def test_a_sequence_stops_at_its_end() -> None:
    model = model_of("gpt2")
    free = generate(model, PROMPTS, 9, seed=1)
    stopped = generate(model, PROMPTS, 9, seed=1, end=2)
    for prompt, whole, cut in zip(PROMPTS, free, stopped, strict=True):
        new = whole[len(prompt) :].tolist()
        length = new.index(2) + 1 if 2 in new else 9
        assert torch.equal(cut, whole[: len(prompt) + length])
    assert min(len(row) for row in stopped) < 12  # it happened


def test_the_model_keeps_its_mode_and_gets_no_gradients() -> None:
    model = model_of("gpt2").train()
    model.blocks[0].eval()  # type: ignore[union-attr,operator]
    model.drop.p = 0.9  # type: ignore[union-attr,assignment]
    assert torch.equal(generate(model, PROMPTS, 2, temperature=0)[0], generate(model, PROMPTS, 2, temperature=0)[0])
    assert model.training and not model.blocks[0].training  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters())


def every_sequence(tokens: int, end: int | None) -> Iterator[tuple[int, ...]]:
    """All that can be written: sequences that end, or are as long as may be."""
    for length in range(1, tokens + 1):
        for text in itertools.product(range(V), repeat=length):
            if end not in text[:-1] and (length == tokens or text[-1] == end):
                yield text


def brute_force(model: nn.Module, prompt: Tensor, tokens: int, end: int | None, power: float) -> list[Hypothesis]:
    found = []
    for length, texts in itertools.groupby(every_sequence(tokens, end), key=len):
        new = torch.tensor(list(texts))
        whole = torch.cat((prompt.expand(len(new), -1), new), 1)
        log_p = model(whole)[:, -length - 1 : -1].log_softmax(-1).gather(2, new[:, :, None])
        totals = log_p.sum((1, 2)).detach() / length**power
        found += [Hypothesis(row, score) for row, score in zip(whole, totals.tolist(), strict=True)]
    return sorted(found, key=lambda h: -h.score)


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, -0.5])
def test_a_beam_search_that_is_wide_enough_finds_the_best_of_all_sequences(end: int | None, power: float) -> None:
    model = model_of("llama")
    every = [brute_force(model, prompt, 4, end, power) for prompt in PROMPTS]
    wide = beam_search(model, PROMPTS, 4, beams=V**4, end=end, length_penalty=power)
    for expected, got in zip(every, wide, strict=True):
        assert len(got) == len(expected)
        assert [h.tokens.tolist() for h in got] == [h.tokens.tolist() for h in expected]
        assert [h.score for h in got] == pytest.approx([h.score for h in expected], abs=1e-12)  # sums of 4 logarithms


def twin(model: nn.Module, prompt: Tensor, tokens: int, beams: int, end: int, power: float) -> list[Hypothesis]:
    """Beam search on lists, without a cache and without an early stop."""
    live, finished = [(0.0, prompt)], list[Hypothesis]()
    for length in range(1, tokens + 1):
        candidates = []
        for total, text in live:
            for token, log_p in enumerate(model(text[None])[0, -1].log_softmax(-1).tolist()):
                candidates.append((total + log_p, torch.cat((text, torch.tensor([token])))))
        candidates.sort(key=lambda c: -c[0])
        finished += [Hypothesis(text, total / length**power) for total, text in candidates[:beams] if text[-1] == end]
        live = [(total, text) for total, text in candidates if text[-1] != end][:beams]
    finished += [Hypothesis(text, total / tokens**power) for total, text in live]
    return sorted(finished, key=lambda h: -h.score)[:beams]


@each_model
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_a_narrow_beam_search_equals_its_slow_twin(kind: str, use_cache: bool, beams: int) -> None:
    model = model_of(kind)
    for power in (0.0, 1.0):
        got = beam_search(model, PROMPTS, 7, beams=beams, end=2, length_penalty=power, use_cache=use_cache)
        for prompt, row in zip(PROMPTS, got, strict=True):
            expected = twin(model, prompt, 7, beams, 2, power)
            assert [h.tokens.tolist() for h in row] == [h.tokens.tolist() for h in expected]
            assert [h.score for h in row] == pytest.approx([h.score for h in expected], abs=1e-12)


def test_one_beam_is_greedy() -> None:
    model = model_of("gpt2")
    assert torch.equal(beam_search(model, PROMPTS, 9, beams=1)[1][0].tokens, likeliest(model, PROMPTS, 9)[1])


def test_models_with_an_encoder() -> None:
    model, sources = Translator(), torch.tensor([[1, 2], [3, 3], [0, 4]])
    begin = torch.zeros(3, 1, dtype=torch.long)
    target = begin
    for _ in range(6):
        target = torch.cat((target, model(sources, target)[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(torch.stack(generate(model, begin, 6, temperature=0, inputs=(sources,))), target)
    for row, source in zip(beam_search(model, begin, 6, beams=3, end=2, inputs=(sources,)), sources, strict=True):

        class Bound(nn.Module):
            def forward(self, target: Tensor, source: Tensor = source) -> Tensor:
                return model(source.expand(len(target), 2), target)

        expected = twin(Bound(), torch.tensor([0]), 6, 3, 2, 1.0)
        assert [h.tokens.tolist() for h in row] == [h.tokens.tolist() for h in expected]
    with pytest.raises(ValueError, match="more than the 3 that the model can look at, and a decoder cannot lose"):
        generate(model, begin, 6, inputs=(sources,), context=3)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), {}, r"prompt: expected at least one token.*of shape \(0,\); begin with"),
        (torch.zeros(1, 2), {}, "prompt: expected .* whole numbers"),
        (PROMPTS, {"temperature": -1.0}, "temperature: .* got -1.0; 0 is greedy"),
        (PROMPTS, {"top_k": 0}, "top_k: .* got 0"),
        (PROMPTS, {"top_p": 0.0}, "top_p: .* got 0.0"),
        (PROMPTS, {"tokens": 0}, "tokens: at least one is to be written, got 0"),
    ],
)
def test_errors(prompt: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(Fixed([0.0, 1.0]), prompt, **{"tokens": 3, **options})
    with pytest.raises(ValueError, match=r"beams: .* got 0"):
        beam_search(Fixed([0.0, 1.0]), PROMPTS, 3, beams=0)
