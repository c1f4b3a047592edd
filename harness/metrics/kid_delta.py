"""How much farther from real images a cell is than the 16-bit model, by the kernel distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.fid import Features, check_features
from harness.reports.statistics import Interval, t_interval

_ROWS = 4096
"""Rows of the real images whose kernel is formed at once."""


def kid_delta(features: Features, reference_model: Features, real: Features) -> Interval:
    """Return KID(cell, real) - KID(reference cell, real) with an interval over the paired prompts.

    KID is the unbiased squared MMD with the kernel (x·y / d + 1)³ (Bińkowski et al., ICLR 2018) on all rows
    at once, not the mean over random subsets that `kid` is. The interval is the t interval of the differences
    of influence values, conditional on the real images.

    Args:
        features: float [n, d] of the cell's images.
        reference_model: float [n, d] of the reference cell's images; row i shares prompt and noise.
        real: float [m, d] of real images.

    Returns:
        The difference (below 0: nearer to the real images than the reference is) and its ends.

    Raises:
        ValueError: other widths, other numbers of rows, or fewer than two.
    """
    check_features(features, reference_model)
    check_features(features, real)
    if len(features) != len(reference_model):
        raise ValueError(f"rows are not paired: {len(features)} and {len(reference_model)}")
    (ours, our_influence), (theirs, their_influence) = (_mmd(x, real) for x in (features, reference_model))
    delta = ours - theirs
    middle, lo, hi = t_interval((our_influence - their_influence).tolist())
    if middle is None or lo is None or hi is None:
        return Interval(delta, None, None)
    return Interval(delta, delta + lo - middle, delta + hi - middle)


def influence(features: Features, real: Features) -> NDArray[np.float64]:
    """Return the influence of each row on the KID to `real`: float64 [n], mean 0.

    The Hájek projection of the U-statistic: twice a row's mean kernel with the other rows, less twice that
    with the real ones.
    """
    return _mmd(features, real)[1]


def _mmd(features: Features, real: Features) -> tuple[float, NDArray[np.float64]]:
    """Return the squared MMD less the real images' own term, and the influence of each row."""
    x, n = features.astype(np.float64), len(features)
    within = _kernel(x, x)
    others = (within.sum(axis=1) - np.diag(within)) / (n - 1)
    across = np.zeros(n)
    for start in range(0, len(real), _ROWS):
        across += _kernel(x, real[start : start + _ROWS].astype(np.float64)).sum(axis=1)
    across /= len(real)
    moved = 2.0 * (others - across)
    return float(others.mean() - 2.0 * across.mean()), moved - moved.mean()


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    base = x @ y.T / x.shape[1] + 1.0
    return np.asarray(base * base * base)  # many times faster than a power
