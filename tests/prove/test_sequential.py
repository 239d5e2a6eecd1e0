import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kingpost.errors import RecipeError
from kingpost.prove import student
from kingpost.prove.failures import margins, sign_tail
from kingpost.prove.sequential import Test
from prove_exam import gate, with_failures

CODES = {"helps": 1, "hurts": -1, "no difference that matters": 2, "no evidence yet": 0}
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30, 139])
def test_student_agrees_with_scipy(df):
    for t in (0.0, 0.3, 1.0, 2.5, 6.0):
        assert student.tail(t, df) == pytest.approx(2 * stats.t.sf(t, df), abs=1e-14)  # rounding of a sum of 70 terms
    for p in (0.9, 0.05, 1e-4):
        assert student.quantile(p, df) == pytest.approx(stats.t.isf(p / 2, df), rel=1e-9)


@pytest.mark.parametrize(
    ("looks", "pocock", "obrien_fleming"),
    # Jennison and Turnbull (2000), tables 2.1 and 2.3: two-sided, alpha 0.05, known spread.
    [(2, 2.178, 1.977), (3, 2.289, 2.004), (5, 2.413, 2.040)],
)
def test_the_path_of_t_gives_the_published_constants_for_many_pairs(looks, pocock, obrien_fleming):
    # With looks far into a long path the t statistic is as good as normal; a look has 0 weight where there is none.
    step = 60 // looks

    def level(n, constant):
        k = n / step
        if n % step:
            return 0.0
        return 2 * stats.norm.sf(constant if constant == pocock else constant * math.sqrt(looks / k))

    for constant in (pocock, obrien_fleming):
        error = student.crossing(functools.partial(level, constant=constant), step, step * looks, np.ones(1))[-1, 0]
        # The grid takes a path to be a little too restless: 1 % over 60 looks, on the safe side. That 12 pairs are not
        # infinitely many adds 2 % (1,000,000 simulated paths with ten looks at every 12th of 120 pairs: 0.0514).
        assert 0.0498 < error < 0.052


