"""Differences of FID and of KID between two cells, with intervals from influence functions.

A distance from a fixed reference is a smooth functional of the cell's features, so each image has an
influence on it. Two cells of the same prompts and noise are paired: the difference of their distances has the
standard error of the mean of the differences of influences. Sampling error of the reference is common to both
and not counted.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from harness.reports.statistics.intervals import CONFIDENCE, Interval

Array = NDArray[np.float64]

_RANK_CUT = 1e-10
"""Share of the largest eigenvalue below which a direction of the covariance counts as empty."""
_REFERENCE_ROWS = 4096
"""Rows of the reference whose kernel is formed at once."""


def fid_difference(
    a: NDArray[np.floating], b: NDArray[np.floating], reference: NDArray[np.floating]
) -> Interval:
    """Return FID(a) - FID(b) against one reference, and its 95 % interval over prompts.

    Args:
        a: [n, d] features of one cell.
        b: [n, d] features of the other; row i belongs to the same prompt and noise as row i of `a`.
        reference: [m, d] features both are compared with.

    Returns:
        The difference of the Fréchet distances of fitted Gaussians, and its interval; the ends are equal to
        the value when every image has the same influence on both. The bias of FID in n is not removed by any
        interval; it largely cancels in the difference.

    Raises:
        ValueError: the arrays are not paired, or hold fewer than two rows or a number that is not finite.
    """
    x, y, z = _checked(a, b, reference)
    mean, covariance = z.mean(axis=0), np.cov(z, rowvar=False)
    root = _root(covariance)
    first, influence_a = _frechet(x, mean, covariance, root)
    second, influence_b = _frechet(y, mean, covariance, root)
    return _interval(first - second, influence_a - influence_b)


def kid_difference(
    a: NDArray[np.floating], b: NDArray[np.floating], reference: NDArray[np.floating]
) -> Interval:
    """Return KID(a) - KID(b) against one reference, and its 95 % interval over prompts.

    KID is the unbiased squared MMD with the kernel (x·y / d + 1)³ (Bińkowski et al., ICLR 2018) on all rows
    at once, not the mean over random subsets; the influence is the Hájek projection of that U-statistic.

    Args, returns and errors are those of `fid_difference`.
    """
    x, y, z = _checked(a, b, reference)
    first, influence_a = _mmd(x, z)
    second, influence_b = _mmd(y, z)
    return _interval(first - second, influence_a - influence_b)


def _checked(*arrays: NDArray[np.floating]) -> tuple[Array, Array, Array]:
    wide = [np.asarray(array, dtype=np.float64) for array in arrays]
    a, b, reference = wide
    if a.ndim != 2 or a.shape != b.shape or reference.ndim != 2 or a.shape[1] != reference.shape[1]:
        shapes = ", ".join(str(array.shape) for array in wide)
        raise ValueError(f"features must be paired [n, d] and a reference [m, d], got {shapes}")
    if len(a) < 2 or len(reference) < 2:
        raise ValueError("a distance of distributions needs at least two rows of each")
    if not all(np.isfinite(array).all() for array in wide):
        raise ValueError("features must be finite")
    return a, b, reference


def _interval(value: float, influences: Array) -> Interval:
    n = len(influences)
    error = float(influences.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * error
    return Interval(value, value - half, value + half)


def _root(matrix: Array) -> Array:
    """Return the symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _frechet(x: Array, mean: Array, covariance: Array, root: Array) -> tuple[float, Array]:
    """Return the Fréchet distance of rows from a Gaussian, and the influence of each row: float64 [n].

    With S the rows' covariance and R the root of the reference's, the trace of the root of R S R has the
    derivative R (R S R)^(-1/2) R / 2 by S. Directions in which the rows have no spread (n < d) have no
    derivative; they are left out.
    """
    centred = x - x.mean(axis=0)
    own = np.atleast_2d(np.cov(x, rowvar=False))
    values, vectors = np.linalg.eigh(root @ own @ root)
    held = values > _RANK_CUT * max(float(values[-1]), np.finfo(np.float64).tiny)
    roots = np.sqrt(values[held])
    basis = root @ vectors[:, held]
    slope = np.eye(x.shape[1]) - (basis / roots) @ basis.T
    shift = x.mean(axis=0) - mean
    distance = float(shift @ shift + np.trace(own) + np.trace(np.atleast_2d(covariance)) - 2.0 * roots.sum())
    influence = 2.0 * centred @ shift + np.einsum("ij,ij->i", centred @ slope, centred)
    return distance, influence - influence.mean()


def _mmd(x: Array, reference: Array) -> tuple[float, Array]:
    """Return the squared MMD less the reference's own term, and the influence of each row: float64 [n]."""
    n = len(x)
    within = _kernel(x, x)
    others = (within.sum(axis=1) - np.diag(within)) / (n - 1)
    across = np.zeros(n)
    for start in range(0, len(reference), _REFERENCE_ROWS):
        across += _kernel(x, reference[start : start + _REFERENCE_ROWS]).sum(axis=1)
    across /= len(reference)
    influence = 2.0 * (others - across)
    return float(others.mean() - 2.0 * across.mean()), influence - influence.mean()


def _kernel(x: Array, y: Array) -> Array:
    base = x @ y.T / x.shape[1] + 1.0
    return np.asarray(base * base * base)  # many times faster than a power
