"""From a cell's images and features to its figures: deterministic on the CPU."""

from __future__ import annotations

import math

from harness.figures.base import SCENES, CellData, Figure, absent
from harness.figures.distributions import (
    OF_CLEAN,
    OF_INCEPTION,
    clean_figures,
    cmmd_figures,
    dinov2_figures,
    inception_figures,
)
from harness.figures.pairs import pair_figures
from harness.figures.scenes import OF_FEATURES, OF_SCENES, scene_figures
from harness.figures.texts import clip_figures, reward_figures
from harness.metrics import METRICS
from harness.metrics.scene import SceneWorld
from harness.metrics.weights import single_thread
from harness.reports.record import Metric

__all__ = ["CellData", "PerPrompt", "reduce_cell"]

_DIGITS = 8
"""Significant digits kept; also the decimals, so that the rounding of a sum that should be 0 leaves a 0."""

PerPrompt = dict[str, list[float | None]]


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
        UserError: weights or real images given by path are unusable.
    """
    with single_thread():
        figures = (
            pair_figures(data)
            | _space_figures(data, world)
            | cmmd_figures(data)
            | dinov2_figures(data)
            | clip_figures(data)
            | reward_figures(data)
        )
    metrics = {name: _rounded(figures[name][0]) for name in METRICS}
    per_prompt = {
        name: [_canonical(value) for value in values]
        for name in METRICS
        if (values := figures[name][1]) is not None
    }
    return metrics, per_prompt


def _space_figures(data: CellData, world: SceneWorld | None) -> dict[str, Figure]:
    """Figures of the features a prompt set is judged by: the recogniser's on scenes, else Inception's."""
    if data.dataset == SCENES:
        others = {*OF_INCEPTION, *OF_CLEAN} - set(OF_FEATURES)
        return dict.fromkeys(others, absent("n/a: not formed on scenes")) | scene_figures(data, world)
    of_scenes = dict.fromkeys(OF_SCENES, absent("n/a: dataset is not scenes"))
    return of_scenes | inception_figures(data) | clean_figures(data)


def _canonical(value: float | None) -> float | None:
    """Round to 8 significant digits and 8 decimals, and turn -0 into 0; None for None, infinite and NaN.

    What is cut off is the last bits, which depend on the order in which a library sums.
    """
    if value is None or not math.isfinite(value):
        return None
    return round(float(f"{value:.{_DIGITS}g}"), _DIGITS) + 0.0


def _rounded(metric: Metric) -> Metric:
    return Metric(_canonical(metric.value), _canonical(metric.lo), _canonical(metric.hi), metric.note)
