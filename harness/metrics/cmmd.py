"""CMMD (Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric", CVPR 2024)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.fid import check_features

SIGMA = 10.0
SCALE = 1000.0
_ROWS = 1024


def cmmd(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return 1000 times the unbiased squared MMD with a Gaussian kernel of sigma 10.

    The authors' code prints the biased estimate, which `cmmd_biased` gives: at small n it stays well above 0
    for equal distributions.

    Args:
        features: float32 [n, d], unit-length CLIP embeddings of the images.
        reference: float32 [m, d], those of the reference images.

    Returns:
        The distance; its expectation is 0 for equal distributions, so it may be negative.

    Raises:
        ValueError: fewer than two rows, or other widths.
    """
    n, m, (own, real, cross) = *map(len, (features, reference)), _gaps(features, reference)
    # 1 - k sums over all pairs; a row's gap to itself is 0, so that only the count changes.
    return float(SCALE * (2 * cross / (n * m) - own / (n * (n - 1)) - real / (m * (m - 1))))


def cmmd_biased(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the biased estimate of the authors' code: the mean over all pairs, a row with itself included.

    Raises:
        ValueError: fewer than two rows, or other widths.
    """
    n, m, (own, real, cross) = *map(len, (features, reference)), _gaps(features, reference)
    return float(SCALE * (2 * cross / (n * m) - own / n**2 - real / m**2))


def _gaps(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return the sums of 1 - k(x, y) over all pairs of (a, a), (b, b) and (a, b).

    The kernel is within 1e-2 of 1 for unit vectors; summing 1 - k keeps the digits that 1 would swallow.
    """
    check_features(a, b)
    return _gap(a, a), _gap(b, b), _gap(a, b)


def _gap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    y = b.astype(np.float64)
    total = 0.0
    for start in range(0, len(a), _ROWS):
        x = a[start : start + _ROWS].astype(np.float64)
        squared = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2 * (x @ y.T)
        total += float(-np.expm1(-np.maximum(squared, 0.0) / (2 * SIGMA**2)).sum())
    return total
