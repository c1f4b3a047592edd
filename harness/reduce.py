"""From a cell's images and features to its figures: deterministic, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.datasets.contract import Prompt
from harness.metrics import METRICS
from harness.metrics.fid import fid
from harness.metrics.fid_ref import fid_ref
from harness.metrics.image_reward import image_reward, load_image_reward
from harness.metrics.kid import kid
from harness.metrics.lpips import find_backbone, load_lpips, lpips_distances
from harness.metrics.precision import precision
from harness.metrics.prompt_accuracy import prompt_accuracy
from harness.metrics.psnr import psnr
from harness.metrics.recall import recall
from harness.metrics.scene import SIDE, SceneScores, SceneWorld, score_scenes, shipped_world
from harness.metrics.ssim import ssim
from harness.metrics.weights import sha256, single_thread
from harness.reports.record import Metric
from harness.reports.statistics import t_interval

MISSING_WEIGHTS = "n/a: missing weights"
NO_REFERENCE = "n/a: no reference"
_DIGITS = 8
"""Significant digits kept; also the decimals, so that the rounding of a sum that should be 0 leaves a 0."""

PerPrompt = dict[str, list[float | None]]
Figure = tuple[Metric, list[float | None] | None]
"""A metric, and its value for each prompt where it has one."""


@dataclass(frozen=True)
class CellData:
    """All that the figures of a cell are formed from.

    Attributes:
        images: uint8 [n, height, width, 3], in the order of the prompts.
        features: the recogniser's features of them, float32 [n, 64], or None to read them here.
        prompts: n prompts.
        reference_images: the reference cell's images for the same prompts and noise, or None (for the
            reference itself, or when it failed).
        reference_features: float32 [n, 64] of those, or None.
        dataset: name of the prompt set.
        data_paths: paths given with `--data-path`; metrics read `lpips-alex` and `image-reward`.
    """

    images: NDArray[np.uint8]
    features: NDArray[np.float32] | None
    prompts: Sequence[Prompt]
    reference_images: NDArray[np.uint8] | None = None
    reference_features: NDArray[np.float32] | None = None
    dataset: str = "scenes"
    data_paths: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = (self.images, self.features, self.reference_images, self.reference_features)
        if any(array is not None and len(array) != len(self.prompts) for array in rows):
            raise ValueError(f"every array must have one row for each of the {len(self.prompts)} prompts")
        if not self.prompts:
            raise ValueError("a cell without images has no figures")


def reduce_cell(data: CellData, world: SceneWorld | None = None) -> tuple[dict[str, Metric], PerPrompt]:
    """Form every metric of a cell.

    Args:
        data: the cell's images and what they are compared with.
        world: the scene recogniser and its reference statistics; by default those shipped.

    Returns:
        All of `METRICS` by name, in that order, and per-prompt values of those that have them. A missing or
        infinite value is None, never NaN. The same data gives the same numbers, bit for bit.

    Raises:
        ValueError: arrays that do not belong together.
        UserError: weights given by path are unusable.
    """
    with single_thread():
        figures = _pair_figures(data) | _scene_figures(data, world) | {"image_reward": _image_reward(data)}
    metrics = {name: _rounded(figures[name][0]) for name in METRICS}
    per_prompt = {
        name: [_canonical(value) for value in values]
        for name in METRICS
        if (values := figures[name][1]) is not None
    }
    return metrics, per_prompt


def _pair_figures(data: CellData) -> dict[str, Figure]:
    """Metrics that compare each image with the reference's, by pixels or by a given network."""
    if data.reference_images is None:
        return {name: _absent(NO_REFERENCE) for name in ("psnr", "ssim", "lpips")}
    pair = data.images, data.reference_images
    return {"psnr": _psnr(*pair), "ssim": _mean(ssim(*pair), most=1.0), "lpips": _lpips(data, *pair)}


