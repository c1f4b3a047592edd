"""Steps of a series: closed forms, the false alarm rate, and that steps are found where they are."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.reports.statistics import change_point, change_points

SERIES = 1000


def test_the_p_value_is_the_smallest_of_the_t_tests_times_their_number():
    values = [1.0, 1.4, 0.7, 1.1, 2.0, 2.6, 2.2]
    tests = [stats.ttest_ind(values[:k], values[k:]).pvalue for k in range(1, len(values))]
    found = change_point(values)
    assert found.start == 1 + int(np.argmin(tests)) == 4
    assert found.p == pytest.approx(min(tests) * len(tests), rel=1e-9)
    assert (found.before, found.after) == pytest.approx((1.05, 6.8 / 3))


@pytest.mark.parametrize("m", [3, 5, 8, 20, 40])
def test_a_series_without_a_step_is_divided_in_at_most_five_of_a_hundred(m):
    draws = np.random.default_rng(m).normal(3.0, 0.2, (SERIES, m))
    alarms = sum(bool(change_points(values, 0.05)) for values in draws)
    # The upper 99.9 % point of the binomial at 5 %: a rate above it would be one above 5 %.
    assert alarms <= stats.binom.ppf(0.999, SERIES, 0.05)
    assert alarms > 0.005 * SERIES


def test_heavy_tails_raise_the_rate_only_little():
    draws = np.random.default_rng(0).standard_t(3, (SERIES, 12))
    assert sum(bool(change_points(values, 0.05)) for values in draws) <= 0.09 * SERIES


def test_steps_are_found_where_they_are():
    levels = [0.0] * 12 + [1.0] * 10 + [0.4] * 14
    values = np.asarray(levels) + np.random.default_rng(1).normal(0, 0.05, len(levels))
    found = change_points(values, 0.05)
    assert [change.start for change in found] == [12, 22]
    assert found[0].after == found[1].before == pytest.approx(1.0, abs=0.05)
    assert all(change.p < 1e-6 for change in found)


def test_one_value_is_enough_when_it_is_far_off():
    steady = list(np.random.default_rng(2).normal(1.0, 0.01, 9))
    assert [change.start for change in change_points([*steady, 1.2], 0.05)] == [9]


def test_series_that_repeat_exactly():
    assert change_points([0.1] * 50, 0.05) == []
    assert change_point([0.1, 0.2]) is None
    found = change_points([0.1] * 7 + [0.3] * 2, 0.05)
    assert [(change.start, change.p) for change in found] == [(7, 0.0)]
    assert change_points([], 0.05) == []
    # Sums of equal numbers round: that is no spread and no step.
    assert change_points([1e9 + 0.1] * 30, 0.05) == []


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=30),
    st.floats(-100, 100),
    st.floats(1e-3, 1e3),
)
def test_units_do_not_matter_and_means_are_those_of_the_stretches(values, shift, scale):
    found = change_points(values, 0.05)
    cuts = [0, *(change.start for change in found), len(values)]
    assert cuts == sorted(set(cuts))
    for change, (a, b, c) in zip(found, zip(cuts, cuts[1:], cuts[2:], strict=False), strict=True):
        assert change.before == pytest.approx(math.fsum(values[a:b]) / (b - a), rel=1e-6, abs=1e-9)
        assert change.after == pytest.approx(math.fsum(values[b:c]) / (c - b), rel=1e-6, abs=1e-9)
    if np.ptp(values) > 1.0:
        moved = change_point([scale * value + shift for value in values])
        assert moved.p == pytest.approx(change_point(values).p, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("values", [[1.0, math.nan, 2.0], [math.inf, 1.0, 1.0]])
def test_what_is_not_finite_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        change_points(values, 0.05)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_a_level_lies_between_0_and_1(alpha):
    with pytest.raises(ValueError, match="alpha"):
        change_points([1.0, 2.0, 3.0], alpha)


def test_neighbouring_means_follow_each_other():
    values = [0.0, 0.1, 0.0, 5.0, 5.1, 5.0, 9.0, 9.1, 9.0, 9.05]
    found = change_points(values, 0.05)
    assert all(first.after == second.before for first, second in pairwise(found))
