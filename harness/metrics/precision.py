"""Improved precision (Kynkäänniemi et al., "Improved Precision and Recall Metric", NeurIPS 2019)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.fid import check_features

NEIGHBOURS = 3
_ROWS = 512
"""Rows of the distance matrix held at once."""


def precision(
    features: NDArray[np.float32], reference: NDArray[np.float32], reference_radii: NDArray[np.float32]
) -> float:
    """Return the share of images that lie inside the ball of at least one reference sample.

    Args:
        features: float32 [n, d] of the images.
        reference: float32 [m, d], the reference samples.
        reference_radii: float32 [m], distance of each reference sample to its third neighbour among them.

    Returns:
        A share in 0..1.

    Raises:
        ValueError: other widths, or not one radius per reference sample.
    """
    check_features(features, reference)
    return float(np.mean(covered(features, reference, reference_radii)))


def covered(
    points: NDArray[np.float32],
    centres: NDArray[np.float32],
    radii: NDArray[np.float32] | NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return which points [n, d] lie inside any ball around centres [m, d] with radii [m]: bool [n]."""
    from scipy.spatial.distance import cdist

    if radii.shape != (len(centres),):
        raise ValueError(f"one radius per centre: {len(centres)} centres, radii {radii.shape}")
    parts = [
        (cdist(points[start : start + _ROWS], centres) <= radii).any(axis=1)
        for start in range(0, len(points), _ROWS)
    ]
    return np.concatenate(parts)


def neighbour_radii(features: NDArray[np.float32], k: int = NEIGHBOURS) -> NDArray[np.float64]:
    """Return the distance of each row of [n, d] to its k-th nearest other row: float64 [n].

    Raises:
        ValueError: there are not more than `k` rows.
    """
    from scipy.spatial.distance import cdist

    if len(features) <= k:
        raise ValueError(f"{k} neighbours need more than {k} rows, got {len(features)}")
    # A row is its own nearest at distance 0, so index k of the sorted distances is the k-th other row.
    parts = [
        np.partition(cdist(features[start : start + _ROWS], features), k, axis=1)[:, k]
        for start in range(0, len(features), _ROWS)
    ]
    return np.asarray(np.concatenate(parts), dtype=np.float64)
