"""Figures that compare each image with the reference's: by pixels, or by a network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.figures.base import NO_REFERENCE, CellData, Figure, absent, finite, mean
from harness.metrics.lpips import load_lpips, lpips_distances
from harness.metrics.ms_ssim import MIN_SIDE, ms_ssim
from harness.metrics.psnr import psnr
from harness.metrics.psnr_pooled import psnr_pooled
from harness.metrics.sources import missing_note
from harness.metrics.ssim import ssim
from harness.metrics.weights import check_published
from harness.reports.record import Metric

IDENTICAL = "n/a: identical to the reference"
TOO_SMALL = "n/a: image too small"


def pair_figures(data: CellData) -> dict[str, Figure]:
    """PSNR, pooled PSNR, SSIM, MS-SSIM, and LPIPS by two networks."""
    if data.reference_images is None:
        names = ("psnr", "psnr_pooled", "ssim", "ms_ssim", "lpips", "lpips_vgg")
        return {name: absent(NO_REFERENCE) for name in names}
    pair = data.images, data.reference_images
    small = min(data.images.shape[1:3]) < MIN_SIDE
    return {
        "psnr": _psnr(*pair),
        "psnr_pooled": _psnr_pooled(*pair),
        "ssim": mean(ssim(*pair), most=1.0),
        "ms_ssim": absent(TOO_SMALL) if small else mean(ms_ssim(*pair), most=1.0),
        "lpips": _lpips(data, "alex", *pair),
        "lpips_vgg": _lpips(data, "vgg", *pair),
    }


def _psnr(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figure:
    """PSNR over the pairs that differ: an identical pair is infinitely good and would swallow the mean."""
    values = finite(psnr(images, reference))
    metric, _ = mean(values)
    same = values.count(None)
    note = f"{same} of {len(values)} images identical to the reference, left out" if same else None
    return Metric(metric.value, metric.lo, metric.hi, note), values


def _psnr_pooled(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figure:
    """PSNR of the mean error, which identical pairs enter as an error of 0."""
    value, lo, hi = psnr_pooled(images, reference)
    return (Metric(value, lo, hi), None) if value is not None else absent(IDENTICAL)


def _lpips(data: CellData, net: str, images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figure:
    found = data.find(f"lpips-{net}")
    if found is None:
        return absent(missing_note(f"lpips-{net}"))
    note = check_published(found)
    model = load_lpips(found.path(), net).to(data.device)
    return mean(lpips_distances(model, images, reference), note=note)
