import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kingpost.prove.families import looks
from kingpost.prove.sequential import Test


def holm(p, alpha):
    """The textbook: sort, compare with alpha / (m - i), stop at the first that fails; adjusted p values beside."""
    order, m, going, largest = sorted(p, key=p.get), len(p), True, 0.0
    decided, adjusted = {}, {}
    for i, name in enumerate(order):
        largest = max(largest, min(1.0, (m - i) * p[name]))
        adjusted[name] = largest
        going = going and p[name] <= alpha / (m - i)
        decided[name] = going
    return decided, adjusted


def arms(seed, effects, pairs=12):
    rng = np.random.default_rng(seed)
    return {f"arm-{i}": (rng.normal(size=pairs) + effect).tolist() for i, effect in enumerate(effects)}


@pytest.mark.parametrize("seed", range(12))
def test_the_same_as_holm_written_out(seed):
    test = Test(smallest_effect=0.05)
    differences = arms(seed, (0.0, 0.5, 1.0, 1.5, -1.2))
    decided, adjusted = holm({arm: test.look(d).p for arm, d in differences.items()}, 0.05)
    found = looks(test, differences)
    assert list(found) == list(differences)
    for arm, look in found.items():
        assert (look.decision in ("helps", "hurts")) == decided[arm]
        if decided[arm]:
            assert look.p == pytest.approx(adjusted[arm], rel=1e-6)


def test_closed_testing_decides_the_same():
    # Holm is the closed test in which every set of hypotheses is tested by Bonferroni (Marcus, Peritz, Gabriel 1976).
    test = Test(smallest_effect=0.05)
    for seed in range(6):
        differences = arms(seed, (0.0, 0.9, 1.1, 0.6))
        p = {arm: test.look(d).p for arm, d in differences.items()}
        for arm, look in looks(test, differences).items():
            sets = [s for k in range(1, 5) for s in itertools.combinations(p, k) if arm in s]
            closed = all(min(p[other] for other in s) <= 0.05 / len(s) for s in sets)
            assert (look.decision in ("helps", "hurts")) == closed


def test_one_arm_is_the_plain_test():
    test, d = Test(smallest_effect=0.5), [1.2, 0.9, 1.4, 1.1, 0.8, 1.3]
    assert looks(test, {"a": d})["a"] == test.look(d)
    assert looks(test, {}) == {}


def test_a_decided_arm_passes_its_share_on():
    test = Test(smallest_effect=0.05)
    strong = [2.0, 2.1, 1.9, 2.2, 1.8, 2.0, 2.1]
    weak = next(
        d
        for seed in range(200)
        if 0.03 < test.look(d := (np.random.default_rng(seed).normal(0.7, 0.6, 12)).tolist()).p < 0.045
    )
    assert looks(test, {"weak": weak, "noise": [1.0, -1.0] * 6})["weak"].decision == "no evidence yet"
    assert looks(test, {"weak": weak, "strong": strong})["weak"].decision == "helps"


def test_no_effect_anywhere_and_arms_that_share_a_baseline():
    trials, pairs, wrong = 400, 10, 0
    rng = np.random.default_rng(11)
    test = Test(smallest_effect=1e-9, max_pairs=pairs)
    for _ in range(trials):
        baseline = rng.normal(size=pairs)
        d = {name: rng.normal(size=pairs) - baseline for name in "abc"}
        for n in range(5, pairs + 1):
            if any(judged(look) for look in looks(test, {k: v[:n].tolist() for k, v in d.items()}).values()):
                wrong += 1
                break
    assert stats.binomtest(wrong, trials, 0.05, alternative="greater").pvalue > 1e-3  # once in 1000 by chance
    assert wrong > 0


def judged(look):
    return look.decision in ("helps", "hurts")


def test_an_arm_that_only_fails_is_decided_and_passes_its_share_on():
    test = Test(smallest_effect=0.05)
    found = looks(test, {"broken": [-math.inf] * 10, "noise": [1.0, -1.0] * 5})
    assert found["broken"].decision == "hurts"
    assert found["broken"].p <= 0.05
