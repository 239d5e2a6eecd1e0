"""The encoder-decoder transformer: what it may see, writing with and without a cache, sizes and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kingpost.build.generate import beam_search, generate
from kingpost.build.listing import count
from kingpost.build.nets.seq2seq import pair_facts
from kingpost.build.nets.transformer import STYLES, Transformer, TransformerNet
from kingpost.errors import RecipeError
from net_checks import survives

WORDS, CONTEXT = 13, 9
FORMS: dict[str, dict[str, Any]] = {
    "vaswani": {"order": "post"},
    "pre-norm, learned positions": {"positions": "learned"},
    "t5": STYLES["t5"],
    "two tables, head of its own": {"shared": False, "tied": False, "decoder_depth": 1},
}
all_forms = pytest.mark.parametrize("form", FORMS)


def net(form: str, **more: Any) -> TransformerNet:
    torch.manual_seed(0)
    made = TransformerNet(WORDS, WORDS, CONTEXT, depth=2, width=8, heads=2, **{"padding": 0, **FORMS[form], **more})
    for p in made.parameters():  # far from the start, where scores hardly differ
        nn.init.normal_(p, std=0.5)
    return made.eval()


def sources(lengths: tuple[int, ...] = (7, 4, 1)) -> Tensor:
    rows = torch.randint(3, WORDS, (len(lengths), 7), generator=torch.Generator().manual_seed(2))
    return rows * (torch.arange(7) < torch.tensor(lengths)[:, None])


def targets(rows: int = 3, length: int = 6) -> Tensor:
    return torch.randint(3, WORDS, (rows, length), generator=torch.Generator().manual_seed(3))


@all_forms
def test_padding_of_the_source_changes_nothing(form: str) -> None:
    model, source, target = net(form), sources(), targets()
    whole = model(source, target)
    for row, length in enumerate((7, 4, 1)):
        alone = model(source[row : row + 1, :length], target[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-12)


@all_forms
def test_the_decoder_sees_no_later_token(form: str) -> None:
    model, source, target = net(form), sources(), targets()
    whole = model(source, target)
    for at in range(6):
        changed = target.clone()
        changed[:, at] = (changed[:, at] + 1) % WORDS
        difference = (model(source, changed) - whole).abs().amax((0, 2))
        assert not difference[:at].any() and (difference[at:] > 1e-6).any()


@all_forms
def test_the_decoder_sees_every_token_of_the_source(form: str) -> None:
    model, source, target = net(form), sources((7,)), targets(1)
    whole = model(source, target)
    for at in range(7):
        changed = source.clone()
        changed[:, at] = 3 + (changed[:, at] - 2) % (WORDS - 3)
        assert (model(changed, target) - whole).abs().max() > 1e-6


@all_forms
def test_with_a_cache_scores_are_the_same(form: str) -> None:
    model, source, target = net(form), sources(), targets()
    cache = model.new_cache(6, source)
    pieces = [model.extend(piece, cache) for piece in target.split([1, 2, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(source, target), rtol=0, atol=1e-12)


@all_forms
@pytest.mark.parametrize("beams", [1, 3])
def test_written_with_and_without_a_cache(form: str, beams: int) -> None:
    model, source = net(form), sources()
    prompt = torch.full((3, 1), 1)
    pair = [
        beam_search(model, prompt, 6, beams=beams, end=2, inputs=(source,), use_cache=use_cache)
        for use_cache in (True, False)
    ]
    for cached, plain in zip(*pair, strict=True):
        assert [h.tokens.tolist() for h in cached] == [h.tokens.tolist() for h in plain]
    written = model.generate(source, begin=1, end=2, length=6, beams=beams)
    assert written.dtype == torch.int64 and written.shape[0] == 3 and written.shape[1] <= 6
    for row, best in zip(written, pair[0], strict=True):
        tokens = best[0].tokens[1:]
        assert torch.equal(row[: len(tokens)], tokens) and not row[len(tokens) :].any()
    if beams == 1:
        greedy = generate(model, prompt, 6, temperature=0, end=2, inputs=(source,))
        assert [best[0].tokens.tolist() for best in pair[0]] == [row.tolist() for row in greedy]


def test_learns_to_copy_backwards() -> None:
    """The one test that sees encoder, attention between the two, and writing at work together."""
    torch.manual_seed(0)
    model = TransformerNet(8, 8, 6, depth=1, width=32, heads=2, padding=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    draw = torch.Generator().manual_seed(1)

    def pairs(count: int) -> tuple[Tensor, Tensor, Tensor]:
        words = torch.randint(3, 8, (count, 4), generator=draw)
        begin, end = torch.full((count, 1), 1), torch.full((count, 1), 2)
        return torch.cat([words, end], 1), torch.cat([begin, words.flip(1)], 1), torch.cat([words.flip(1), end], 1)

    for _ in range(250):
        source, shown, target = pairs(64)
        loss = nn.functional.cross_entropy(model(source, shown).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source, _, target = pairs(100)
    written = model.generate(source, begin=1, end=2, length=6)
    right = [row[:5].tolist() == wanted.tolist() for row, wanted in zip(written, target, strict=True)]
    assert sum(right) >= 95  # chance: 5^-4 for each


@pytest.mark.parametrize("form", ["vaswani", "t5", "two tables, head of its own"])
def test_survives_everything(form: str, tmp_path: Path) -> None:
    more = {"padding": 0, **FORMS[form]}
    survives(lambda: TransformerNet(WORDS, WORDS, CONTEXT, 1, 8, 2, **more), (sources(), targets()), tmp_path)


@pytest.mark.parametrize("style", ["vaswani", "t5"])
def test_starts_near_chance(style: str) -> None:
    torch.manual_seed(0)
    model = Transformer(style=style, depth=2, width=64).make(pair_facts(500, 500, 16), 500)
    source, target = (torch.randint(3, 500, (8, 16)) for _ in range(2))
    loss = nn.functional.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())
    # Scores of a normed vector times a table of deviation 1 / sqrt(D): variance 1, which costs about half a nat.
    assert float(loss.detach()) == pytest.approx(6.215 + 0.5, abs=0.3)


def test_tied_and_shared_tables_are_one() -> None:
    model = net("vaswani")
    assert model.head.weight is model.source.first.weight is model.target.first.weight
    apart = net("two tables, head of its own")
    assert len({id(t) for t in (apart.head.weight, apart.source.first.weight, apart.target.first.weight)}) == 3


@pytest.mark.parametrize("size", ["t5-small", "t5-base"])
def test_parameters_as_published(size: str) -> None:
    assert count(Transformer, size) == Transformer.sizes[size].parameters


def test_parameters_of_the_first_transformer_in_closed_form() -> None:
    d, words = 512, 37_000
    attention, feed_forward, norm = 4 * d * (d + 1), 2 * 4 * d * d + 4 * d + d, 2 * d
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    assert count(Transformer, "base") == words * d + 6 * (encoder + decoder)  # the paper rounds up to 65 million


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RecipeError, match=r"shared: the source has 50 tokens and the target 60, .* shared=false"):
        Transformer().make(pair_facts(50, 60, 8), 60)
    with pytest.raises(RecipeError, match="width: got 9, but sines and cosines come in pairs; make it even"):
        Transformer(width=9)
    with pytest.raises(RecipeError, match="heads: got 3, which does not divide the width 256; use 2"):
        Transformer(heads=3)
    with pytest.raises(ValueError, match="tokens: the prompt and the new tokens are 21, more than the 9"):
        net("pre-norm, learned positions").generate(sources(), begin=1, end=2, length=20)
