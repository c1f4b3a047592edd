"""Steps in a series of measurements: where the mean shifts, and how surprising that is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

LEAST_VALUES = 3
"""A shift between two values cannot be told from their spread."""
_ROUNDING = 1e-12


class Change(NamedTuple):
    """A shift of the mean.

    Attributes:
        start: position of the first value after it.
        before: mean of the stretch that ends there.
        after: mean of the stretch that begins there.
        p: chance of so clear a shift, at any place, in a stretch of the same length without one.
    """

    start: int
    before: float
    after: float
    p: float


def change_point(values: Sequence[float]) -> Change | None:
    """Return the clearest shift of the mean in a series.

    Every place that could divide the series is tried with the two-sample t-test of pooled variance; the
    smallest p-value is multiplied by the number of places (Bonferroni's bound on the null distribution of the
    largest statistic: Hawkins, JASA 1977; Worsley, JASA 1979). For independent normal values of one mean and
    variance, `p <= alpha` therefore happens with a chance of at most alpha.

    Args:
        values: in the order of time, finite.

    Returns:
        The shift, or None with fewer than three values or without any difference. Stretches that are constant
        on both sides have no spread: p is 0.

    Raises:
        ValueError: a value is not finite.
    """
    series = np.asarray(values, dtype=np.float64)
    if not np.isfinite(series).all():
        raise ValueError("a series of measurements holds finite values only")
    m = series.size
    if m < LEAST_VALUES:
        return None
    size = float(np.abs(series).max())
    left, within, gap = _splits(series - series.mean())
    if float(np.abs(gap).max()) <= _ROUNDING * size:
        return None
    within = np.where(within <= m * (_ROUNDING * size) ** 2, 0.0, within)
    error = np.sqrt(within / (m - 2) * (1.0 / left + 1.0 / (m - left)))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(np.abs(gap) <= _ROUNDING * size, 0.0, np.abs(gap) / error)
    best = int(np.argmax(statistic))
    p = min(1.0, (m - 1) * 2.0 * float(stdtr(m - 2, -statistic[best])))
    index = best + 1
    return Change(index, float(series[:index].mean()), float(series[index:].mean()), p)


def change_points(values: Sequence[float], alpha: float) -> list[Change]:
    """Return the shifts of a series, in order, by binary segmentation.

    The clearest shift divides the series if its p-value is at most `alpha`; its two sides are searched
    likewise. A stretch without a shift is divided wrongly with a chance of at most `alpha`.

    Args:
        values: in the order of time, finite.
        alpha: level of each search.

    Returns:
        Shifts between neighbouring stretches, each with the means of exactly these and the p-value of the
        search that found it.

    Raises:
        ValueError: a value is not finite, or alpha lies outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies between 0 and 1, not {alpha}")
    found: dict[int, float] = {}
    waiting = [(0, len(values))]
    while waiting:
        start, end = waiting.pop()
        shift = change_point(values[start:end])
        if shift is not None and shift.p <= alpha:
            found[start + shift.start] = shift.p
            waiting += [(start, start + shift.start), (start + shift.start, end)]
    cuts = [0, *sorted(found), len(values)]
    means = [float(np.mean(values[a:b])) for a, b in pairwise(cuts) if a < b]
    return [
        Change(index, before, after, found[index])
        for index, before, after in zip(cuts[1:-1], means, means[1:], strict=False)
    ]


def _splits(
    centred: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return for each place: values on its left, sum of squares within the sides, difference of the means."""
    m = centred.size
    left = np.arange(1, m, dtype=np.float64)
    sides = [(centred[:k], centred[k:]) for k in range(1, m)]
    # From running sums, a spread of 0 would come out as what rounding left of the whole.
    within = np.asarray([sum(float(np.sum((x - x.mean()) ** 2)) for x in pair) for pair in sides])
    gap = np.asarray([float(after.mean() - before.mean()) for before, after in sides])
    return left, within, gap
