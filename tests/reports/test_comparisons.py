"""Paired comparisons: closed forms, SciPy's own tests, and coverage and error rates by simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from harness.reports.statistics import (
    bca_interval,
    holm,
    mcnemar_p,
    minimum_detectable_effect,
    paired_bca,
    paired_p_value,
    paired_t,
    prompts_needed,
    t_interval,
)


def covered(interval, truth):
    return interval.lo <= truth <= interval.hi


def test_t_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(2.0, 3.0, (4000, 12))
    share = np.mean([covered(t_interval(row.tolist()), 2.0) for row in draws])
    assert abs(share - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 4000)


def test_bca_covers_a_skewed_mean_and_misses_on_both_sides_alike():
    # Lognormal differences, as PSNR losses look: t misses almost only on one side.
    draws = np.random.default_rng(2).lognormal(0.0, 1.0, (500, 100))
    truth = math.exp(0.5)
    bca = [bca_interval(row.tolist(), resamples=800, seed=k) for k, row in enumerate(draws)]
    plain = [t_interval(row.tolist()) for row in draws]
    assert np.mean([covered(found, truth) for found in bca]) >= 0.91
    below = np.mean([found.hi < truth for found in bca])
    assert below < np.mean([found.hi < truth for found in plain])


def test_bca_agrees_with_scipy():
    values = np.random.default_rng(3).exponential(2.0, 80)
    ours = bca_interval(values.tolist(), resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(4)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert abs(ours.lo - theirs.low) < 0.03 * width
    assert abs(ours.hi - theirs.high) < 0.03 * width


@pytest.mark.parametrize("values", [[], [None], [math.inf, 1.0], [2.0], [0.1] * 10])
def test_bca_without_spread_is_what_t_gives(values):
    assert bca_interval(values) == t_interval(values)


def test_bca_is_deterministic_and_refuses_few_resamples():
    values = np.random.default_rng(5).normal(size=40).tolist()
    assert bca_interval(values) == bca_interval(values)
    with pytest.raises(ValueError, match="at least 100"):
        bca_interval(values, resamples=10)


def test_paired_intervals_leave_incomplete_pairs_out():
    a, b = [1.0, None, 3.0, 5.0], [0.5, 2.0, None, 3.0]
    assert paired_t(a, b) == t_interval([0.5, 2.0])
    assert paired_bca(a, b) == bca_interval([0.5, 2.0])
    with pytest.raises(ValueError, match="differ in number: 2 and 1"):
        paired_bca([1.0, 2.0], [1.0])


def test_paired_p_value_agrees_with_scipy():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=30), rng.normal(0.4, 1.0, 30)
    assert paired_p_value(a.tolist(), b.tolist()) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)


@pytest.mark.parametrize(
    ("a", "b", "p"),
    [([1.0, 2.0], [1.0, 2.0], 1.0), ([2.0, 3.0], [1.0, 2.0], 0.0), ([1.0], [0.0], None), ([None], [1], None)],
)  # fmt: skip
def test_paired_p_value_without_spread(a, b, p):
    assert paired_p_value(a, b) == p


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04; the running maximum is .04 .06 .06 .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    with pytest.raises(ValueError, match="p-values"):
        holm([1.5])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_lies_between_raw_and_bonferroni(ps):
    adjusted = holm(ps)
    for p, q in zip(ps, adjusted, strict=True):
        assert p <= q <= min(1.0, len(ps) * p) or q == max(
            a for a, r in zip(adjusted, ps, strict=True) if r <= p
        )
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(7)
    base = rng.normal(size=(2000, 1))
    z = math.sqrt(0.5) * base + math.sqrt(0.5) * rng.normal(size=(2000, 8))  # dependent tests, all null
    false = [min(holm((2 * scipy.stats.norm.sf(abs(row))).tolist())) <= 0.05 for row in z]
    assert np.mean(false) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (3, 9), (4, 4)])
def test_mcnemar_is_the_binomial_sum_over_discordant_pairs(only_a, only_b):
    a = [1.0] * only_a + [0.0] * only_b + [1.0] * 6
    b = [0.0] * only_a + [1.0] * only_b + [1.0] * 6
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert mcnemar_p(a, b) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_refuses_what_is_no_answer():
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar_p([0.5], [1.0])


def test_minimum_detectable_effect_is_found_as_often_as_it_says():
    n, sd = 16, 2.0
    effect = minimum_detectable_effect(sd, n)
    draws = np.random.default_rng(9).normal(effect, sd, (20_000, n))
    found = scipy.stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05
    assert abs(found.mean() - 0.8) < 3 * math.sqrt(0.16 / 20_000)
    normal = (1.959964 + 0.841621) * sd / math.sqrt(n)
    assert 1.03 < effect / normal < 1.08


def test_prompts_needed_is_the_fewest():
    n = prompts_needed(0.5, 1.5)
    assert minimum_detectable_effect(1.5, n) <= 0.5 < minimum_detectable_effect(1.5, n - 1)
    assert prompts_needed(1.0, 0.0) == 2
    assert minimum_detectable_effect(1.0, 1) is None
    assert prompts_needed(1e-6, 10.0) is None


@pytest.mark.parametrize("call", [
    lambda: minimum_detectable_effect(-1.0, 4), lambda: minimum_detectable_effect(1.0, 4, power=0.01),
    lambda: prompts_needed(0.0, 1.0),
])  # fmt: skip
def test_powerless_questions_are_refused(call):
    with pytest.raises(ValueError, match=r"standard deviation|0 < alpha < power|effect to detect"):
        call()
