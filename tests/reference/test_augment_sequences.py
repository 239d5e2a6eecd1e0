"""Augmentations of tokens, series and tables against loops, and their draws against what is expected of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contract.toys import Toy
from kingpost.assembly import Assembly, Batch, Step
from kingpost.errors import RecipeError
from kingpost.source import DataFacts
from kingpost.train.assemble import assemble
from kingpost.train.augment.augmentation import Augmentation
from kingpost.train.augment.series import Jitter, Scaling, TimeWarp, WindowSlice, resample, warped_times
from kingpost.train.augment.spec_augment import SpecAugment
from kingpost.train.augment.tables import FeatureNoise, FeatureSwap, swap_features
from kingpost.train.augment.tokens import (
    TokenDropout,
    UnigramNoise,
    WordSwap,
    drop_tokens,
    swap_words,
    unigram_noise,
    words,
)
from reference.plain import recipe

PAD, BEGIN, END = 0, 1, 2
TOKENS = DataFacts(
    task="classification", inputs=(((10,), torch.int64),), classes=("a", "b"), vocabulary=20, padding=PAD, begin=BEGIN,
    end=END,
)  # fmt: skip
SERIES = DataFacts(task="classification", inputs=(((12, 3), torch.float64),), classes=("a", "b"))
TABLE = DataFacts(
    task="classification", inputs=(((4,), torch.float64), ((2,), torch.int64)), classes=("a", "b"),
    features=tuple("pqrsuv"), scales=((3.0, 2.0), (0.0, 1.0), (1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0)),
    cardinalities=(3, 5),
)  # fmt: skip


def sentences(count: int = 30) -> Tensor:
    """Beginning, 1 to 8 words, end, padding; some with the end in the middle of nowhere are not needed."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.full((count, 10), PAD)
    for row, n in zip(rows, torch.randint(1, 9, (count,), generator=draw).tolist(), strict=True):
        row[0], row[1 : n + 1] = BEGIN, torch.randint(3, 20, (n,), generator=draw)
        if n < 9:
            row[n + 1] = END
    return rows


def token_batch() -> Batch:
    x = sentences()
    return Batch((x,), torch.zeros(len(x), dtype=torch.int64), 0, len(x))


def series_batch(count: int = 40) -> Batch:
    x = torch.randn(count, 12, 3, generator=torch.Generator().manual_seed(2))
    return Batch((x,), torch.zeros(count, dtype=torch.int64), 0, count)


def table_batch(count: int = 40) -> Batch:
    draw = torch.Generator().manual_seed(3)
    codes = torch.stack([torch.randint(n, (count,), generator=draw) for n in (3, 5)], 1)
    return Batch((torch.randn(count, 4, generator=draw), codes), torch.zeros(count, dtype=torch.int64), 0, count)


CASES: list[tuple[Augmentation, Batch, DataFacts]] = [
    (TokenDropout(p=0.3), token_batch(), TOKENS),
    (WordSwap(p=0.5), token_batch(), TOKENS),
    (UnigramNoise(p=0.3), token_batch(), TOKENS),
    (Jitter(), series_batch(), SERIES),
    (Scaling(), series_batch(), SERIES),
    (TimeWarp(), series_batch(), SERIES),
    (WindowSlice(), series_batch(), SERIES),
    (SpecAugment(time_width=4, frequency_width=2), series_batch(), SERIES),
    (FeatureNoise(), table_batch(), TABLE),
    (FeatureSwap(p=0.3), table_batch(), TABLE),
]
cases = pytest.mark.parametrize(("technique", "b", "facts"), CASES, ids=lambda v: getattr(v, "name", ""))


@cases
def test_draws_depend_on_seed_and_step_and_nothing_else(technique: Augmentation, b: Batch, facts: DataFacts) -> None:
    given = [x.clone() for x in b.inputs]

    def same(at: Step) -> bool:
        return all(torch.equal(x, y) for x, y in zip(technique.change(b, at, facts).inputs, one, strict=True))

    one = technique.change(b, Step(index=2, seed=3), facts).inputs
    torch.manual_seed(5)
    assert same(Step(index=2, seed=3, rank=1, ranks=2))
    assert not same(Step(index=3, seed=3))
    assert not same(Step(index=2, seed=4))
    assert all(torch.equal(x, y) for x, y in zip(b.inputs, given, strict=True)), "it changed the samples themselves"
    assert [(x.shape, x.dtype) for x in one] == [(x.shape, x.dtype) for x in given]


