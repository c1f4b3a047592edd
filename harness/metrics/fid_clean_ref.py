"""Fréchet distance from the 16-bit model's own images after clean-fid's resizing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.fid import fid


def fid_clean_ref(features: NDArray[np.float32], reference_model: NDArray[np.float32]) -> float:
    """Return the `fid_clean` of a cell's images against the reference cell's, on the same prompts and noise.

    Args:
        features: float32 [n, d] of the cell's images, by `harness.metrics.extractors.inception_clean`.
        reference_model: float32 [n, d] of the reference cell's images, likewise.

    Returns:
        The distance; 0 when quantization changed nothing.

    Raises:
        ValueError: as `harness.metrics.fid.fid`.
    """
    return fid(features, reference_model)
