"""Fréchet distance from the 16-bit model's own images: what quantization moved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.fid import fid


def fid_ref(features: NDArray[np.float32], reference_model: NDArray[np.float32]) -> float:
    """Return the FID of a cell's images against the reference cell's, on the same prompts and noise.

    Args:
        features: float32 [n, d] of the cell's images.
        reference_model: float32 [n, d] of the reference cell's images.

    Returns:
        The distance; 0 when quantization changed nothing. Both sets share prompts and noise, so the sampling
        error that dominates `fid` at a small n largely cancels.

    Raises:
        ValueError: as `harness.metrics.fid.fid`.
    """
    return fid(features, reference_model)
