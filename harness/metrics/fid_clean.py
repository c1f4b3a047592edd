"""FID after clean-fid's resizing (Parmar et al., "On Aliased Resizing", CVPR 2022), as in SVDQuant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.fid import fid


def fid_clean(features: NDArray[np.float32], real: NDArray[np.float32]) -> float:
    """Return the FID of features of images that were resized without aliasing.

    Args:
        features: float32 [n, d] of a cell's images, by `harness.metrics.extractors.inception_clean`.
        real: float32 [m, d] of real images, likewise.

    Returns:
        The distance. It does not compare with `fid`: the resizing moves it by whole points.

    Raises:
        ValueError: as `harness.metrics.fid.fid`.
    """
    return fid(features, real)
