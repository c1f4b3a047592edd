"""Peak signal-to-noise ratio of 8-bit images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PEAK = 255.0


def psnr(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the PSNR of each image against its reference: 10 log10(255² / MSE), over pixels and channels.

    Args:
        images: uint8 [n, height, width, channels].
        reference: uint8, same shape.

    Returns:
        float64 [n] in dB; infinite where the two are identical.

    Raises:
        ValueError: the arrays differ in shape or are not uint8.
    """
    return decibels(mse(images, reference))


def decibels(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 10 log10(255² / error) of mean squared errors: float64, infinite where there is none."""
    with np.errstate(divide="ignore"):
        return np.asarray(10.0 * np.log10(PEAK**2 / errors), dtype=np.float64)


def mse(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean squared error of each image [n, h, w, c], over pixels and channels: float64 [n].

    Raises:
        ValueError: the arrays differ in shape or are not uint8.
    """
    check_pairs(images, reference)
    # Differences of uint8 wrap around, so they are formed in int32; one pair at a time, or they would take
    # four times the memory of all images.
    errors = [
        np.mean(np.square(image.astype(np.int32) - other.astype(np.int32)), dtype=np.float64)
        for image, other in zip(images, reference, strict=True)
    ]
    return np.array(errors, dtype=np.float64)


def check_pairs(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> None:
    """Raise ValueError unless both are uint8 [n, height, width, channels] of one shape."""
    if images.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype} and {reference.dtype}")
    if images.ndim != 4 or images.shape != reference.shape:
        raise ValueError(f"images must be paired [n, h, w, c], got {images.shape} and {reference.shape}")
