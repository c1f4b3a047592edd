"""Coverage (Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.density import NEIGHBOURS
from harness.metrics.distances import distance_parts, neighbour_radii
from harness.metrics.fid import check_features


def coverage(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the share of reference samples that have an image nearer than their fifth neighbour (eq. 4).

    Args:
        features: float32 [n, d] of the images.
        reference: float32 [m, d], the reference samples, m > 5.

    Returns:
        A share in 0..1. It grows with n: compare cells of one n only.

    Raises:
        ValueError: too few rows, or other widths.
    """
    check_features(features, reference)
    nearest = np.concatenate([part.min(axis=1) for part in distance_parts(reference, features)])
    return float(np.mean(nearest <= neighbour_radii(reference, NEIGHBOURS)))
