"""Comparisons of cells prompt by prompt: differences, tests, correction for many, power."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr, nctdtr, stdtr, stdtrit

from harness.reports.statistics.intervals import CONFIDENCE, Interval, bca_interval, t_interval

ALPHA = 1.0 - CONFIDENCE
POWER = 0.8
_MOST_PROMPTS = 10_000_000

Values = Sequence[float | None]


def paired_t(a: Values, b: Values) -> Interval:
    """Return the mean of `a - b` over pairs and its t interval.

    Args:
        a: observations; element i belongs to the same subject (prompt) as element i of `b`.
        b: observations to subtract. A pair with None on either side is left out.

    Returns:
        `(mean difference, lo, hi)` as `t_interval` gives it for the differences.

    Raises:
        ValueError: the two differ in length.
    """
    return t_interval(_differences(a, b))


def paired_bca(a: Values, b: Values) -> Interval:
    """Return the mean of `a - b` over pairs and its BCa bootstrap interval; otherwise as `paired_t`."""
    return bca_interval(_differences(a, b))


def paired_p_value(a: Values, b: Values) -> float | None:
    """Return the two-sided p-value of the paired t-test that the mean of `a - b` is 0.

    Returns:
        None with fewer than two complete pairs or a non-finite difference. Differences that are all equal
        have no spread to test by: 1 when they are 0, else 0.

    Raises:
        ValueError: the two differ in length.
    """
    differences = np.asarray(_differences(a, b), dtype=np.float64)
    if differences.size < 2 or not np.isfinite(differences).all():
        return None
    if differences.min() == differences.max():
        return 1.0 if differences[0] == 0.0 else 0.0
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    statistic = abs(float(differences.mean())) / error
    return 2.0 * float(stdtr(differences.size - 1, -statistic))


def mcnemar_p(a: Values, b: Values) -> float | None:
    """Return the two-sided p-value of McNemar's exact test of equal shares.

    Args:
        a: 1 where the answer was right, 0 where it was wrong; element i belongs to the same prompt as element
            i of `b`.
        b: as many answers. A pair with None on either side is left out.

    Returns:
        The binomial probability, under 1/2, of discordant pairs at least as uneven as these; 1 without
        discordant pairs, None without pairs.

    Raises:
        ValueError: the two differ in length, or an answer is neither 0 nor 1.
    """
    pairs = _pairs(a, b)
    if not all(answer in (0.0, 1.0) for pair in pairs for answer in pair):
        raise ValueError("McNemar's test takes answers that are 0 or 1")
    if not pairs:
        return None
    only_a, only_b = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    return min(1.0, 2.0 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted by Holm's step-down procedure (Scand. J. Statist. 1979).

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection at alpha,
    however the tests depend on each other.

    Args:
        p_values: of a family of tests; None is a test that was not made and does not count.

    Returns:
        Adjusted values in the given order, None where None was given.

    Raises:
        ValueError: a value lies outside [0, 1].
    """
    made = [(p, index) for index, p in enumerate(p_values) if p is not None]
    if not all(0.0 <= p <= 1.0 for p, _ in made):
        raise ValueError("p-values lie in [0, 1]")
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(sorted(made)):
        running = max(running, min(1.0, (len(made) - rank) * p))
        adjusted[index] = running
    return adjusted


def minimum_detectable_effect(sd: float, n: int, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """Return the mean difference that a two-sided paired t-test finds with probability `power`.

    Exact by the noncentral t distribution, not its normal approximation, which is 4 % too small at n = 16.

    Args:
        sd: standard deviation of the paired differences.
        n: pairs.
        power: probability of finding it.
        alpha: level of the test.

    Returns:
        The effect in the unit of `sd`; None below two pairs.

    Raises:
        ValueError: `sd` is negative or not finite, or a probability lies outside its range.
    """
    if not (math.isfinite(sd) and sd >= 0.0):
        raise ValueError(f"a standard deviation is finite and at least 0, not {sd}")
    if not 0.0 < alpha < power < 1.0:
        raise ValueError(f"need 0 < alpha < power < 1, got alpha {alpha} and power {power}")
    if n < 2:
        return None
    critical = float(stdtrit(n - 1, 1.0 - alpha / 2))
    lo, hi = 0.0, 2.0 * critical
    while _power(hi, n, critical) < power:
        hi *= 2.0
    for _ in range(60):
        middle = (lo + hi) / 2
        lo, hi = (middle, hi) if _power(middle, n, critical) < power else (lo, middle)
    return hi * sd / math.sqrt(n)


def prompts_needed(effect: float, sd: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """Return the fewest prompts at which `minimum_detectable_effect` is at most `effect`.

    Returns:
        At least 2; None when ten million are not enough.

    Raises:
        ValueError: `effect` is not positive, or as `minimum_detectable_effect`.
    """
    if not effect > 0.0:
        raise ValueError(f"an effect to detect is positive, not {effect}")

    def enough(n: int) -> bool:
        found = minimum_detectable_effect(sd, n, power, alpha)
        return found is not None and found <= effect

    lo, hi = 1, 2
    while not enough(hi):
        lo, hi = hi, 2 * hi
        if hi > _MOST_PROMPTS:
            return None
    while hi - lo > 1:
        middle = (lo + hi) // 2
        lo, hi = (lo, middle) if enough(middle) else (middle, hi)
    return hi


def _power(noncentrality: float, n: int, critical: float) -> float:
    """Return the power of the two-sided t-test at a noncentrality effect * sqrt(n) / sd."""
    upper = 1.0 - float(nctdtr(n - 1, noncentrality, critical))
    lower = float(nctdtr(n - 1, noncentrality, -critical))
    # The lower tail underflows to NaN far out, where it is 0.
    return upper + (lower if math.isfinite(lower) else 0.0)


def _pairs(a: Values, b: Values) -> list[tuple[float, float]]:
    """Return the pairs of which neither is missing."""
    if len(a) != len(b):
        raise ValueError(f"paired observations differ in number: {len(a)} and {len(b)}")
    return [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]


def _differences(a: Values, b: Values) -> list[float]:
    return [x - y for x, y in _pairs(a, b)]
