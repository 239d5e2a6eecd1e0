"""Recurrent blocks and nets: equal to packing and to their written-out cells, blind to padding and to the future."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kingpost.build.blocks.recurrent import GATES, Kind, Recurrent, last, lengths_of, real_steps, reverse
from kingpost.build.blocks.recurrent_cells import Cell, GRUCell, LSTMCell, RNNCell
from kingpost.build.blocks.seq_pooling import AttentionPooling, max_over_time, mean_over_time
from kingpost.build.generate import generate
from kingpost.build.nets.recurrent import RNN, Pool, RecurrentNet
from kingpost.build.nets.recurrent_lm import RecurrentLM, RecurrentLMNet
from kingpost.errors import RecipeError
from kingpost.net import token_facts
from kingpost.source import DataFacts

KINDS: tuple[Kind, ...] = get_args(Kind)
CELLS: dict[Kind, type[Cell]] = {"lstm": LSTMCell, "gru": GRUCell, "rnn": RNNCell}
TORCH: dict[Kind, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
PAD = 0

each_kind = pytest.mark.parametrize("kind", KINDS)
# Both sides add the same few dozen numbers around 1, perhaps in another order, over at most nine steps.
CLOSE = {"rtol": 0.0, "atol": 1e-13}


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tokens(b: int, t: int, vocabulary: int = 13) -> Tensor:
    return torch.randint(1, vocabulary, (b, t), generator=torch.Generator().manual_seed(2))


def as_torch(ours: Recurrent, inputs: int, width: int) -> nn.RNNBase:
    """torch's own stack with the same weights."""
    theirs: nn.RNNBase = TORCH[ours.kind](
        inputs, width, len(ours.layers), batch_first=True, bidirectional=ours.directions == 2
    )
    with torch.no_grad():
        for (depth, layer), direction in itertools.product(enumerate(ours.layers), range(ours.directions)):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                own = f"{name}_l{depth}{'_reverse' * direction}"
                getattr(theirs, own).copy_(getattr(layer[direction], f"{name}_l0"))  # type: ignore[index]
    return theirs


@each_kind
def test_a_layer_is_its_cell_step_by_step(kind: Kind) -> None:
    layer, cell, x = TORCH[kind](3, 5, batch_first=True), CELLS[kind](3, 5), numbers(4, 6, 3)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    state: Any = (torch.zeros(4, 5),) * 2 if kind == "lstm" else torch.zeros(4, 5)
    steps = []
    for x_t in x.unbind(1):
        state = cell(x_t, state)
        steps.append(state[0] if kind == "lstm" else state)
    outputs, end = layer(x)
    torch.testing.assert_close(torch.stack(steps, 1), outputs, **CLOSE)
    torch.testing.assert_close(state, tuple(s[0] for s in end) if kind == "lstm" else end[0], **CLOSE)


@each_kind
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("given_state", [False, True])
def test_equals_packing(kind: Kind, bidirectional: bool, given_state: bool) -> None:
    """Outputs, states and gradients are those of torch's packed sequences."""
    lengths, depth, directions = torch.tensor([7, 1, 4, 6]), 2, 1 + bidirectional
    ours = Recurrent(kind, 3, 5, depth, bidirectional)
    theirs, x = as_torch(ours, 3, 5), numbers(4, 7, 3)
    parts = 2 if kind == "lstm" else 1
    state = tuple(numbers(depth * directions, 4, 5) / (i + 1) for i in range(parts)) if given_state else None
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    their_state: Any = state if state is None or kind == "lstm" else state[0]
    their_outputs, their_end = theirs(packed, their_state)
    their_outputs = pad_packed_sequence(their_outputs, batch_first=True, total_length=7)[0]
    their_ends = their_end if kind == "lstm" else (their_end,)

    outputs, ends = ours(x, lengths, state)
    torch.testing.assert_close(outputs, their_outputs, **CLOSE)
    assert len(ends) == len(their_ends) == parts
    for end, their in zip(ends, their_ends, strict=True):
        torch.testing.assert_close(end, their, **CLOSE)

    weights = [numbers(*part.shape) for part in (outputs, *ends)]
    sum((w * y).sum() for w, y in zip(weights, (outputs, *ends), strict=True)).backward()  # type: ignore[union-attr]
    sum((w * y).sum() for w, y in zip(weights, (their_outputs, *their_ends), strict=True)).backward()
    for (depth_, layer), direction in itertools.product(enumerate(ours.layers), range(directions)):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            theirs_grad = getattr(theirs, f"{name}_l{depth_}{'_reverse' * direction}").grad
            ours_grad = getattr(layer[direction], f"{name}_l0").grad  # type: ignore[index]
            torch.testing.assert_close(ours_grad, theirs_grad, rtol=0, atol=1e-12)  # sums over 18 steps of the above


