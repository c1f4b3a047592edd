"""Multi-scale SSIM (Wang et al., "Multi-scale structural similarity", Asilomar 2003) of 8-bit images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.psnr import check_pairs
from harness.metrics.ssim import WINDOW, FloatArray, similarity_maps

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales, from the finest (section 3.2 of the paper)."""
MIN_SIDE = (WINDOW - 1) * 2 ** (len(EXPONENTS) - 1) + 1
"""Smallest side: 161 pixels, so that the window fits the coarsest scale."""
_REACH = WINDOW // 2


def ms_ssim(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the multi-scale SSIM of each image to its reference, as torchmetrics forms it.

    Contrast and structure of each scale, away from the border; luminance too at the coarsest; negative terms
    count as 0; scales are halved by means over 2x2 pixels.

    Args:
        images: uint8 [n, height, width, channels], sides over 160.
        reference: uint8, same shape.

    Returns:
        float64 [n], 0 to 1.

    Raises:
        ValueError: the arrays differ in shape, are not uint8, or are too small.
    """
    check_pairs(images, reference)
    if min(images.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"MS-SSIM needs sides of at least {MIN_SIDE}, got {images.shape[1:3]}")
    pairs = zip(images, reference, strict=True)
    return np.array([_of_pair(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs])


def _of_pair(x: FloatArray, y: FloatArray) -> float:
    """Return eq. 7 of the paper for two [height, width, channels] images."""
    product = 1.0
    for scale, exponent in enumerate(EXPONENTS):
        luminance, structure = similarity_maps(x, y)
        if scale == len(EXPONENTS) - 1:
            term = float(np.mean(luminance * structure))
        else:
            term = float(np.mean(structure[_REACH:-_REACH, _REACH:-_REACH]))
            x, y = _halve(x), _halve(y)
        product *= max(term, 0.0) ** exponent
    return product


def _halve(plane: FloatArray) -> FloatArray:
    """Means over 2x2 pixels; an odd last row or column is dropped."""
    rows, columns = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    even = plane[:rows, :columns]
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
