"""Density (Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.distances import covering, neighbour_radii
from harness.metrics.fid import check_features

NEIGHBOURS = 5
"""k of density and coverage, as the paper's authors set it."""


def density(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return how many reference balls an image lies in on average, over k = 5 (eq. 3 of the paper).

    A ball reaches from a reference sample to its fifth neighbour among the reference samples.

    Args:
        features: float32 [n, d] of the images.
        reference: float32 [m, d], the reference samples, m > 5.

    Returns:
        At least 0; about 1 for equal distributions, and unbounded above.

    Raises:
        ValueError: too few rows, or other widths.
    """
    check_features(features, reference)
    counts = covering(features, reference, neighbour_radii(reference, NEIGHBOURS))
    return float(counts.mean() / NEIGHBOURS)
