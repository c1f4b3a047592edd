"""Spatial FID (Nash et al., "Generating Images with Sparse Representations", ICML 2021), as ADM forms it.

The features are the first seven channels of `mixed_6/conv` of Inception-v3 at all 17x17 positions: 2,023.
"""

from __future__ import annotations

from harness.metrics.fid import Features, Gaussian, fid

WIDTH = 7 * 17 * 17
"""Spatial features of an image."""


def sfid(features: Features, reference: Features | Gaussian) -> float:
    """Return the Fréchet distance of spatial features; sensitive to where things are, not only what.

    Args:
        features: float [n, 2023] of the images.
        reference: float [m, 2023] of the reference images, or their Gaussian.

    Raises:
        ValueError: fewer than two rows, or other widths.
    """
    if features.shape[-1] != WIDTH:
        raise ValueError(f"sFID is formed from {WIDTH} spatial features, got {features.shape[-1]}")
    return fid(features, reference)
