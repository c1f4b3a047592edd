"""Structural similarity (Wang et al., "Image quality assessment", IEEE TIP 2004) of 8-bit images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.metrics.psnr import PEAK, check_pairs

WINDOW = 11
SIGMA = 1.5
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2

FloatArray = NDArray[np.float64]


def ssim(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the SSIM of each image to its reference.

    The usual settings: Gaussian window 11x11 of sigma 1.5, K1 = 0.01, K2 = 0.03, data range 255; each colour
    channel by itself, averaged over channels and all pixels, the image mirrored at its borders as
    torchmetrics does it.

    Args:
        images: uint8 [n, height, width, channels], at least 11x11.
        reference: uint8, same shape.

    Returns:
        float64 [n], at most 1.

    Raises:
        ValueError: the arrays differ in shape, are not uint8, or are smaller than the window.
    """
    check_pairs(images, reference)
    if min(images.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}x{WINDOW}, got {images.shape[1:3]}")
    return np.array([_ssim_of_pair(a, b) for a, b in zip(images, reference, strict=True)], dtype=np.float64)


def _ssim_of_pair(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Return the SSIM of two uint8 [height, width, channels] images (eq. 13 of the paper)."""
    luminance, structure = similarity_maps(image.astype(np.float64), reference.astype(np.float64))
    return float(np.mean(luminance * structure))


def similarity_maps(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the luminance and the contrast-structure term at every pixel of [height, width, channels]."""
    mean_x, mean_y = _blur(x), _blur(y)
    # Rounding can leave the variance of a flat patch a little below 0.
    var_x = np.maximum(_blur(x * x) - mean_x**2, 0.0)
    var_y = np.maximum(_blur(y * y) - mean_y**2, 0.0)
    cov = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * cov + C2) / (var_x + var_y + C2)
    return luminance, structure


def _gaussian() -> FloatArray:
    """Return the window's one-dimensional factor: float64 [11], summing to 1."""
    offsets = np.arange(WINDOW, dtype=np.float64) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


_WEIGHTS = _gaussian()


def _blur(plane: FloatArray) -> FloatArray:
    """Weighted means over the window around every pixel of [height, width, channels]: same shape."""
    from scipy.ndimage import correlate1d

    down = correlate1d(plane, _WEIGHTS, axis=0, mode="mirror")
    return np.asarray(correlate1d(down, _WEIGHTS, axis=1, mode="mirror"), dtype=np.float64)
