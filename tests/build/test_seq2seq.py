"""Attention over encoder states, and the recurrent translator: masks, teacher forcing, and writing by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kingpost.build.blocks.seq_attention import Score, SequenceAttention
from kingpost.build.generate import beam_search
from kingpost.build.nets.seq2seq import Seq2Seq, Seq2SeqNet, pair_facts
from kingpost.errors import RecipeError

PAD, BEGIN, END, SOURCE, TARGET = 0, 1, 2, 13, 11
SCORES: tuple[Score, ...] = get_args(Score)
KINDS: tuple[Any, ...] = ("lstm", "gru", "rnn")
# Both sides add the same few dozen numbers around 1, perhaps in another order, over at most nine steps.
CLOSE = {"rtol": 0.0, "atol": 1e-13}


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def words(b: int, t: int, vocabulary: int, seed: int = 2) -> Tensor:
    return torch.randint(3, vocabulary, (b, t), generator=torch.Generator().manual_seed(seed))


def translator(kind: Any = "gru", attention: Any = "additive", **more: Any) -> Seq2SeqNet:
    net = Seq2SeqNet(kind, SOURCE, TARGET, width=8, depth=2, attention=attention, padding=PAD, **more)
    with torch.no_grad():
        net.target_tokens.weight.normal_()  # scores far enough apart that rounding decides nothing
    return net


def naive(attention: SequenceAttention, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """One query ``(Q,)`` over unpadded keys ``(S, K)``, by the formulas."""
    match attention.score:
        case "additive":
            hidden = [torch.tanh(attention.query.weight @ query + attention.key.weight @ k) for k in keys]
            scores = torch.stack([attention.v.weight[0] @ h for h in hidden])
        case "general":
            scores = torch.stack([query @ (attention.key.weight @ k) for k in keys])
        case _:
            scores = torch.stack([query @ k for k in keys])
            scores = scores / len(query) ** 0.5 if attention.score == "scaled" else scores
    weights = scores.exp() / scores.exp().sum()
    return sum(w * k for w, k in zip(weights, keys, strict=True)), weights  # type: ignore[return-value]


@pytest.mark.parametrize("score", SCORES)
def test_attention_equals_its_formula(score: Score) -> None:
    attention = SequenceAttention(score, 4, 6 if score in ("additive", "general") else 4)
    query, keys, lengths = numbers(3, 2, 4), numbers(3, 5, 6 if score in ("additive", "general") else 4), [5, 1, 3]
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    context, weights = attention(query, keys, real)
    for b, n in enumerate(lengths):
        for t in range(2):
            expected, shares = naive(attention, query[b, t], keys[b, :n])
            torch.testing.assert_close(context[b, t], expected, **CLOSE)
            torch.testing.assert_close(weights[b, t, :n], shares, **CLOSE)
            assert not weights[b, t, n:].any()
    assert attention(query, keys, torch.zeros_like(real))[0].isfinite().all()
    whole = attention(query, keys, torch.ones_like(real))[0]
    assert torch.equal(attention(query, keys)[0], whole)


def test_scaled_is_torchs_own() -> None:
    query, keys = numbers(3, 2, 4), numbers(3, 5, 4)
    theirs = F.scaled_dot_product_attention(query, keys, keys)
    torch.testing.assert_close(SequenceAttention("scaled", 4, 4)(query, keys)[0], theirs, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", [*SCORES, "none"])
def test_padding_changes_nothing(kind: Any, attention: Any) -> None:
    net, source, target = translator(kind, attention), words(3, 6, SOURCE), words(3, 5, TARGET)
    padded = torch.cat([source, torch.full((3, 4), PAD)], 1)
    torch.testing.assert_close(net(padded, target), net(source, target), **CLOSE)
    padded[1, 2:] = PAD
    torch.testing.assert_close(net(padded, target)[1:2], net(source[1:2, :2], target[1:2]), **CLOSE)
    one_by_one = torch.cat([net(s, t) for s, t in zip(padded.split(1), target.split(1), strict=True)])
    torch.testing.assert_close(net(padded, target), one_by_one, **CLOSE)


@pytest.mark.parametrize("attention", ["additive", "none"])
def test_a_position_sees_the_source_and_the_past_only(attention: Any) -> None:
    net, source, target = translator(attention=attention), words(2, 6, SOURCE), words(2, 5, TARGET)
    for t in range(1, 5):
        changed = target.clone()
        changed[:, t:] = 3 + (changed[:, t:] - 2) % 8
        assert torch.equal(net(source, target)[:, :t], net(source, changed)[:, :t])
        assert not torch.equal(net(source, target)[:, t], net(source, changed)[:, t])
    other = source.clone()
    other[:, 0] = 3 + (other[:, 0] - 2) % 10
    assert bool((net(source, target) != net(other, target)).any(2).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", [*SCORES, "none"])
def test_one_small_step_lowers_the_loss(kind: Any, attention: Any) -> None:
    net = Seq2SeqNet(kind, SOURCE, TARGET, width=8, attention=attention, padding=PAD, tied=kind != "lstm")
    source, target = words(4, 6, SOURCE), words(4, 5, TARGET)
    source[0, 4:] = PAD

    def loss() -> Tensor:
        return F.cross_entropy(net(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())

    before = loss()
    before.backward()
    for key, p in net.named_parameters():
        assert p.grad is not None and bool(p.grad.any()), key
    slope = sum(float((p.grad**2).sum()) for p in net.parameters() if p.grad is not None)
    torch.optim.SGD(net.parameters(), lr=1e-3).step()
    # First order: the gain is lr |g|^2; curvature over so small a step takes away some percent at most.
    assert float((before - loss()).detach()) == pytest.approx(1e-3 * slope, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_step_by_step_is_the_forward_pass(kind: Any) -> None:
    net, source, target = translator(kind), words(3, 6, SOURCE), words(3, 5, TARGET)
    source[1, 3:] = PAD
    cache = net.new_cache(5, source)
    steps = [net.extend(target[:, t : t + 1], cache) for t in range(5)]
    torch.testing.assert_close(torch.cat(steps, 1), net(source, target), **CLOSE)


def greedy(net: Seq2SeqNet, source: Tensor, length: int) -> list[list[int]]:
    """By hand: the likeliest token each time, with the whole target run again."""
    answers = []
    for row in source.split(1):
        text = [BEGIN]
        while len(text) <= length and text[-1] != END:
            text.append(int(net(row, torch.tensor([text]))[0, -1].argmax()))
        answers.append(text[1:])
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_is_greedy_and_stops_at_the_end(kind: Any) -> None:
    net, source = translator(kind), words(12, 6, SOURCE)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0)  # so that sources differ in what is written, and some end before the length
    written, expected = net.generate(source, begin=BEGIN, end=END, length=8), greedy(net, source, 8)
    lengths = {len(row) for row in expected}
    assert len(lengths) > 1 and 8 in lengths  # the case is worth something: some end early, some do not
    assert written.dtype == torch.int64 and written.shape[1] == max(lengths)
    for row, answer in zip(written.tolist(), expected, strict=True):
        assert row == answer + [PAD] * (written.shape[1] - len(answer))
    assert net.generate(source[:1], begin=BEGIN, end=END, length=8).tolist()[0] == expected[0]


def test_beams_find_what_searching_without_the_cache_finds() -> None:
    net, source = translator(), words(5, 6, SOURCE)
    source[2, 2:] = PAD
    prompt = torch.full((5, 1), BEGIN)
    cached = beam_search(net, prompt, 6, beams=3, end=END, inputs=(source,))
    whole = beam_search(net, prompt, 6, beams=3, end=END, inputs=(source,), use_cache=False)
    for a, b in zip(cached, whole, strict=True):
        assert [h.tokens.tolist() for h in a] == [h.tokens.tolist() for h in b]
    best = net.generate(source, begin=BEGIN, end=END, length=6, beams=3)
    for row, found in zip(best.tolist(), cached, strict=True):
        text = found[0].tokens.tolist()[1:]
        assert row == text + [PAD] * (len(row) - len(text))


def test_it_learns_to_reverse_only_what_it_attends_to() -> None:
    """A few hundred steps on reversing strings: with attention the words come out right, and generate writes them."""
    torch.manual_seed(0)
    net = Seq2SeqNet("gru", SOURCE, SOURCE, width=32, attention="general", padding=PAD)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    ends, begins = torch.full((64, 1), END), torch.full((64, 1), BEGIN)
    for step in range(200):
        text = words(64, 5, SOURCE, seed=step)
        target = torch.cat([text.flip(1), ends], 1)
        loss = F.cross_entropy(net(text, torch.cat([begins, target[:, :-1]], 1)).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    text = words(64, 5, SOURCE, seed=1000)
    written = net.generate(text, begin=BEGIN, end=END, length=8)
    right = (written[:, :6] == torch.cat([text.flip(1), ends], 1)).double().mean()
    assert right > 0.9  # chance is 0.1


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # export: torch's own layers list their weights twice
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # compile: torch looks at it, and says so, where it pauses
def test_plans_exports_and_compiles() -> None:
    for kind in KINDS:
        net, source, target = translator(kind), words(3, 6, SOURCE), words(3, 5, TARGET)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert net(mode.from_tensor(source), mode.from_tensor(target)).shape == (3, 5, TARGET)
    program = torch.export.export(net, (source, target), strict=False)
    torch.testing.assert_close(program.module()(source, target), net(source, target), **CLOSE)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager")(source, target), net(source, target), **CLOSE)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_counts_in_closed_form() -> None:
    h, gru = 8, lambda i, w: 3 * w * (i + w + 2)
    shared = SOURCE * h + TARGET * h + TARGET + 2 * h * h + 2 * 2 * gru(h, h // 2) + 2 * gru(h, h)
    extra = {"additive": 2 * h * h + h, "general": h * h, "dot": 0, "scaled": 0, "none": 0}
    for attention, more in extra.items():
        assert count(translator(attention=attention)) == shared + more
    assert count(translator(attention="dot", tied=False)) == shared + TARGET * h


def test_the_option_makes_what_it_says() -> None:
    data = pair_facts(SOURCE, TARGET, 7)
    net = Seq2Seq(size="medium", width=8, attention="none").make(data, TARGET)
    assert len(net.decoder.layers) == 2 and net.attention is None and net.padding == 0
    assert {f.name: f.value for f in Seq2Seq().derived(data)} == {"model.depth": 1, "model.width": 256}
    with pytest.raises(RecipeError, match="width: got 7"):
        Seq2Seq(width=7)
    with pytest.raises(RecipeError, match="wants 5 outputs, but there are 11 target tokens"):
        Seq2Seq().make(data, 5)
    with pytest.raises(ValueError, match="score='dot' needs queries and keys of one width, got 4 and 6; use general"):
        SequenceAttention("dot", 4, 6)
    with pytest.raises(ValueError, match="width=3 has no effect on score='dot'"):
        SequenceAttention("dot", 4, 4, width=3)
