"""Figures that compare each image with the reference's: by pixels, or by a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from harness.figures.base import NO_REFERENCE, CellData, Figure, absent, finite, mean
from harness.metrics.extractors import BATCH
from harness.metrics.images import Pictures
from harness.metrics.lpips import load_lpips, lpips_distances
from harness.metrics.ms_ssim import MIN_SIDE, ms_ssim
from harness.metrics.psnr import decibels, mse
from harness.metrics.psnr_pooled import pooled
from harness.metrics.sources import Found, missing_note
from harness.metrics.ssim import ssim
from harness.metrics.weights import check_published
from harness.reports.record import Metric

OfPairs = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float64]]

IDENTICAL = "n/a: identical to the reference"
TOO_SMALL = "n/a: image too small"


def pair_figures(data: CellData) -> dict[str, Figure]:
    """PSNR, pooled PSNR, SSIM, MS-SSIM, and LPIPS by two networks."""
    reference = data.reference_pictures
    if reference is None:
        names = ("psnr", "psnr_pooled", "ssim", "ms_ssim", "lpips", "lpips_vgg")
        return {name: absent(NO_REFERENCE) for name in names}
    small = min(data.pictures.shape[1:3]) < MIN_SIDE
    kinds: dict[str, OfPairs] = {"mse": mse, "ssim": ssim}
    kinds |= {} if small else {"ms_ssim": ms_ssim}
    networks = {"lpips": _network(data, "alex"), "lpips_vgg": _network(data, "vgg")}
    kinds |= {name: network.distances for name, network in networks.items() if network is not None}
    values = _of_pairs(kinds, data.pictures, reference)
    return {
        "psnr": _psnr(values["mse"]),
        "psnr_pooled": _psnr_pooled(values["mse"]),
        "ssim": mean(values["ssim"], most=1.0),
        "ms_ssim": absent(TOO_SMALL) if small else mean(values["ms_ssim"], most=1.0),
        "lpips": _lpips("alex", networks["lpips"], values.get("lpips", [])),
        "lpips_vgg": _lpips("vgg", networks["lpips_vgg"], values.get("lpips_vgg", [])),
    }


def _of_pairs(kinds: Mapping[str, OfPairs], images: Pictures, reference: Pictures) -> dict[str, list[float]]:
    """Return one value of every kind for each pair, in one pass over the images."""
    values: dict[str, list[float]] = {name: [] for name in kinds}
    for pair in zip(images.runs(BATCH), reference.runs(BATCH), strict=True):
        for name, kind in kinds.items():
            values[name] += kind(*pair).tolist()
    return values


def _psnr(errors: list[float]) -> Figure:
    """PSNR over the pairs that differ: an identical pair is infinitely good and would swallow the mean."""
    values = finite(decibels(np.array(errors)))
    metric, _ = mean(values)
    same = values.count(None)
    note = f"{same} of {len(values)} images identical to the reference, left out" if same else None
    return Metric(metric.value, metric.lo, metric.hi, note), values


def _psnr_pooled(errors: list[float]) -> Figure:
    """PSNR of the mean error, which identical pairs enter as an error of 0."""
    value, lo, hi = pooled(errors)
    return (Metric(value, lo, hi), None) if value is not None else absent(IDENTICAL)


class _Network:
    """LPIPS by one backbone, and what is said of its weights."""

    def __init__(self, found: Found, net: str, device: str) -> None:
        self.note = check_published(found)
        self._model = load_lpips(found.path(), net).to(device)

    def distances(self, images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
        return lpips_distances(self._model, images, reference)


def _network(data: CellData, net: str) -> _Network | None:
    """Load LPIPS, or return None when its backbone is missing."""
    found = data.find(f"lpips-{net}")
    return None if found is None else _Network(found, net, data.device)


def _lpips(net: str, network: _Network | None, distances: list[float]) -> Figure:
    if network is None:
        return absent(missing_note(f"lpips-{net}"))
    return mean(distances, note=network.note)
