import itertools
import math

import numpy as np
import pytest
from scipy import stats

import prove_exam
from kingpost.prove import alternatives
from kingpost.prove.alternatives import hwang_shih_decani
from prove_exam import fixed_pairs, from_rows, real_pools, signed_rank_less, wilcoxon_pruner


def test_spending_boundaries_use_up_alpha_as_planned():
    spending = hwang_shih_decani(-2.0)
    bounds = alternatives.spending_boundaries(0.05, 3, 12, spending)
    d = np.random.default_rng(2).normal(size=(40_000, 12))
    said = alternatives.group_sequential_t(d, 3, bounds)
    for n in (4, 8, 12):
        planned = 0.05 * spending(n / 12)
        seen = np.mean((said.sign != 0) & (said.pairs <= n))
        assert abs(seen - planned) < 4 * math.sqrt(planned / len(d))  # 4 standard errors


@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_confidence_sequence_is_the_integral_it_should_be(n):
    # Marginal likelihood of normal data over the spread (density 1/s) and over the effect in spreads (normal, deviation
    # 0.7), against that without an effect: sums over a fine grid.
    x, width = np.random.default_rng(n).normal(0.8, 1.3, size=n), 0.7
    log_s, effect = np.linspace(-7, 9, 1601)[:, None], np.linspace(-5, 5, 401)

    def likelihood(effect):
        squares = ((x[:, None, None] - effect * np.exp(log_s)) ** 2).sum(axis=0)
        return np.exp(-n * log_s - squares / (2 * np.exp(2 * log_s)))

    with_effect = (likelihood(effect) * stats.norm.pdf(effect, scale=width)).sum() * (effect[1] - effect[0])
    without = likelihood(np.zeros(1)).sum()
    c, total, squares = width**-2, x.sum(), (x * x).sum()
    formula = math.sqrt(c / (n + c)) * (squares / (squares - total**2 / (n + c))) ** (n / 2)
    assert formula == pytest.approx(with_effect / without, rel=1e-4)  # of the sums over a finite box
    alpha = 1 / (formula * 1.001), 1 / (formula * 0.999)
    decided = [alternatives.confidence_sequence(x[None], n, min(a, 0.999), width).sign[0] != 0 for a in alpha]
    if formula > 1.01:
        assert decided == [False, True]


def test_sign_flips_are_exact_for_every_pattern_of_signs():
    # All 2^8 sign patterns of the same magnitudes: at most alpha of them may ever be decided, and close to that.
    magnitudes = np.array([0.3, 1.0, 2.2, 0.7, 0.9, 4.1, 0.2, 1.3])
    patterns = np.array(list(itertools.product((-1, 1), repeat=8)))
    said = alternatives.sign_flip(patterns * magnitudes, 5, 0.05, hwang_shih_decani(1.0), flips=2**8)
    assert 0.03 < np.mean(said.sign != 0) <= 0.05


def test_one_look_of_sign_flips_is_the_permutation_test_of_scipy():
    d = np.random.default_rng(4).normal(0.6, 1, size=(40, 8))
    said = alternatives.sign_flip(d, 8, 0.05, lambda share: share, flips=2**8)
    for row, sign in zip(d, said.sign, strict=True):
        p = stats.permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert (sign != 0) == (p <= 0.05)


def test_fixed_and_peeking_t():
    d = np.random.default_rng(6).normal(0.4, 1, size=(50, 12))
    fixed, peeking = alternatives.fixed_t(d, 12, 0.05), alternatives.peeking_t(d, 5, 0.05)
    for trial, row in enumerate(d):
        assert (fixed.sign[trial] != 0) == (stats.ttest_1samp(row, 0).pvalue <= 0.05)
        ever = any(stats.ttest_1samp(row[:n], 0).pvalue <= 0.05 for n in range(5, 13))
        assert (peeking.sign[trial] != 0) == ever


def test_a_fixed_t_test_needs_the_pairs_of_the_tables():
    # Cohen (1988), power 0.8, two-sided 0.05, one sample: effects 0.25, 0.5, 1.
    assert [fixed_pairs(effect) for effect in (0.25, 0.5, 1.0)] == [128, 34, 10]


def test_signed_ranks_agree_with_scipy():
    d = np.random.default_rng(8).normal(0.2, 1, size=(20, 9))
    expected = stats.wilcoxon(d, axis=1, alternative="less", method="exact").pvalue
    np.testing.assert_allclose(signed_rank_less(d), expected)


@pytest.mark.filterwarnings("ignore")  # Optuna calls its own pruner experimental
def test_the_pruners_rule_is_that_of_optuna():
    optuna = pytest.importorskip("optuna", exc_type=ImportError)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    d = np.random.default_rng(9).normal(-0.3, 1, size=(25, 12))
    ours = wilcoxon_pruner(d)
    pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    for row, sign, pairs in zip(d, ours.sign, ours.pairs, strict=True):
        study = optuna.create_study(direction="maximize", pruner=pruner)
        best = study.ask()
        for step in range(12):
            best.report(0.0, step)
        study.tell(best, 0.0)
        trial, stopped = study.ask(), None
        for step, value in enumerate(row):
            trial.report(float(value), step)
            if trial.should_prune():
                stopped = step + 1
                break
        assert stopped == (pairs if sign == -1 else None)


def test_pools_of_real_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prove_exam, "FEWEST_SEEDS", 3)
    path = tmp_path / "pools.json"
    assert real_pools(path) == {}
    path.write_text(
        '{"digits": {"accuracy": [[0.9, 0.92, null, 0.91]], "loss": [[1.0, 2.0, 3.0], [1.1, 2.1, null]], "few": [[1]]}}'
    )
    pools = real_pools(path)
    assert list(pools) == ["digits, accuracy", "digits, loss"]
    assert "digits, few: left out, fewer than 3 seeds" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    single = pools["digits, accuracy"](rng, (4000, 2))
    # Chance that both of two runs drawn from four, one of which failed, failed; 5 standard errors of 8000 draws.
    assert abs(np.isnan(single).mean() - 1 / 16) < 5 * math.sqrt(1 / 16 / 8000)
    assert abs(np.isinf(single).mean() - 6 / 16) < 5 * math.sqrt(6 / 16 / 8000)
    paired = pools["digits, loss"](rng, (400, 3))
    finite = paired[np.isfinite(paired)]
    assert set(np.round(finite, 6)) == {-0.1, 0.1}  # the same seed in both arms
    assert np.isinf(paired).any()
    assert abs(np.sign(from_rows([np.arange(5.0)])(rng, (4000, 1))).mean()) < 5 / math.sqrt(4000)
