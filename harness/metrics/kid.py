"""Kernel distance of features (Bińkowski et al., "Demystifying MMD GANs", ICLR 2018)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.compat import ensure_torchvision
from harness.metrics import MIN_N
from harness.metrics.fid import check_features

SUBSETS = 100
SUBSET_SIZE = MIN_N
"""Rows of one subset: the smallest n for which KID is formed, so that it is one estimator at every n."""


def kid(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the unbiased squared MMD with the cubic kernel (torch-fidelity), over 100 subsets of 256 rows.

    Args:
        features: float32 [n, d] of the images, n >= 256.
        reference: float32 [m, d] to compare with, m >= 256.

    Returns:
        The distance; its expectation is 0 for equal distributions, so it may be negative.

    Raises:
        ValueError: too few rows, or other widths.
    """
    import torch

    ensure_torchvision()
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    check_features(features, reference)
    found = kid_features_to_metric(
        torch.from_numpy(features.astype(np.float64)),
        torch.from_numpy(reference.astype(np.float64)),
        kid_subsets=SUBSETS,
        kid_subset_size=SUBSET_SIZE,
        rng_seed=2020,
        verbose=False,
    )
    return float(found[KEY_METRIC_KID_MEAN])
