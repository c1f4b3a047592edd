"""Figures that compare clouds of features of natural images: Inception-v3, DINOv2 and CLIP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.figures.base import NO_REFERENCE, CellData, Figure, absent, of_influence, single, too_few
from harness.metrics import METRICS
from harness.metrics.cmmd import cmmd
from harness.metrics.coverage import coverage
from harness.metrics.density import density
from harness.metrics.distances import neighbour_radii
from harness.metrics.extractors import Arrays, Extractor
from harness.metrics.extractors.clip import EMBEDDING, Clip
from harness.metrics.extractors.dinov2 import TOKEN, DinoV2
from harness.metrics.extractors.inception import LOGITS, POOL, SPATIAL, Inception
from harness.metrics.extractors.inception_clean import CleanInception
from harness.metrics.fd_dinov2 import fd_dinov2
from harness.metrics.fid import Gaussian, fid, gaussian
from harness.metrics.fid_clean import fid_clean
from harness.metrics.fid_clean_ref import fid_clean_ref
from harness.metrics.fid_delta import fid_delta
from harness.metrics.fid_delta import influence as fid_influence
from harness.metrics.fid_ref import fid_ref
from harness.metrics.images import Images
from harness.metrics.inception_score import inception_score
from harness.metrics.kid import kid
from harness.metrics.kid_delta import influence as kid_influence
from harness.metrics.kid_delta import kid_delta
from harness.metrics.precision import NEIGHBOURS, precision
from harness.metrics.real_images import RealImages
from harness.metrics.recall import recall
from harness.metrics.sfid import sfid
from harness.metrics.sources import Found, missing_note
from harness.metrics.weights import check_published
from harness.reports.record import Metric

OF_INCEPTION = (
    "fid", "fid_ref", "fid_delta", "kid", "kid_delta", "precision", "recall", "density", "coverage",
    "sfid", "inception_score",
)  # fmt: skip
OF_CLEAN = ("fid_clean", "fid_clean_ref")
_OF_CLOUDS = ("kid", "kid_delta", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class _Clouds:
    """Features of one network: of the cell, of the reference cell, and of the real images."""

    own: Arrays
    reference: Arrays | None
    real: Arrays | None


def _look(data: CellData, kind: type[Extractor], found: Found) -> _Clouds:
    """Return the features of all images there are."""

    def features(images: Images | None) -> Arrays | None:
        return None if images is None else data.store.features(kind, kind.version, found, images)

    return _Clouds(
        own=data.store.features(kind, kind.version, found, data.pictures),
        reference=features(data.reference_pictures),
        real=features(data.real.images),
    )


def inception_figures(data: CellData) -> dict[str, Figure]:
    """FID and its kin, on Inception-v3."""
    short = too_few(OF_INCEPTION, len(data.prompts))
    if len(short) == len(OF_INCEPTION):
        return short
    found = data.find("inception")
    if found is None:
        return dict.fromkeys(OF_INCEPTION, absent(missing_note("inception"))) | short
    note = check_published(found)
    clouds = _look(data, Inception, found)
    return _without_real(clouds, note) | _against_real(clouds, data, note) | short


def clean_figures(data: CellData) -> dict[str, Figure]:
    """FID after clean-fid's resizing."""
    short = too_few(OF_CLEAN, len(data.prompts))
    if short:
        return short
    found = data.find("inception")
    if found is None:
        return dict.fromkeys(OF_CLEAN, absent(missing_note("inception")))
    note = check_published(found)
    clouds = _look(data, CleanInception, found)
    figures = {"fid_clean": absent(data.real.missing), "fid_clean_ref": absent(NO_REFERENCE)}
    if clouds.real is not None:
        figures["fid_clean"] = single(
            fid_clean(clouds.own[POOL], clouds.real[POOL]), _against_what(data, note)
        )
    if clouds.reference is not None:
        figures["fid_clean_ref"] = single(fid_clean_ref(clouds.own[POOL], clouds.reference[POOL]), note)
    return figures


