"""Improved precision (Kynkäänniemi et al., "Improved Precision and Recall Metric", NeurIPS 2019)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.distances import covered
from harness.metrics.fid import check_features

NEIGHBOURS = 3


def precision(
    features: NDArray[np.float32],
    reference: NDArray[np.float32],
    reference_radii: NDArray[np.float32] | NDArray[np.float64],
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