@pytest.mark.parametrize(
    ("technique", "b", "facts"),
    [case for case in CASES if case[0].name not in ("unigram-noise", "feature-swap")],  # these look at other samples
    ids=lambda v: getattr(v, "name", ""),
)
def test_pieces_draw_what_the_whole_draws(technique: Augmentation, b: Batch, facts: DataFacts) -> None:
    at = Step(index=2, seed=3)
    pieces = [technique.change(piece, at, facts).inputs[0] for piece in b.split(7)]
    # Means and running sums of other shapes may add in another order.
    torch.testing.assert_close(torch.cat(pieces), technique.change(b, at, facts).inputs[0], rtol=0, atol=1e-13)


# ---- tokens


@pytest.mark.parametrize("technique", [TokenDropout(p=0.9), WordSwap(p=1.0), UnigramNoise(p=1.0)], ids=lambda t: t.name)
def test_special_tokens_are_never_touched(technique: Augmentation) -> None:
    b = token_batch()
    x, special = b.inputs[0], ~words(b.inputs[0], TOKENS)
    assert 0 < int(special.sum()) < special.numel()
    for index in range(20):
        got = technique.change(b, Step(index=index, seed=0), TOKENS).inputs[0]
        assert torch.equal(got[special], x[special])
        if not isinstance(technique, TokenDropout):
            assert bool((got[~special] > END).all())
    target = b.inputs[0] + 0
    pair = technique.change(b.with_(inputs=(x, target)), Step(index=0, seed=0), TOKENS)
    assert torch.equal(pair.inputs[1], target)


def test_drop_tokens_equals_a_loop() -> None:
    x = sentences()
    real, drawn = words(x, TOKENS), torch.rand(x.shape, generator=torch.Generator().manual_seed(4))
    got = drop_tokens(x, real, drawn, 0.7, by=7)
    for i in range(len(x)):
        places = [t for t in range(10) if real[i, t]]
        kept = max(places, key=lambda t: float(drawn[i, t]))
        for t in range(10):
            gone = t in places and drawn[i, t] < 0.7 and t != kept
            assert int(got[i, t]) == (7 if gone else int(x[i, t]))
    empty = torch.full((2, 10), PAD)
    assert torch.equal(drop_tokens(empty, words(empty, TOKENS), drawn[:2], 0.7, 7), empty)


def test_token_dropout_drops_as_often_as_it_says() -> None:
    x = torch.full((300, 40), 5)
    b = Batch((x,), torch.zeros(300), 0, 300)
    got = TokenDropout(p=0.25).change(b, Step(index=0, seed=0), TOKENS).inputs[0]
    # 12,000 draws; the word that always stays matters only where all would go.
    assert float((got == PAD).double().mean()) == pytest.approx(0.25, abs=4 * (0.1875 / 12000) ** 0.5)
    unknown = TokenDropout(p=0.25, by=3).change(b, Step(index=0, seed=0), TOKENS).inputs[0]
    assert torch.equal(unknown == 3, got == PAD)


def test_swap_words_equals_a_loop() -> None:
    x, draw = sentences(), torch.Generator().manual_seed(5)
    real, offset = words(x, TOKENS), torch.randint(2, (len(x),), generator=draw)
    chosen = torch.rand(x.shape, generator=draw) < 0.6
    got = swap_words(x, real, offset, chosen)
    moved = 0
    for i in range(len(x)):
        row = x[i].tolist()
        for t in range(int(offset[i]), 9, 2):
            if chosen[i, t] and real[i, t] and real[i, t + 1]:
                row[t], row[t + 1] = row[t + 1], row[t]
                moved += 1
        assert got[i].tolist() == row
    assert moved > 10


def test_word_swap_is_not_for_language_models() -> None:
    with pytest.raises(RecipeError, match="but the task is 'language-modelling'"):
        mounted({"name": "word-swap"}, {"name": "gpt", "depth": 1, "width": 8, "heads": 2}, task="language-modelling")


def test_unigram_noise_equals_a_loop() -> None:
    x, draw = sentences(), torch.Generator().manual_seed(6)
    real, chosen, drawn = (
        words(x, TOKENS),
        torch.rand(x.shape, generator=draw) < 0.5,
        torch.rand(x.shape, generator=draw),
    )
    got = unigram_noise(x, real, chosen, drawn)
    every = [int(x[i, t]) for i in range(len(x)) for t in range(10) if real[i, t]]
    for i in range(len(x)):
        for t in range(10):
            expected = every[int(drawn[i, t] * len(every))] if real[i, t] and chosen[i, t] else int(x[i, t])
            assert int(got[i, t]) == expected
    empty = torch.full((2, 10), PAD)
    assert torch.equal(unigram_noise(empty, words(empty, TOKENS), chosen[:2], drawn[:2]), empty)