def _against_what(data: CellData, note: str) -> str:
    """Return the note of weights, and what the images are compared with where that is known."""
    return "; ".join(part for part in (note, data.real.source) if part)


def _without_real(clouds: _Clouds, note: str) -> dict[str, Figure]:
    """Figures that need no real images."""
    moved = absent(NO_REFERENCE)
    if clouds.reference is not None:
        moved = single(fid_ref(clouds.own[POOL], clouds.reference[POOL]), note)
    return {"fid_ref": moved, "inception_score": single(inception_score(clouds.own[LOGITS]), note)}


def _against_real(clouds: _Clouds, data: CellData, note: str) -> dict[str, Figure]:
    """Figures that compare with real images, or with moments that are stored of more of them."""
    real, note = data.real, _against_what(data, note)
    figures = {name: absent(real.missing) for name in ("fid", "sfid", "fid_delta", *_OF_CLOUDS)}
    own, pool, spatial = clouds.own, _against(clouds, real, POOL), _against(clouds, real, SPATIAL)
    if spatial is not None:
        figures["sfid"] = single(sfid(own[SPATIAL], spatial), note)
    if pool is not None:
        figures["fid"] = of_influence(fid(own[POOL], pool), fid_influence(own[POOL], pool), note)
        if clouds.reference is not None:
            figures["fid_delta"] = Metric(*fid_delta(own[POOL], clouds.reference[POOL], pool), note), None
    if clouds.real is not None:
        figures |= _of_clouds(clouds, clouds.real[POOL], note)
    if clouds.reference is None and (pool is not None or clouds.real is not None):
        figures |= dict.fromkeys(("fid_delta", "kid_delta"), absent(NO_REFERENCE))
    return figures


def _against(clouds: _Clouds, real: RealImages, feature: str) -> Gaussian | None:
    """Return the stored moments of a feature, else those of the real images, else None."""
    stored = real.moments(feature)
    if stored is not None or clouds.real is None:
        return stored
    return gaussian(clouds.real[feature])


def _of_clouds(clouds: _Clouds, real: NDArray[np.float32], note: str) -> dict[str, Figure]:
    """Figures that need every real image's features."""
    own, theirs = clouds.own[POOL], clouds.reference
    if len(real) < METRICS["kid"].min_n:
        return dict.fromkeys(_OF_CLOUDS, absent(f"n/a: only {len(real)} real images"))
    radii = neighbour_radii(real, NEIGHBOURS)
    paired = (
        {} if theirs is None else {"kid_delta": (Metric(*kid_delta(own, theirs[POOL], real), note), None)}
    )
    return {
        **paired,
        "kid": of_influence(kid(own, real), kid_influence(own, real), note),
        "precision": single(precision(own, real, radii), note),
        "recall": single(recall(own, real), note),
        "density": single(density(own, real), note),
        "coverage": single(coverage(own, real), note),
    }


def dinov2_figures(data: CellData) -> dict[str, Figure]:
    """The Fréchet distance of DINOv2 features."""
    return _one_cloud(data, "fd_dinov2", "dinov2", DinoV2, TOKEN, fd_dinov2)


def cmmd_figures(data: CellData) -> dict[str, Figure]:
    """The kernel distance of CLIP embeddings."""
    return _one_cloud(data, "cmmd", "clip-336", Clip, EMBEDDING, cmmd)


def _one_cloud(
    data: CellData,
    name: str,
    key: str,
    kind: type[Extractor],
    feature: str,
    distance: Callable[[NDArray[np.float32], NDArray[np.float32]], float],
) -> dict[str, Figure]:
    """Return the one figure `name`, a distance of a network's features from those of the real images."""
    short = too_few([name], len(data.prompts))
    if short:
        return short
    real = data.real
    if real.images is None:
        return {name: absent(real.missing)}
    found = data.find(key)
    if found is None:
        return {name: absent(missing_note(key))}
    note = _against_what(data, check_published(found))
    own = data.store.features(kind, kind.version, found, data.pictures)
    theirs = data.store.features(kind, kind.version, found, real.images)
    return {name: single(distance(own[feature], theirs[feature]), note)}
