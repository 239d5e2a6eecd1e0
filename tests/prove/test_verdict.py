import dataclasses
import json
import math

import pytest

from kingpost.errors import RunError
from kingpost.verdict import Cost, Pair, Verdict, Verdicts

PAIRS = [(0, 0.90, 0.92), (1, 0.85, 0.88), (2, 0.95, 0.96), (3, 0.91, None), (4, None, 0.9), (5, None, None)]


@pytest.fixture
def verdict():
    return Verdict(
        trial="digits-smoothing",
        arm="smoothing",
        patch="techniques+=label-smoothing",
        decision="helps",
        final=True,
        reason="the interval excludes 0",
        difference=0.0123,
        lower=0.0041,
        upper=0.0205,
        p=0.0008,
        more_pairs=0,
        pairs=tuple(Pair(*pair) for pair in PAIRS),
        looks=({"pairs": 6, "difference": 0.0123, "lower": 0.0041, "upper": 0.0205},),
        metric="accuracy",
        higher_is_better=True,
        smallest_effect=0.005,
        alpha=0.05,
        power=0.8,
        budget="10,072 samples each",
        costs={
            "baseline": Cost(runs=6, failed=2, seconds=4.0, parameters=100, target_seconds=3.0, reached_target=4),
            "arm": Cost(runs=6, failed=2, seconds=5.0, parameters=100),
        },
        target=0.905,
    )


def test_it_comes_back_from_json(verdict):
    for one in (verdict, dataclasses.replace(verdict, lower=-math.inf, upper=math.inf)):
        text = json.dumps(one.to_value(), allow_nan=False)
        assert Verdict.from_value(json.loads(text)) == one


@pytest.mark.parametrize(("up", "sign"), [(True, 1), (False, -1)])
def test_a_failed_run_is_worse_than_any_value_whichever_way_is_better(verdict, up, sign):
    found = [pair.difference(up) for pair in verdict.pairs]
    assert found[:3] == pytest.approx([sign * 0.02, sign * 0.03, sign * 0.01])
    assert found[3:5] == [-math.inf, math.inf] and math.isnan(found[5])


def test_the_gain_of_pairing_is_the_ratio_of_variances(verdict):
    # var(0.90, 0.85, 0.95) = 0.0025; var(0.92, 0.88, 0.96) = 0.0016; var(0.02, 0.03, 0.01) = 0.0001
    assert verdict.pairing_gain == pytest.approx((0.0025 + 0.0016) / 0.0001)
    assert dataclasses.replace(verdict, pairs=verdict.pairs[:2]).pairing_gain is None


def test_it_is_understood_at_once(verdict):
    text = str(verdict)
    assert text.startswith("smoothing: HELPS. accuracy +0.0123 [+0.0041, +0.0205] (n = 6 pairs, p 0.0008)\n")
    assert "time 4 seconds -> 5 seconds (x 1.25) · parameters 100" in text
    assert "accuracy 0.905 after 3 seconds -> never; got there: 4 of 6 -> 0 of 6 runs" in text
    assert "failed     2 of 6 -> 2 of 6 runs" in text
    many = dataclasses.replace(verdict, pairs=tuple(Pair(seed, 0.5, 0.6) for seed in range(100)), notes=("a note",) * 9)
    assert len(str(many).splitlines()) <= 30 and "... and 92 more in verdict.json" in str(many)


@pytest.mark.parametrize(
    ("decisions", "all_in_all"),
    [
        (["hurts", "helps"], "helps"),
        (["hurts", "no evidence yet"], "no evidence yet"),
        (["hurts", "no difference that matters"], "no difference that matters"),
        (["hurts", "hurts"], "hurts"),
    ],
)
def test_several_arms_are_saved_and_summed_up(verdict, decisions, all_in_all, tmp_path):
    arms = tuple(dataclasses.replace(verdict, arm=f"arm-{k}", decision=d) for k, d in enumerate(decisions))
    verdicts = Verdicts("trial", str(tmp_path), arms)
    verdicts.save_to(tmp_path)
    assert Verdicts.open(tmp_path) == verdicts
    assert verdicts.decision == all_in_all and verdicts["arm-1"] is arms[1]
    assert len(str(verdicts).splitlines()) <= 30 and all(f"arm-{k}" in str(verdicts) for k in range(2))
    with pytest.raises(KeyError, match="did you mean 'arm-1'"):
        verdicts["arm1"]
    with pytest.raises(RunError, match="has no verdict yet"):
        Verdicts.open(tmp_path / "nothing")