def test_unigram_noise_draws_frequent_words_more_often() -> None:
    x = torch.tensor([5] * 7 + [6] * 2 + [7]).repeat(400, 1)
    b = Batch((x,), torch.zeros(400), 0, 400)
    got = UnigramNoise(p=1.0).change(b, Step(index=0, seed=0), TOKENS).inputs[0]
    for token, share in ((5, 0.7), (6, 0.2), (7, 0.1)):
        found = float((got == token).double().mean())
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_token_dropout_needs_a_token_to_put_there() -> None:
    gpt = {"name": "gpt", "depth": 1, "width": 8, "heads": 2}
    with pytest.raises(RecipeError, match=r"token-dropout|by: this data has no padding token"):
        mounted({"name": "token-dropout"}, gpt, task="language-modelling")
    with pytest.raises(RecipeError, match=r"got 11; the tokens are 0\.\.10"):
        mounted({"name": "token-dropout", "by": 11}, gpt, task="language-modelling")


def mounted(technique: dict[str, Any], model: Any, **data: Any) -> Assembly:
    toy = Toy(**data)
    return assemble(recipe(model, data=toy, techniques=[technique]), toy.open(), torch.device("cpu"))


# ---- series


def test_resample_equals_interpolation_by_numpy() -> None:
    x = series_batch(5).inputs[0]
    places = torch.rand(5, 12, generator=torch.Generator().manual_seed(7)) * 11
    places[0, 0], places[0, 1] = 0, 11
    got = resample(x, places)
    for i in range(5):
        for f in range(3):
            expected = np.interp(places[i].numpy(), np.arange(12), x[i, :, f].numpy())
            np.testing.assert_allclose(got[i, :, f].numpy(), expected, rtol=0, atol=1e-14)
    assert torch.equal(resample(x, torch.arange(12.0).expand(5, 12)), x)


def test_warped_time_runs_forward_from_the_first_to_the_last_step() -> None:
    speeds = torch.randn(50, 4, generator=torch.Generator().manual_seed(8)).exp()
    times = warped_times(speeds, 30)
    assert float(times[:, 0].abs().max()) == 0
    torch.testing.assert_close(times[:, -1], torch.full((50,), 29.0), rtol=1e-14, atol=0)
    assert bool((times.diff(dim=1) > 0).all())
    for i in range(3):  # the integral of the speed by the trapezoidal rule
        speed = np.interp(np.linspace(0, 3, 30), np.arange(4), speeds[i].numpy())
        passed = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2)])
        np.testing.assert_allclose(times[i].numpy(), passed / passed[-1] * 29, rtol=0, atol=1e-12)
    even = warped_times(torch.ones(1, 4), 30)
    torch.testing.assert_close(even[0], torch.arange(30.0), rtol=0, atol=1e-13)  # rounding of the running sum


def test_jitter_is_in_proportion_to_each_features_spread() -> None:
    x = torch.randn(200, 12, 3, generator=torch.Generator().manual_seed(9)) * torch.tensor([100.0, 1.0, 0.0])
    noise = Jitter(std=0.2).change(Batch((x,), torch.zeros(200), 0, 200), Step(index=0, seed=0), SERIES).inputs[0] - x
    spread = torch.stack([x[i].var(0, correction=0).sqrt() for i in range(200)])
    ratio = (noise / spread[:, None])[..., :2]
    assert float(noise[..., 2].abs().max()) == 0
    assert float(ratio.std()) == pytest.approx(0.2, abs=4 * 0.2 / (2 * ratio.numel()) ** 0.5)
    assert float(ratio[..., 0].std()) == pytest.approx(0.2, abs=4 * 0.2 / ratio.numel() ** 0.5)


def test_scaling_has_one_factor_for_each_feature() -> None:
    x = torch.ones(2000, 12, 3)
    got = Scaling(std=0.3).change(Batch((x,), torch.zeros(2000), 0, 2000), Step(index=0, seed=0), SERIES).inputs[0]
    assert torch.equal(got, got[:, :1].expand_as(got))
    factor = got[:, 0]
    assert float(factor.mean()) == pytest.approx(1, abs=4 * 0.3 / 6000**0.5)
    assert float(factor.std()) == pytest.approx(0.3, abs=4 * 0.3 / 12000**0.5)
    assert abs(float(torch.corrcoef(factor.T)[0, 1])) < 4 / 2000**0.5


def test_window_slice_is_a_stretched_window() -> None:
    """A ramp shows the times that were read."""
    x = torch.arange(12.0).view(1, 12, 1).expand(500, 12, 3).contiguous()
    b = Batch((x,), torch.zeros(500), 0, 500)
    times = WindowSlice(share=0.6).change(b, Step(index=0, seed=0), SERIES).inputs[0][..., 0]
    torch.testing.assert_close(times.diff(dim=1), torch.full((500, 11), 0.6), rtol=0, atol=1e-13)  # of a difference
    start = times[:, 0]
    assert float(start.min()) >= 0
    assert float(times.max()) <= 11
    # U(0, 4.4): mean 2.2, deviation 1.27.
    assert float(start.mean()) == pytest.approx(2.2, abs=4 * 1.27 / 500**0.5)