@pytest.mark.parametrize("patience", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(("low", "high"), [(3, 8), (5, 30)])
def test_the_error_rate_by_an_independent_loop(patience, low, high):
    test = Test(smallest_effect=1e-9, min_pairs=low, max_pairs=high, patience=patience)
    d, trials = np.random.default_rng(3).normal(5e-324, 7.0, size=(20_000, high)), 20_000
    wrong = np.zeros(trials, bool)
    for n in range(low, high + 1):
        t = stats.ttest_1samp(d[:, :n], 0, axis=1).statistic
        wrong |= abs(t) >= test.boundary(n)
    assert abs(wrong.mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / trials)  # 4 standard errors: once in 16,000


def test_the_grid_of_the_integration_is_fine_enough(monkeypatch):
    coarse = student.crossing(lambda n: n / 16, 5, 16, np.array([0.03]))[-1, 0]
    monkeypatch.setattr(student, "STEP", student.STEP / 2)
    monkeypatch.setattr(student, "CELLS", student.CELLS * 2)
    caches = (student._cells, student._transition)
    try:
        for cached in caches:
            cached.cache_clear()
        fine = student.crossing(lambda n: n / 16, 5, 16, np.array([0.03]))[-1, 0]
    finally:
        for cached in caches:
            cached.cache_clear()
    assert 0 <= coarse / fine - 1 < 0.003  # relative; errors of the grid are on the safe side


def test_the_p_value_is_the_alpha_at_which_the_boundary_is_met():
    for alpha in (0.2, 0.05, 0.004):
        test = Test(smallest_effect=1, alpha=alpha)
        for pairs in (5, 12, 30):
            assert test.p_value(test.boundary(pairs), pairs) == pytest.approx(alpha, rel=1e-6)


def test_the_p_value_holds_whenever_one_looks():
    test, d = Test(smallest_effect=1e-9, max_pairs=20), np.random.default_rng(5).normal(size=(1500, 20))
    smallest = np.ones(len(d))
    for n in range(5, 21):
        t = abs(stats.ttest_1samp(d[:, :n], 0, axis=1).statistic)
        smallest = np.minimum(smallest, [test.p_value(value, n) for value in t])
    for level in (0.3, 0.1, 0.03):
        # 4 standard errors; the smallest p value over all looks is uniform
        assert abs((smallest <= level).mean() - level) < 4 * math.sqrt(level * (1 - level) / len(d))


def test_one_look_is_the_t_test():
    d = [0.3, 1.2, -0.2, 0.9, 0.4, 1.1]
    look = Test(smallest_effect=0.01, min_pairs=6, max_pairs=6).look(d)
    reference = stats.ttest_1samp(d, 0)
    interval = reference.confidence_interval(0.95)
    assert look.p == pytest.approx(reference.pvalue, rel=1e-3)  # interpolated between 71 levels, whose law is on a grid
    assert (look.lower, look.upper) == pytest.approx((interval.low, interval.high), rel=1e-3)


@pytest.mark.parametrize("failing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("smallest", [0.25, 1.0])
def test_the_exam_judges_many_trials_as_look_judges_one(failing, smallest):
    rng = np.random.default_rng(7)
    test = Test(smallest_effect=smallest, max_pairs=20)
    d = with_failures(rng, rng.normal(size=(30, 20)) + rng.choice([0.0, 0.5, 1.0], (30, 1)), failing, failing / 2)
    many = gate(test, d)
    for trial, row in enumerate(d.tolist()):
        look = next(look for n in range(1, 21) if (look := test.look(row[:n])).final)
        assert (look.pairs, CODES[look.decision]) == (many.pairs[trial], many.decision[trial])
        assert (look.lower, look.upper) == pytest.approx((many.lower[trial], many.upper[trial]))


def test_sign_and_scale():
    d = [1.2, 0.9, 1.4, 1.1, 0.8, 1.3]
    look, other = Test(smallest_effect=0.5).look(d), Test(smallest_effect=50).look([-100 * x for x in d])
    assert (look.decision, other.decision) == ("helps", "hurts")
    assert (other.lower, other.upper) == pytest.approx((-100 * look.upper, -100 * look.lower))
    assert other.p == pytest.approx(look.p)


def test_a_small_effect_that_is_certain_does_not_matter():
    look = Test(smallest_effect=1.0).look([0.1, 0.12, 0.09, 0.11, 0.1, 0.1, 0.11, 0.1, 0.09])
    assert (look.decision, look.final) == ("no difference that matters", True)
    assert -1 < look.lower < look.upper < 1


def test_equal_differences_are_not_certainty():
    look = Test(smallest_effect=1.0).look([0.6] * 5)
    assert look.decision == "no evidence yet"
    assert look.upper - look.lower == pytest.approx(2 * Test(smallest_effect=1.0).boundary(5) * 0.5 / math.sqrt(5))


def test_before_the_first_look_nothing_is_said():
    look = Test(smallest_effect=1.0).look([9.0, 9.1, 9.2, 9.0])
    assert (look.decision, look.final, look.p, look.lower) == ("no evidence yet", False, 1.0, -INF)
    assert math.isnan(Test(smallest_effect=1.0).look([]).difference)


def test_the_last_look_is_final_and_futile_trials_stop():
    rng = np.random.default_rng(1)
    noise = (rng.normal(size=30) * 10).tolist()
    last = Test(smallest_effect=1.0).look(noise)
    assert last.final
    assert "all 30 pairs are used" in last.reason
    flat = [3.0, -3.0] * 12
    look = Test(smallest_effect=0.1).look(flat)
    assert (look.decision, look.final, look.more_pairs) == ("no evidence yet", True, None)
    assert "to decide" in look.reason


def test_pairs_still_needed():
    test = Test(smallest_effect=0.5, max_pairs=60, patience=30.0)
    d = [1.0, -1.0] * 10  # spread 1.026
    # A t test needs 34 pairs at half a spread, and with a patience of 30 all looks but the last are almost free.
    assert test.planned(d) == pytest.approx(34 * 1.026**2 - 20, abs=1.5)
    assert test.look(d).more_pairs == test.planned(d)
    assert Test(smallest_effect=0.5, max_pairs=25).look(d).more_pairs is None


class TestFailures:
    def test_failed_pairs_are_left_out_of_the_difference(self):
        d = [1.2, 0.9, 1.4, 1.1, 0.8, 1.3]
        plain, failed = Test(smallest_effect=0.5).look(d), Test(smallest_effect=0.5).look([INF, *d[:3], NAN, *d[3:]])
        assert (plain.difference, plain.lower, plain.upper) == (failed.difference, failed.lower, failed.upper)
        assert failed.pairs == 8

    def test_an_arm_that_always_fails_hurts(self):
        test = Test(smallest_effect=1.0)
        looks = [test.look([-INF] * n) for n in range(1, 9)]
        assert [look.final for look in looks] == [False] * 7 + [True]
        assert looks[-1].decision == "hurts"
        assert "the arm failed in 8, the baseline in 0 of 8 pairs" in looks[-1].reason
        assert looks[-1].p <= 0.05
        assert test.look([INF] * 8).decision == "helps"

    def test_an_arm_that_seems_to_fail_more_does_not_help(self):
        d = [1.2, 0.9, 1.4, 1.1, 0.8, 1.3]
        test = Test(smallest_effect=0.5)
        doubtful = test.look([*d, -INF, -INF])
        assert (doubtful.decision, doubtful.final) == ("no evidence yet", False)
        assert "the arm failed in 2" in doubtful.reason
        assert test.look([*d, -INF]).decision == "helps"
        assert test.look([*d, INF, INF]).decision == "helps"
        assert test.look([*[-x for x in d], INF, INF]).decision == "no evidence yet"

    def test_nothing_ever_finishes(self):
        look = Test(smallest_effect=1.0).look([NAN] * 5)
        assert (look.decision, look.final, look.reason) == ("no evidence yet", True, "both runs failed in every pair")

    @pytest.mark.parametrize("max_pairs", [10, 30])
    def test_errors_of_failures_and_of_differences_together_stay_below_alpha(self, max_pairs):
        # Every pattern of signs of m failures, by enumeration; the looks that m lost pairs leave, from the table.
        test = Test(smallest_effect=1e-9, max_pairs=max_pairs)
        level = 2 * stats.t.sf(test.boundary(max_pairs), max_pairs - 1)
        for m in (3, 6, 9, 12):
            margin = [test.margin(k) for k in range(1, m + 1)]
            wrong = sum(
                any(abs(sum(signs[: k + 1])) >= margin[k] for k in range(m))
                for signs in itertools.product((-1, 1), repeat=m)
            )
            looks = max_pairs - m
            used = 0.0
            if looks >= test.min_pairs:
                used = student.crossing(lambda n: n / max_pairs, test.min_pairs, looks, np.array([level]))[-1, 0]
            assert wrong / 2**m + used <= 0.05 + 2e-4  # the level is interpolated

    def test_margins_by_enumeration(self):
        found = margins((0.3, 0.3, 0.3, 0.3, 0.3, 0.3))
        walks = list(itertools.product((-1, 1), repeat=6))
        for m in range(1, 7):
            crossed = sum(any(abs(sum(w[:k])) >= found[k - 1] for k in range(1, m + 1)) for w in walks)
            assert crossed / len(walks) <= 0.3
        assert margins((0.3, 0.3))[1] == 3  # 2 of 2 has chance 0.5
        assert margins((1.0,)) == (1,)

    def test_sign_tail_agrees_with_scipy(self):
        for a, b in itertools.combinations(range(6), 2):
            assert sign_tail(a, b) == pytest.approx(stats.binomtest(max(a, b), a + b, alternative="greater").pvalue)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest_effect": 0.0}, "smallest_effect: got 0.0, expected a number above 0"),
        ({"smallest_effect": 1.0, "alpha": 1.0}, "alpha: got 1.0, expected a number between 0 and 1"),
        ({"smallest_effect": 1.0, "min_pairs": 2}, "min_pairs: got 2, expected 3 to max_pairs=30"),
        ({"smallest_effect": 1.0, "max_pairs": 4}, "min_pairs: got 5, expected 3 to max_pairs=4"),
        ({"smallest_effect": 1.0, "patience": -1.0}, "patience: got -1.0, expected 0 or more"),
    ],
)
def test_impossible_declarations(options, message):
    with pytest.raises(RecipeError) as error:
        Test(**options)
    assert str(error.value) == message


def test_more_pairs_than_declared():
    with pytest.raises(RecipeError, match="got 31 pairs, expected at most max_pairs=30"):
        Test(smallest_effect=1.0).look([0.0] * 31)
