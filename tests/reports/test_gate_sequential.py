"""The boundary: against multivariate normal probabilities and simulated t-statistics."""

import math

import numpy as np
import pytest
import scipy.stats

from harness.reports.gate.sequential import (
    LOOKS,
    critical_value,
    nominal_levels,
    overall_error,
    planned_looks,
    spent,
)


def covariance(looks):
    n = np.asarray(looks, dtype=float)
    return np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n))


@pytest.mark.parametrize("looks", [LOOKS, (16, 64), (16, 32, 48, 100), (40,)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 60])
def test_levels_spend_exactly_alpha_by_the_multivariate_normal(looks, alpha):
    levels = nominal_levels(looks, alpha)
    z = scipy.stats.norm.isf(levels)
    normal = scipy.stats.multivariate_normal(
        np.zeros(len(looks)), covariance(looks), seed=0, abseps=1e-9, releps=1e-9
    )
    assert 1 - normal.cdf(z) == pytest.approx(alpha, rel=2e-3)
    assert overall_error(looks, levels) == pytest.approx(alpha, rel=1e-6)
    for k, look in enumerate(looks[:-1]):
        assert overall_error(looks[: k + 1], levels[: k + 1]) == pytest.approx(
            spent(look / looks[-1], alpha), rel=1e-6
        )


def test_three_uncorrected_looks_alarm_far_too_often():
    error = overall_error(LOOKS, [0.025] * 3, two_sided=True)
    z = scipy.stats.norm.isf(0.025)
    inside = scipy.stats.multivariate_normal(np.zeros(3), covariance(LOOKS), seed=0).cdf(
        [z] * 3, lower_limit=[-z] * 3
    )
    assert error == pytest.approx(1 - inside, abs=1e-4)
    assert error == pytest.approx(0.127, abs=0.003)


def test_t_statistics_at_the_same_levels_keep_the_error():
    levels = nominal_levels(LOOKS, 0.05)
    draws = np.random.default_rng(0).normal(size=(40_000, LOOKS[-1]))
    crossed = np.zeros(len(draws), dtype=bool)
    for look, level in zip(LOOKS, levels, strict=True):
        seen = draws[:, :look]
        t = seen.mean(axis=1) / (seen.std(axis=1, ddof=1) / math.sqrt(look))
        crossed |= t >= critical_value(level, look)
    assert crossed.mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 40_000))


def test_looks_end_with_what_there_is():
    assert planned_looks(1000) == (16, 64, 256)
    assert planned_looks(256) == (16, 64, 256)
    assert planned_looks(100) == (16, 64, 100)
    assert planned_looks(64) == (16, 64)
    assert planned_looks(9) == (9,)


@pytest.mark.parametrize(
    ("looks", "alpha"), [((), 0.05), ((16, 16), 0.05), ((0,), 0.05), ((16,), 0.0), ((16,), 0.6)]
)
def test_impossible_plans_are_refused(looks, alpha):
    with pytest.raises(ValueError, match=r"looks must|alpha lies"):
        nominal_levels(looks, alpha)
