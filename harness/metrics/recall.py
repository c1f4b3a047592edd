"""Improved recall (Kynkäänniemi et al., "Improved Precision and Recall Metric", NeurIPS 2019)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.distances import covered, neighbour_radii
from harness.metrics.fid import check_features
from harness.metrics.precision import NEIGHBOURS


def recall(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the share of reference samples that lie inside the ball of at least one image.

    The radius of an image's ball is the distance to its third neighbour among the images, so recall depends
    on their number: compare cells of one n only.

    Args:
        features: float32 [n, d] of the images, n > 3.
        reference: float32 [m, d], the reference samples.

    Returns:
        A share in 0..1.

    Raises:
        ValueError: too few rows, or other widths.
    """
    check_features(features, reference)
    return float(np.mean(covered(reference, features, neighbour_radii(features, NEIGHBOURS))))
