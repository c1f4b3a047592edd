import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from harness.reports.statistics import paired_t, t_interval, wilson_interval


def test_t_interval_closed_form():
    # n = 3, s = 1; with two degrees of freedom the quantile is t(p) = (2p - 1) / sqrt(2 p (1 - p)).
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    mean, lo, hi = t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert lo == pytest.approx(2.0 - half, rel=1e-12)
    assert hi == pytest.approx(2.0 + half, rel=1e-12)


def test_t_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(25.0, 3.0, 64)
    expected = scipy.stats.t.interval(0.95, 63, loc=values.mean(), scale=scipy.stats.sem(values))
    assert t_interval(values.tolist())[1:] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("values", [[], [None], [None, None], [math.inf, 30.0], [math.nan, 1.0], [-math.inf]])
def test_t_interval_without_a_finite_mean_is_missing(values):
    assert t_interval(values) == (None, None, None)


def test_t_interval_of_one_observation_has_no_ends():
    assert t_interval([None, 31.5]) == (31.5, None, None)


def test_t_interval_of_equal_observations_is_a_point():
    # The float mean of these is not 0.1: a careless formula gives an interval that misses it.
    assert t_interval([0.1] * 10) == (0.1, 0.1, 0.1)


def test_none_is_left_out_and_is_not_zero():
    assert t_interval([4.0, None, 6.0, None]) == t_interval([4.0, 6.0])


def test_wilson_known_values():
    # Newcombe (1998), table I, method 3 (score, no continuity correction).
    for successes, n, lo, hi in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        share, low, high = wilson_interval(successes, n)
        assert share == successes / n
        assert low == pytest.approx(lo, abs=5e-5)
        assert high == pytest.approx(hi, abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case):
    successes, n = case
    expected = scipy.stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    share, lo, hi = wilson_interval(successes, n)
    assert (lo, hi) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= lo <= share <= hi <= 1.0


def test_wilson_ends_are_exact():
    for n in range(1, 300):
        assert wilson_interval(0, n)[1] == 0.0
        assert wilson_interval(n, n)[2] == 1.0


def test_wilson_without_trials_and_with_impossible_counts():
    assert wilson_interval(0, 0) == (None, None, None)
    for successes, n in [(-1, 4), (5, 4), (1, 0), (0, -1)]:
        with pytest.raises(ValueError, match="successes must lie in"):
            wilson_interval(successes, n)


def test_paired_t_is_the_interval_of_the_paired_test():
    rng = np.random.default_rng(1)
    a = rng.normal(0.0, 5.0, 40)
    b = a - rng.normal(1.0, 0.1, 40)  # strongly paired: an unpaired interval would be far wider
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, lo, hi = paired_t(a.tolist(), b.tolist())
    assert mean == pytest.approx(np.mean(a - b), rel=1e-12)
    assert (lo, hi) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert lo > 0.9
    assert hi < 1.1


def test_paired_t_leaves_out_broken_pairs_and_refuses_unequal_lengths():
    assert paired_t([1.0, None, 5.0, 7.0], [0.5, 9.0, None, 6.5]) == (0.5, 0.5, 0.5)
    assert paired_t([], []) == (None, None, None)
    with pytest.raises(ValueError, match="2 and 1"):
        paired_t([1.0, 2.0], [1.0])


def test_coverage_of_the_t_interval_is_95_percent():
    rng = np.random.default_rng(2)
    draws = rng.normal(3.0, 2.0, (4000, 6))
    inside = sum(lo <= 3.0 <= hi for _, lo, hi in (t_interval(row.tolist()) for row in draws))
    # 4000 trials: the standard error of the coverage is 0.0034; a z interval would cover only 0.893.
    assert inside / 4000 == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("truth", "n"), [(0.5, 64), (0.9, 64), (0.98, 256)])
def test_coverage_of_wilson_averages_95_percent(truth, n):
    # Exact, by summing the binomial. It oscillates with n; the normal interval's is 0.72 at truth 0.98, n 64.
    covered = sum(
        scipy.stats.binom.pmf(k, n, truth)
        for k in range(n + 1)
        if wilson_interval(k, n)[1] <= truth <= wilson_interval(k, n)[2]
    )
    assert covered == pytest.approx(0.95, abs=0.025)
