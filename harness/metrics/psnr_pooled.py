"""Peak signal-to-noise ratio of the mean squared error over all images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.metrics.psnr import PEAK, mse
from harness.reports.statistics import Interval, t_interval


def psnr_pooled(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Interval:
    """Return 10 log10(255² / E MSE) in dB: the error is averaged before the logarithm, not after.

    An identical pair counts as an error of 0, where a mean of PSNRs is infinite or has to leave it out.

    Args:
        images: uint8 [n, height, width, channels].
        reference: uint8, same shape.

    Returns:
        The figure and the ends of its interval: Student's interval of the mean error, through the logarithm.
        All None when every pair is identical; the ends None when the interval of the error reaches 0.

    Raises:
        ValueError: the arrays differ in shape or are not uint8.
    """
    return pooled(mse(images, reference).tolist())


def pooled(errors: Sequence[float]) -> Interval:
    """Return the same of the mean squared error of each pair."""
    mean, low, high = t_interval(errors)
    if mean is None or mean <= 0:
        return Interval(None, None, None)
    if low is None or high is None or low <= 0:
        return Interval(_decibels(mean), None, None)
    return Interval(_decibels(mean), _decibels(high), _decibels(low))


def _decibels(error: float) -> float:
    return float(10.0 * np.log10(PEAK**2 / error))
