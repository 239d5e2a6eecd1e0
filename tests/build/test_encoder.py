"""The transformer encoder and its embeddings: padding, pooling, order of words, sizes and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kingpost.build.blocks.embeddings import CategoryEmbeddings, InputEmbedding, word_embedding
from kingpost.build.blocks.positions import LearnedPositions
from kingpost.build.listing import count
from kingpost.build.nets.encoder import Encoder, EncoderNet
from kingpost.errors import RecipeError
from kingpost.net import token_facts
from kingpost.source import DataFacts
from net_checks import survives

WORDS, CONTEXT = 13, 9


def encoder(**more: Any) -> EncoderNet:
    torch.manual_seed(0)
    return EncoderNet(WORDS, 3, CONTEXT, depth=2, width=8, heads=2, **{"padding": 0, **more})


def texts(lengths: tuple[int, ...] = (9, 4, 1)) -> Tensor:
    """Sentences of these lengths, padded with 0."""
    rows = torch.randint(1, WORDS, (len(lengths), CONTEXT), generator=torch.Generator().manual_seed(2))
    return rows * (torch.arange(CONTEXT) < torch.tensor(lengths)[:, None])


FORMS = [
    {"pooling": pooling, "order": order, "positions": positions}
    for pooling in ("first", "mean")
    for order in ("pre", "post")
    for positions in ("learned", "sinusoidal", "rotary")
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form.values()))
def test_padding_changes_nothing(form: dict[str, Any]) -> None:
    net, x = encoder(**form).eval(), texts()
    whole = net(x)
    for row, length in enumerate((9, 4, 1)):
        torch.testing.assert_close(net(x[row : row + 1, :length]), whole[row : row + 1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS[::3], ids=lambda form: " ".join(form.values()))
def test_padding_gets_no_gradient(form: dict[str, Any]) -> None:
    net = encoder(**form)
    net(texts()).sum().backward()
    table = net.embed.first.weight
    assert not table[0].any() and not table.grad[0].any() and table.grad[1:].any()  # type: ignore[index,union-attr]


def test_a_text_of_padding_alone_is_finite() -> None:
    net = encoder()
    y = net(torch.zeros(2, CONTEXT, dtype=torch.long))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_the_order_of_words_matters_only_by_positions(positions: str) -> None:
    net, x = encoder(positions=positions, padding=None).eval(), texts((9,))
    with torch.no_grad():
        for module in net.modules():  # at the start, vectors of 0.02 make attention all but blind
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.mul_(20)
    backwards = x.flip(1)
    assert (net(backwards) - net(x)).abs().max() > 1e-3
    if positions == "learned":
        with torch.no_grad():
            net.embed.positions.weight.zero_()  # type: ignore[union-attr,operator]
        torch.testing.assert_close(net(backwards), net(x), rtol=0, atol=1e-12)


def test_every_position_sees_every_other() -> None:
    net = encoder(padding=None).eval()
    x = torch.randn(1, CONTEXT, 8, requires_grad=True)
    y = x
    for block in net.blocks:
        y = block(y)
    for position in (0, CONTEXT - 1):
        (g,) = torch.autograd.grad(y[0, position].square().sum(), x, retain_graph=True)
        assert (g.abs().sum(2) > 0).all()


@pytest.mark.parametrize("form", [FORMS[0], FORMS[11]], ids=lambda form: " ".join(form.values()))
def test_survives_everything(form: dict[str, Any], tmp_path: Path) -> None:
    survives(lambda: encoder(**form), (texts(),), tmp_path)


def test_reads_series_of_numbers(tmp_path: Path) -> None:
    facts = DataFacts(task="regression", inputs=(((7, 5), torch.float64),), target_shape=(2,))
    net = Encoder(depth=1, width=8, heads=2)
    assert facts.form in net.reads
    survives(lambda: net.make(facts, 2), (torch.randn(3, 7, 5),), tmp_path)


@pytest.mark.parametrize("size", ["bert-base-uncased", "bert-large-uncased"])
def test_parameters_as_published(size: str) -> None:
    assert count(Encoder, size) == Encoder.sizes[size].parameters


def test_fields_beside_a_size_win() -> None:
    with torch.device("meta"):
        net = Encoder(size="bert-base-uncased", depth=2, pooling="mean").make(token_facts(100, 16, 3, padding=0), 3)
    assert len(net.blocks) == 2 and isinstance(net.pooler, nn.Identity)
    assert {f.name for f in Encoder(size="bert-base-uncased").derived(token_facts(9, 9))} == {"model.heads"}


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RecipeError, match="heads: got 3, which does not divide the width 128; use 2"):
        Encoder(heads=3)
    with pytest.raises(RecipeError, match="positions: rotary positions come in pairs, but there are 5 numbers"):
        Encoder(width=15, heads=3, positions="rotary")
    with pytest.raises(ValueError, match="reaches position 10, but only 9 positions are learned"):
        encoder()(torch.ones(1, 10, dtype=torch.long))
    with pytest.raises(ValueError, match="padding: the token 7 is none of the 5 words"):
        word_embedding(5, 3, padding=7)


def test_words_positions_and_segments_are_summed() -> None:
    embed = InputEmbedding(word_embedding(7, 4), 4, LearnedPositions(6, 4), segments=2, scale=3.0, norm=nn.LayerNorm(4))
    x, kind = torch.tensor([[1, 2, 2]]), torch.tensor([[0, 0, 1]])
    rows = [
        3 * embed.first.weight[w] + embed.positions.weight[p] + embed.segments.weight[k]  # type: ignore[union-attr,index]
        for w, p, k in [(1, 2, 0), (2, 3, 0), (2, 4, 1)]
    ]
    expected = torch.nn.functional.layer_norm(torch.stack(rows), (4,))
    torch.testing.assert_close(embed(x, kind, start=2)[0], expected, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="segments were given to an embedding that has none"):
        InputEmbedding(word_embedding(7, 4), 4)(x, kind)


def test_a_padding_row_stays_zero_while_the_others_learn() -> None:
    table = word_embedding(5, 3, padding=2)
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.1, weight_decay=0.1)
    before = table.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        table(torch.tensor([0, 2, 2, 4])).sum().backward()
        optimizer.step()
    assert not table.weight[2].any() and (table.weight - before).detach()[[0, 4]].abs().min() > 0.1


def test_categories_stand_beside_the_numbers() -> None:
    embed = CategoryEmbeddings([3, 10], widths=[2, 4])
    numbers, codes = torch.randn(5, 3), torch.tensor([[0, 9], [1, 0], [2, 3], [1, 1], [0, 0]])
    y = embed(numbers, codes)
    assert torch.equal(y[:, :3], numbers)
    for row in range(5):
        assert torch.equal(y[row, 3:5], embed.columns[0].weight[codes[row, 0]])  # type: ignore[index]
        assert torch.equal(y[row, 5:], embed.columns[1].weight[codes[row, 1]])  # type: ignore[index]
    assert not y[4, 3:].any()  # categories that were not in the training data
    with pytest.raises(ValueError, match=r"got codes \(5, 3\), expected \(B, 2\)"):
        embed(numbers, torch.zeros(5, 3, dtype=torch.long))
    with pytest.raises(IndexError):
        embed(numbers, codes + 3)
    with pytest.raises(ValueError, match="expected one width of at least 1 for each column"):
        CategoryEmbeddings([3, 10], widths=[2])


def test_category_vectors_start_as_long_as_a_standardised_number() -> None:
    torch.manual_seed(0)
    table = CategoryEmbeddings([3000]).columns[0].weight.detach()  # type: ignore[union-attr]
    # Mean square of 2,999 vectors of 142 numbers: a relative standard error of sqrt(2 / 425,858) = 0.2 %.
    assert float(table[1:].square().sum(1).mean()) == pytest.approx(1.0, rel=0.01)
