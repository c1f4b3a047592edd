"""Fréchet distance of features (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.compat import ensure_torchvision


def fid(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features, by torch-fidelity.

    Args:
        features: float32 [n, d] of the images.
        reference: float32 [m, d] to compare with.

    Returns:
        |mu1 - mu2|² + tr(S1 + S2 - 2 (S1 S2)^½); about 0 for equal sets, where rounding may give a tiny
        negative number.

    Raises:
        ValueError: fewer than two rows, or other widths.
    """
    import torch

    ensure_torchvision()
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    check_features(features, reference)
    # float64: torch-fidelity forms the mean in the type it is given, too coarse in float32 for 20,000 rows.
    statistics = [
        fid_features_to_statistics(torch.from_numpy(rows.astype(np.float64)))
        for rows in (features, reference)
    ]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def check_features(features: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
    """Raise ValueError unless both are [at least 2, d] with one d."""
    shapes = features.shape, reference.shape
    if any(len(s) != 2 or s[0] < 2 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"features must be [n, d] with n > 1 and one d, got {shapes[0]} and {shapes[1]}")