def _psnr(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figure:
    """PSNR over the pairs that differ: an identical pair is infinitely good and would swallow the mean."""
    values = _finite(psnr(images, reference))
    metric, _ = _mean(values)
    same = values.count(None)
    note = f"{same} of {len(values)} images identical to the reference, left out" if same else None
    return Metric(metric.value, metric.lo, metric.hi, note), values


def _lpips(data: CellData, images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figure:
    backbone = find_backbone(data.data_paths.get("lpips-alex"))
    if backbone is None:
        return _absent(MISSING_WEIGHTS)
    distances = lpips_distances(load_lpips(backbone), images, reference)
    return _mean(distances, note=f"AlexNet sha256 {sha256(backbone)}")


def _image_reward(data: CellData) -> Figure:
    folder = data.data_paths.get("image-reward")
    if folder is None:
        return _absent(MISSING_WEIGHTS)
    try:
        model = load_image_reward(folder)
    except ModuleNotFoundError:
        return _absent("n/a: image-reward is not installed")
    scores = image_reward(model, data.images, [prompt.text for prompt in data.prompts])
    return _mean(scores, note=f"ImageReward.pt sha256 {sha256(folder / 'ImageReward.pt')}")


def _scene_figures(data: CellData, world: SceneWorld | None) -> dict[str, Figure]:
    """Metrics that need the recogniser to understand the images."""
    names = ("lpips_scene", "fid", "fid_ref", "kid", "precision", "recall", "prompt_accuracy")
    if data.dataset != "scenes":
        return {name: _absent("n/a: dataset is not scenes") for name in names}
    if data.images.shape[1:] != (SIDE, SIDE, 3):
        return {name: _absent(f"n/a: images are not {SIDE}x{SIDE}") for name in names}
    world = world or shipped_world()
    scores = score_scenes(world, data.images, data.prompts, data.reference_images)
    distances = scores.distances
    accuracy: Figure = prompt_accuracy(scores.judged), [float(right) for right in scores.judged]
    return {
        "lpips_scene": _absent(NO_REFERENCE) if distances is None else _mean(distances),
        "prompt_accuracy": accuracy,
        **_distribution_figures(data, scores, world),
    }


def _distribution_figures(data: CellData, scores: SceneScores, world: SceneWorld) -> dict[str, Figure]:
    """Metrics that compare clouds of features; none below the metric's smallest n."""
    names = ("fid", "fid_ref", "kid", "precision", "recall")
    n = len(data.prompts)
    short = {name: _absent(f"n/a: N < {METRICS[name].min_n}") for name in names if n < METRICS[name].min_n}
    if len(short) == len(names):
        return short
    features = scores.features if data.features is None else data.features
    rendered, radii = world.reference_features().numpy(), world.reference_radii().numpy()
    figures = {
        "fid": _single(fid(features, rendered)),
        "kid": _single(kid(features, rendered)),
        "precision": _single(precision(features, rendered, radii)),
        "recall": _single(recall(features, rendered)),
        "fid_ref": _absent(NO_REFERENCE),
    }
    if data.reference_features is not None:
        figures["fid_ref"] = _single(fid_ref(features, data.reference_features))
    return figures | short


def _absent(note: str) -> Figure:
    return Metric(None, note=note), None


def _single(value: float) -> Figure:
    return Metric(value), None


def _mean(values: Iterable[float | None], note: str | None = None, most: float = math.inf) -> Figure:
    """The mean over prompts with its t interval, which ends at the `most` the metric can be."""
    listed = _finite(values)
    mean, lo, hi = t_interval(listed)
    return Metric(mean, lo, None if hi is None else min(hi, most), note), listed


def _finite(values: Iterable[float | None]) -> list[float | None]:
    """Replace infinite and NaN values, which JSON cannot hold, by None."""
    return [None if value is None or not math.isfinite(value) else float(value) for value in values]


def _canonical(value: float | None) -> float | None:
    """Round to 8 significant digits and 8 decimals, and turn -0 into 0; None for None, infinite and NaN.

    What is cut off is the last bits, which depend on the order in which a library sums.
    """
    if value is None or not math.isfinite(value):
        return None
    return round(float(f"{value:.{_DIGITS}g}"), _DIGITS) + 0.0


def _rounded(metric: Metric) -> Metric:
    return Metric(_canonical(metric.value), _canonical(metric.lo), _canonical(metric.hi), metric.note)
