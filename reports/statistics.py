"""95 % intervals of means, proportions and paired differences. Pure functions of NumPy and SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
_UPPER_TAIL = 0.5 + CONFIDENCE / 2


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
    seen = np.asarray([value for value in values if value is not None], dtype=np.float64)
    if seen.size == 0 or not np.isfinite(seen).all():
        return _MISSING
    mean = float(seen.mean())
    if seen.size == 1:
        return Interval(mean, None, None)
    if seen.min() == seen.max():  # the rounded mean of equal values may differ from them by an ulp
        return Interval(float(seen[0]), float(seen[0]), float(seen[0]))
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


def paired_t(a: Sequence[float | None], b: Sequence[float | None]) -> Interval:
    """Return the mean of `a - b` over pairs and its t interval.

    Args:
        a: observations; element i belongs to the same subject (prompt) as element i of `b`.
        b: observations to subtract. A pair with None on either side is left out.

    Returns:
        `(mean difference, lo, hi)` as `t_interval` gives it for the differences.

    Raises:
        ValueError: the two differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"paired observations differ in number: {len(a)} and {len(b)}")
    return t_interval([x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None])
