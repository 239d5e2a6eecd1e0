"""Nets for clips: what they see of the order of frames, counts in closed form, training, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kingpost.build.nets.clips import CNNRNN, CNNRNNNet, CNNTransformer, CNNTransformerNet, clip_facts
from kingpost.errors import RecipeError

FRAME = (2, 9, 8)
NETS = ("lstm", "gru", "rnn", "mean", "transformer")
# Both sides add the same few hundred numbers around 1, perhaps in another order.
CLOSE = {"rtol": 0.0, "atol": 1e-13}

each_net = pytest.mark.parametrize("name", NETS)


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def make(name: Any) -> nn.Module:
    if name == "transformer":
        return CNNTransformerNet(FRAME, [4, 6], 3, width=8, depth=2, heads=2)
    return CNNRNNNet(FRAME, [4, 6], 3, name, width=8, bidirectional=name == "lstm")


def clips(b: int, frames: int = 5) -> Tensor:
    return torch.randn(b, frames, *FRAME, generator=torch.Generator().manual_seed(1))


@each_net
def test_trains_plans_and_does_not_mix_clips(name: str) -> None:
    net, x, classes = make(name), clips(4), torch.tensor([0, 1, 2, 0])
    out = net(x)
    assert out.shape == (4, 3)
    torch.testing.assert_close(torch.cat([net(row) for row in x.split(1)]), out, **CLOSE)
    before = F.cross_entropy(out, classes)
    before.backward()
    for key, p in net.named_parameters():
        assert p.grad is not None and bool(p.grad.any()), key
    slope = sum(float((p.grad**2).sum()) for p in net.parameters() if p.grad is not None)
    torch.optim.SGD(net.parameters(), lr=1e-4).step()
    # First order: the gain is lr |g|^2; curvature over so small a step takes away some percent at most.
    gain = float((before - F.cross_entropy(net(x), classes)).detach())
    assert gain == pytest.approx(1e-4 * slope, rel=0.1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert net(mode.from_tensor(x)).shape == (4, 3)


@each_net
def test_only_the_mean_is_blind_to_the_order_of_frames(name: str) -> None:
    net, x = make(name), clips(3)
    change = (net(x) - net(x[:, [4, 1, 0, 3, 2]])).abs().max()
    if name == "mean":
        assert change < 1e-14  # five numbers added up in another order
    else:
        assert change > 1e-4


@each_net
def test_a_frames_features_keep_where_things_are(name: str) -> None:
    """A thing that moves to another place within the frame changes the features: a mean over the grid would not."""
    net, frame = make(name), torch.zeros(1, 1, *FRAME)
    here, there = frame.clone(), frame.clone()
    here[..., 1:3, 1:3], there[..., 5:7, 5:7] = 1.0, 1.0
    a, b = net.frames(here), net.frames(there)  # type: ignore[operator]
    assert (a - b).abs().max() > 1e-2


@each_net
def test_clips_of_any_length_are_read(name: str) -> None:
    for frames in (1, 9):
        assert make(name)(clips(2, frames)).shape == (2, 3)


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # export: torch's own layers list their weights twice
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # compile: torch looks at it, and says so, where it pauses
@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_export_and_compile_give_the_same_numbers(name: str) -> None:
    net, x = make(name).eval(), clips(2)
    program = torch.export.export(net, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), net(x), **CLOSE)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager")(x), net(x), **CLOSE)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_counts_in_closed_form() -> None:
    frames = 9 * 2 * 4 + 2 * 4 + 9 * 4 * 6 + 2 * 6 + 6 * (2 * 2) * 8 + 8  # 9 x 8 pixels halve to 4 x 4, then 2 x 2
    assert count(make("mean")) == frames + 8 * 3 + 3
    assert count(make("gru")) == frames + 3 * 8 * (8 + 8 + 2) + 8 * 3 + 3
    assert count(make("lstm")) == frames + 2 * 4 * 8 * (8 + 8 + 2) + 16 * 3 + 3
    block = 4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 2 * 2 * 8
    assert count(make("transformer")) == frames + 2 * block + 2 * 8 + 8 * 3 + 3


def test_options_make_nets_and_say_what_they_chose() -> None:
    data = clip_facts(5, *FRAME, 3)
    assert CNNRNN(channels=(4, 6), norm="batch").make(data, 3)(clips(2)).shape == (2, 3)
    assert CNNTransformer(channels=(4, 6)).make(data, 3)(clips(2)).shape == (2, 3)
    assert {f.name: f.value for f in CNNRNN(over_time="mean").derived(data)} == {"model.width": 64}
    assert {f.name: f.value for f in CNNRNN(width=8).derived(data)} == {"model.depth": 1}
    assert {f.name: f.value for f in CNNTransformer().derived(data)} == {
        "model.depth": 2, "model.width": 64, "model.heads": 2
    }  # fmt: skip
    assert CNNRNN().exceptions == {} and set(CNNRNN(norm="batch").exceptions) == {"accumulation", "two processes"}


def test_errors_say_what_to_do() -> None:
    data = clip_facts(5, *FRAME, 3)
    for net in (CNNRNN(channels=(4,) * 4), CNNTransformer(channels=(4,) * 4)):
        with pytest.raises(RecipeError, match="channels: 4 stages halve 9 x 8 pixels to nothing; use at most 3 stages"):
            net.make(data, 3)
    with pytest.raises(RecipeError, match="channels: needs at least one stage"):
        CNNRNN(channels=())
    with pytest.raises(RecipeError, match="depth: has no effect on a mean over the frames; remove it"):
        CNNRNN(over_time="mean", depth=2)
    with pytest.raises(RecipeError, match=r"width: 2 heads of 3 each; .* must be even; use a multiple of 4"):
        CNNTransformer(width=6, heads=2)
    with pytest.raises(RecipeError, match="heads: got 3, which does not divide the width 64; use"):
        CNNTransformer(heads=3)
