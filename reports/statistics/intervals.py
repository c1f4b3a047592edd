"""95 % intervals of means and proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

CONFIDENCE = 0.95
_UPPER_TAIL = 0.5 + CONFIDENCE / 2
RESAMPLES = 4999
_SEED = 20250101
_INDICES_AT_ONCE = 1_000_000
"""Bootstrap indices held at a time: 8 MB."""


class Interval(NamedTuple):
    """An estimate and the ends of its two-sided 95 % interval; None where it could not be formed."""

    value: float | None
    lo: float | None
    hi: float | None


_MISSING = Interval(None, None, None)


def t_interval(values: Sequence[float | None]) -> Interval:
    """Return the mean of `values` and Student's t interval around it.

    Args:
        values: independent observations. None is an observation that was not made and is left out; it is not
            a zero. An infinite or NaN observation leaves no finite mean and is never silently dropped.

    Returns:
        `(mean, lo, hi)`: all None without observations or with a non-finite one; the ends None for a single
        observation, whose spread is unknown; the ends equal to the mean when the spread is zero.
    """
    seen = _observed(values)
    if (plain := _without_spread(seen)) is not None:
        return plain
    mean = float(seen.mean())
    half = float(stdtrit(seen.size - 1, _UPPER_TAIL)) * float(seen.std(ddof=1)) / math.sqrt(seen.size)
    return Interval(mean, mean - half, mean + half)


def wilson_interval(successes: int, n: int) -> Interval:
    """Return the proportion of successes and Wilson's score interval (1927), without continuity correction.

    Unlike the normal interval it stays inside [0, 1] and keeps a width at 0 and at `n` successes.

    Args:
        successes: how many of the trials succeeded, 0 to `n`.
        n: number of independent trials.

    Returns:
        `(proportion, lo, hi)`, all None when `n` is 0.

    Raises:
        ValueError: `successes` lies outside 0 to `n`.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n, got {successes} of {n}")
    if n == 0:
        return _MISSING
    z = float(ndtri(_UPPER_TAIL))
    share = successes / n
    shrink = 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n)) / shrink
    # The ends at 0 and n successes are exactly 0 and 1; the formula may miss them by an ulp.
    lo = 0.0 if successes == 0 else centre - half
    hi = 1.0 if successes == n else centre + half
    return Interval(share, lo, hi)


def bca_interval(values: Sequence[float | None], resamples: int = RESAMPLES, seed: int = _SEED) -> Interval:
    """Return the mean of `values` and its bias-corrected and accelerated bootstrap interval.

    Efron, "Better Bootstrap Confidence Intervals" (JASA 1987); the acceleration is the jackknife's, which
    for a mean has a closed form. It follows the skew of the observations, which Student's t ignores.

    Args:
        values: as `t_interval`.
        resamples: bootstrap samples.
        seed: of the resampling; the same seed and values give the same interval.

    Returns:
        As `t_interval`.

    Raises:
        ValueError: `resamples` is below 100, too few for the tails.
    """
    if resamples < 100:
        raise ValueError(f"at least 100 resamples are needed, got {resamples}")
    seen = _observed(values)
    if (plain := _without_spread(seen)) is not None:
        return plain
    means = _bootstrap_means(seen, resamples, np.random.default_rng(seed))
    mean = float(seen.mean())
    centred = seen - mean
    acceleration = float((centred**3).sum()) / (6.0 * float((centred**2).sum()) ** 1.5)
    # Half of the ties count: means of few distinct values often equal the mean itself. Never 0 or 1, which
    # would put the interval at infinity.
    below = float((means < mean).sum()) + float((means == mean).sum()) / 2
    bias = float(ndtri(min(max(below, 0.5), resamples - 0.5) / resamples))
    tails = []
    for z in (-float(ndtri(_UPPER_TAIL)), float(ndtri(_UPPER_TAIL))):
        shifted = bias + z
        tails.append(float(ndtr(bias + shifted / (1.0 - acceleration * shifted))))
    lo, hi = np.quantile(means, tails)
    return Interval(mean, float(lo), float(hi))


def _observed(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.asarray([value for value in values if value is not None], dtype=np.float64)


def _without_spread(seen: NDArray[np.float64]) -> Interval | None:
    """Return the interval of observations that have no usable spread, or None for ordinary ones."""
    if seen.size == 0 or not np.isfinite(seen).all():
        return _MISSING
    if seen.size == 1:
        return Interval(float(seen[0]), None, None)
    if seen.min() == seen.max():  # the rounded mean of equal values may differ from them by an ulp
        return Interval(float(seen[0]), float(seen[0]), float(seen[0]))
    return None


def _bootstrap_means(
    seen: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the means of `resamples` samples drawn from `seen` with replacement: float64 [resamples]."""
    rows = max(1, _INDICES_AT_ONCE // seen.size)
    parts = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), seen.size)
        parts.append(seen[rng.integers(0, seen.size, shape)].mean(axis=1))
    return np.concatenate(parts)