@each_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_without_lengths_all_steps_count(kind: Kind, bidirectional: bool) -> None:
    ours, x = Recurrent(kind, 3, 5, 2, bidirectional), numbers(4, 7, 3)
    all_outputs, all_ends = ours(x, torch.full((4,), 7))
    outputs, ends = ours(x)
    torch.testing.assert_close(outputs, all_outputs, **CLOSE)
    for end, other in zip(ends, all_ends, strict=True):
        torch.testing.assert_close(end, other, **CLOSE)
    assert torch.equal(ours.sequence(x), outputs)


@each_kind
def test_the_state_carries_on(kind: Kind) -> None:
    ours, x = Recurrent(kind, 3, 5, 2), numbers(2, 7, 3)
    whole, end = ours(x)
    first, between = ours(x[:, :4])
    second, last_end = ours(x[:, 4:], state=between)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **CLOSE)
    for a, b in zip(last_end, end, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@each_kind
def test_summary_is_the_last_layers_state(kind: Kind) -> None:
    ours, lengths = Recurrent(kind, 3, 5, 2, bidirectional=True), torch.tensor([3, 6])
    _, ends = ours(numbers(2, 6, 3), lengths)
    expected = torch.cat([ends[0][2], ends[0][3]], 1)
    torch.testing.assert_close(ours.summary(numbers(2, 6, 3), lengths), expected, **CLOSE)


def test_an_empty_sequence_counts_as_one_step() -> None:
    ours, x = Recurrent("lstm", 3, 5, bidirectional=True), numbers(1, 4, 3)
    a, b = ours(x, torch.tensor([0])), ours(x, torch.tensor([1]))
    assert torch.equal(a[0], b[0])
    assert all(torch.equal(p, q) for p, q in zip(a[1], b[1], strict=True))


@each_kind
def test_parameters_and_start(kind: Kind) -> None:
    net = Recurrent(kind, 3, 5, depth=2, bidirectional=True)
    assert count(net) == sum(2 * GATES[kind] * 5 * (i + 5 + 2) for i in (3, 10))
    if kind == "lstm":
        for layer in itertools.chain(*net.layers):  # type: ignore[arg-type]
            assert torch.equal((layer.bias_ih_l0 + layer.bias_hh_l0)[5:10], torch.ones(5))


def test_dropout_stands_between_layers() -> None:
    net = Recurrent("gru", 3, 5, depth=3)
    x, drops = numbers(2, 4, 3), [m for m in net.modules() if isinstance(m, nn.Dropout)]
    before = net.sequence(x)
    assert len(drops) == 2
    drops[1].p = 1.0
    net.train()
    silent = net.layers[2][0](torch.zeros(2, 4, 5))[0]  # type: ignore[index,operator]
    assert torch.equal(net.sequence(x), silent)
    assert not torch.equal(before, silent)


def test_reverse_and_last() -> None:
    x, lengths = numbers(3, 5, 2), torch.tensor([5, 2, 1])
    turned = reverse(x, lengths)
    for row, n in enumerate(lengths.tolist()):
        assert torch.equal(turned[row, :n], x[row, :n].flip(0))
        assert torch.equal(turned[row, n:], x[row, n:])
        assert torch.equal(last(x, lengths)[row], x[row, n - 1])
    assert torch.equal(reverse(turned, lengths), x)
    assert torch.equal(reverse(x, None), x.flip(1))


def test_pooling_is_that_of_the_cut_sequence() -> None:
    x, lengths, pool = numbers(3, 5, 4), torch.tensor([5, 2, 1]), AttentionPooling(4)
    real = real_steps(lengths, 5)
    for f in (mean_over_time, max_over_time, pool):
        alone = torch.cat([f(x[row : row + 1, :n]) for row, n in enumerate(lengths.tolist())])
        torch.testing.assert_close(f(x, real), alone, **CLOSE)
    weights = torch.tanh(pool.hidden(x[0])) @ pool.v.weight[0]
    expected = sum(w * step for w, step in zip(weights.exp() / weights.exp().sum(), x[0], strict=True))
    torch.testing.assert_close(pool(x, real)[0], expected, **CLOSE)


def text_net(kind: Kind = "lstm", pool: Pool = "last", **more: Any) -> RecurrentNet:
    return RecurrentNet(kind, 6, 3, width=5, pool=pool, vocabulary=13, padding=PAD, bidirectional=True, **more)


@each_kind
@pytest.mark.parametrize("pool", get_args(Pool))
def test_padding_changes_nothing(kind: Kind, pool: Pool) -> None:
    net, words = text_net(kind, pool), tokens(2, 4)
    longer = torch.cat([words, torch.full((2, 3), PAD)], 1)
    torch.testing.assert_close(net(longer), net(words), **CLOSE)
    mixed = longer.clone()
    mixed[1, 2:] = PAD
    torch.testing.assert_close(net(mixed), torch.cat([net(words[:1]), net(words[1:, :2])]), **CLOSE)
    assert net(torch.full((1, 4), PAD)).isfinite().all()


def test_padding_is_only_what_stands_at_the_end() -> None:
    assert lengths_of(torch.tensor([[3, PAD, 4, PAD], [PAD, PAD, PAD, PAD]]), PAD).tolist() == [3, 0]  # type: ignore[union-attr]
    assert lengths_of(tokens(2, 3), None) is None


def nets() -> dict[str, tuple[nn.Module, Tensor, tuple[int, ...]]]:
    torch.manual_seed(0)
    made: dict[str, tuple[nn.Module, Tensor, tuple[int, ...]]] = {}
    for kind in KINDS:
        made[f"{kind} on series"] = (RecurrentNet(kind, 4, 3, width=6, depth=2), numbers(5, 7, 4), (3,))
        made[f"{kind} model"] = (RecurrentLMNet(kind, 13, width=6, depth=2), tokens(5, 7), (7, 13))
    for pool in get_args(Pool):
        made[f"tokens, {pool}"] = (text_net(pool=pool), torch.cat([tokens(5, 6), torch.zeros(5, 2).long()], 1), (3,))
    made["untied model"] = (RecurrentLMNet("lstm", 13, width=6, tied=False), tokens(5, 7), (7, 13))
    return made


each_net = pytest.mark.parametrize("name", list(nets()))


@each_net
def test_nets_train_export_plan_and_do_not_mix_samples(name: str) -> None:
    net, x, expected = nets()[name]
    out = net(x)
    assert out.shape == (5, *expected)
    torch.testing.assert_close(torch.cat([net(row) for row in x.split(1)]), out, **CLOSE)
    classes = torch.arange(out[..., 0].numel()) % expected[-1]

    def loss() -> Tensor:
        return F.cross_entropy(net(x).reshape(-1, expected[-1]), classes)

    before = loss()
    before.backward()
    slope = sum(float((p.grad**2).sum()) for p in net.parameters() if p.grad is not None)
    for key, p in net.named_parameters():
        assert p.grad is not None and bool(p.grad.any()), key
    torch.optim.SGD(net.parameters(), lr=1e-3).step()
    # First order: the gain is lr |g|^2; curvature over so small a step takes away some percent at most.
    assert float((before - loss()).detach()) == pytest.approx(1e-3 * slope, rel=0.1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert net(mode.from_tensor(x)).shape == (5, *expected)


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # export: torch's own layers list their weights twice
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # compile: torch looks at it, and says so, where it pauses
@pytest.mark.parametrize("name", ["lstm on series", "tokens, attention", "gru model"])
def test_export_and_compile_give_the_same_numbers(name: str) -> None:
    net, x, _ = nets()[name]
    program = torch.export.export(net, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), net(x), **CLOSE)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager")(x), net(x), **CLOSE)


@each_kind
def test_the_language_model_does_not_see_the_future(kind: Kind) -> None:
    net, text = RecurrentLMNet(kind, 13, width=6, depth=2), tokens(2, 7)
    for t in range(1, 7):
        changed = text.clone()
        changed[:, t:] = (changed[:, t:] % 12) + 1
        assert torch.equal(net(text)[:, :t], net(changed)[:, :t])
        assert not torch.equal(net(text)[:, t:], net(changed)[:, t:])


@each_kind
def test_writing_with_the_state_is_writing_from_the_start(kind: Kind) -> None:
    net, prompt = RecurrentLMNet(kind, 13, width=6, depth=2), tokens(3, 4)
    nn.init.normal_(net.tokens.weight)  # scores far enough apart that rounding cannot decide
    for temperature in (0.0, 1.0):
        cached = generate(net, prompt, 6, temperature=temperature)
        whole = generate(net, prompt, 6, temperature=temperature, use_cache=False)
        assert all(torch.equal(a, b) for a, b in zip(cached, whole, strict=True))


def test_the_language_model_starts_near_chance() -> None:
    for tied in (True, False):
        net, text = RecurrentLMNet("lstm", 65, width=64, depth=2, tied=tied), tokens(8, 33, 65)
        loss = float(F.cross_entropy(net(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).detach())
        assert loss == pytest.approx(math.log(65), abs=0.05)  # scores of a deviation below 0.3 cost 0.3^2 / 2


def lstm_count(inputs: int, width: int, depth: int) -> int:
    return sum(4 * width * (i + width + 2) for i in [inputs, *[width] * (depth - 1)])


@pytest.mark.parametrize(("size", "width", "millions"), [("zaremba-medium", 650, 20), ("zaremba-large", 1500, 66)])
def test_published_sizes(size: Any, width: int, millions: int) -> None:
    """Two tables of 10,000 words, a bias, and two layers; the published figure is rounded to millions."""
    with torch.device("meta"):
        net = RecurrentLM(size=size).make(RecurrentLM.sizes[size].data, 10_000)
    assert count(net) == 2 * 10_000 * width + 10_000 + lstm_count(width, width, 2)
    assert round(count(net) / 1e6) == millions


def test_counts_in_closed_form() -> None:
    assert count(RecurrentLMNet("lstm", 13, 6, 2)) == 13 * 6 + 13 + lstm_count(6, 6, 2)
    net = RNN(width=5, embedding=6, kind="lstm").make(token_facts(13, 8, 3, padding=PAD), 3)
    assert count(net) == 13 * 6 + lstm_count(6, 5, 1) + 5 * 3 + 3
    net = RNN(width=5, kind="lstm", bidirectional=True, pool="attention").make(series(), 3)
    assert count(net) == 2 * lstm_count(4, 5, 1) + (10 * 10 + 10) + 10 + 10 * 3 + 3


def series() -> DataFacts:
    return DataFacts(task="regression", inputs=(((7, 4), torch.float64),), target_shape=(3,))


def test_an_anchored_forecast_moves_with_the_level() -> None:
    """Adding a number to a column of the past adds it to that column's forecast, and changes nothing else."""
    data = DataFacts(
        task="forecasting",
        inputs=(((7, 3), torch.float64),),
        target_shape=(4, 2),
        features=("a", "b", "c"),
        targets=("c", "a"),
    )
    net, x, level = RNN(width=5, anchored=True).make(data, 8), numbers(2, 7, 3), torch.tensor([3.0, 70.0, -2.0])
    assert net(x).shape == (2, 8)
    expected = net(x).view(2, 4, 2) + level[[2, 0]]
    torch.testing.assert_close(net(x + level).view(2, 4, 2), expected, rtol=0, atol=1e-11)  # 70 costs two digits
    with torch.no_grad():
        for p in net.head.parameters():
            p.zero_()
    assert torch.equal(net(x).view(2, 4, 2), x[:, -1:, [2, 0]].expand(2, 4, 2))  # then it is the naive forecast
    with pytest.raises(RecipeError, match="anchored: needs a forecast of columns that are read; anchored=false"):
        RNN(anchored=True).make(series(), 3)


def test_the_dial_says_what_it_chose() -> None:
    text = token_facts(13, 8, 3)
    assert {f.name: f.value for f in RNN().derived(text)} == {
        "model.depth": 1, "model.width": 128, "model.embedding": 128
    }  # fmt: skip
    medium = {f.name: (f.value, f.reason) for f in RNN(size="medium", width=64).derived(series())}
    assert medium == {"model.depth": (2, "size 'medium'")}
    assert RecurrentLM(size="zaremba-medium", width=32).make(text, 13).head.weight.shape == (13, 32)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="width and depth must be at least 1, got 3, 0 and 1"):
        Recurrent("gru", 3, 0)
    with pytest.raises(RecipeError, match="embedding: numbers are not embedded; remove it"):
        RNN(embedding=4).make(series(), 3)
    with pytest.raises(RecipeError, match="wants 7 outputs, but there are 13 tokens"):
        RecurrentLM().make(token_facts(13, 8), 7)
    with pytest.raises(RecipeError, match=r"kind: got 'ltsm'.*lstm, gru, rnn"):
        RNN(kind="ltsm")  # type: ignore[arg-type]