@pytest.mark.parametrize("name", ["scaling", "time-warp", "window-slice"])
def test_what_breaks_forecasts_is_refused_for_them(name: str) -> None:
    with pytest.raises(RecipeError, match="but the task is 'forecasting'"):
        mounted({"name": name}, {"name": "mlp", "widths": [8]}, form="series")


def test_spec_augment_blanks_bands_of_every_allowed_width() -> None:
    x = torch.ones(4000, 12, 6)
    b = Batch((x,), torch.zeros(4000), 0, 4000)
    facts = DataFacts(task="classification", inputs=(((12, 6), torch.float64),), classes=("a", "b"))
    t = SpecAugment(time_masks=1, time_width=4, frequency_masks=0)
    blank = t.change(b, Step(index=0, seed=0), facts).inputs[0] == 0
    assert torch.equal(blank, blank[:, :, :1].expand_as(blank)), "a band of time covers all features"
    rows = blank[:, :, 0]
    width = rows.sum(1)
    assert bool(((rows.int().diff(dim=1) != 0).sum(1) <= 2).all()), "more than one band"
    for n in range(5):  # 0..4 alike: 800 each, with a deviation of 25.3
        assert int((width == n).sum()) == pytest.approx(800, abs=4 * 25.3)
    first = rows[width == 4].int().argmax(1)
    for place in range(9):  # about 800 bands of width 4 at nine places: 89 each, with a deviation of 8.9
        assert int((first == place).sum()) == pytest.approx(len(first) / 9, abs=4.5 * 8.9)
    both = SpecAugment(time_masks=2, time_width=2, frequency_masks=2, frequency_width=2)
    hidden = both.change(b, Step(index=0, seed=0), facts).inputs[0] == 0
    assert int(hidden.all(2).sum(1).max()) <= 6  # all steps of two bands of two, or all features hidden by chance
    assert int(hidden.all(1).sum(1).max()) == 4


def test_a_band_must_fit() -> None:
    with pytest.raises(RecipeError, match=r"frequency_width: got 6, but a series has 2 features; at most 2"):
        mounted({"name": "spec-augment"}, {"name": "mlp", "widths": [8]}, form="series")


# ---- tables


def test_feature_noise_leaves_indicators_and_codes_alone() -> None:
    b = table_batch(3000)
    got = FeatureNoise(std=0.2).change(b, Step(index=0, seed=0), TABLE)
    noise = got.inputs[0] - b.inputs[0]
    assert torch.equal(got.inputs[1], b.inputs[1])
    assert float(noise[:, [1, 3]].abs().max()) == 0
    assert float(noise[:, [0, 2]].std()) == pytest.approx(0.2, abs=4 * 0.2 / 12000**0.5)


def test_feature_noise_needs_a_number() -> None:
    only = DataFacts(task="classification", inputs=(((2,), torch.float64),), classes=("a",), scales=((0.0, 1.0),) * 2)
    with pytest.raises(RecipeError, match="no column of this data is a standardised number"):
        FeatureNoise().check(only)


def test_swap_features_equals_a_loop() -> None:
    x, draw = table_batch().inputs[0], torch.Generator().manual_seed(10)
    chosen, partners = torch.rand(40, 4, generator=draw) < 0.5, torch.randint(40, (40, 4), generator=draw)
    got = swap_features(x, chosen, partners)
    for i in range(40):
        for f in range(4):
            assert got[i, f] == (x[partners[i, f], f] if chosen[i, f] else x[i, f])


def test_feature_swap_keeps_to_its_column_and_its_share() -> None:
    count = 2000
    x = torch.arange(count * 4.0).view(count, 4)  # every cell is its own number
    codes = torch.arange(count * 2).view(count, 2)
    b = Batch((x, codes), torch.zeros(count), 0, count)
    got = FeatureSwap(p=0.3).change(b, Step(index=0, seed=0), TABLE)
    for given, changed in zip(b.inputs, got.inputs, strict=True):
        width = given.shape[1]
        assert torch.equal(changed % width, given % width), "a cell came from another column"
        share = float((changed != given).double().mean())
        assert share == pytest.approx(0.3, abs=4 * (0.21 / given.numel()) ** 0.5 + 1 / count)
        rows = (changed // width)[changed != given].double()
        assert float(rows.mean()) == pytest.approx(count / 2, abs=4 * count * 0.289 / len(rows) ** 0.5)
