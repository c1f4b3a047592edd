"""One metric of one cell against its baseline: two one-sided tests on paired differences, look by look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.reports.gate.sequential import critical_value, nominal_levels, planned_looks

Verdict = Literal["fail", "pass", "suspicious", "undecided"]
Values = Sequence[float | None]

IDENTICAL_DB = 100.0
"""PSNR an image counts as that equals the reference's: above what any 8-bit image that differs can have."""

LEAST_MARGINS: Mapping[str, float] = {
    "psnr": 0.1,
    "ssim": 0.002,
    "lpips": 0.005,
    "lpips_scene": 0.01,
    "prompt_accuracy": 0.05,
    "image_reward": 0.05,
}
"""Differences of means that are never called a change, whatever the noise floor: it may be exactly 0."""


@dataclass(frozen=True)
class Comparison:
    """What was found of one metric of one cell.

    Attributes:
        metric: its name.
        verdict: see `compare_metric`.
        n: prompts at the look that decided, or the last one seen.
        mean: mean of the paired differences, positive when the new run is better; None without pairs.
        lo: lower end of the interval at that look.
        hi: upper end.
        margin: difference that is not a change.
        wanted: prompts of the next look, or None when there is none to come.
    """

    metric: str
    verdict: Verdict
    n: int
    mean: float | None
    lo: float | None
    hi: float | None
    margin: float
    wanted: int | None = None


def paired_differences(
    metric: str, better: Literal["higher", "lower"], new: Values, base: Values
) -> NDArray[np.float64]:
    """Return how much better each image of the new run is than the baseline's of the same prompt.

    Args:
        metric: its name; a PSNR that is None stands for an image equal to the reference's.
        better: which direction is better.
        new: by prompt; the longer of the two lists is cut.
        base: by prompt.

    Returns:
        float64 [n]; pairs without a value on either side are left out.
    """
    n = min(len(new), len(base))
    sides = [list(new[:n]), list(base[:n])]
    if metric == "psnr":
        sides = [[IDENTICAL_DB if value is None else value for value in side] for side in sides]
    pairs = [(a, b) for a, b in zip(*sides, strict=True) if a is not None and b is not None]
    sign = 1.0 if better == "higher" else -1.0
    return np.asarray([sign * (a - b) for a, b in pairs], dtype=np.float64)


def noise_margin(metric: str, noise: NDArray[np.float64] | None) -> float:
    """Return the margin that a measured noise floor gives.

    It is the root mean square, over prompts, of the differences between two runs of the same cell that differ
    in nothing that should matter (batch size, backend): a mean that moved by less than rounding moves a
    single image is no change.

    Args:
        metric: its name.
        noise: such differences, float64 [n], or None when they were not measured.

    Returns:
        The margin, at least the metric's `LEAST_MARGINS` (0.0 for a metric without one).
    """
    least = LEAST_MARGINS.get(metric, 0.0)
    if noise is None or noise.size == 0:
        return least
    return max(least, float(np.sqrt(np.mean(noise**2))))


def compare_metric(
    metric: str, differences: NDArray[np.float64], margin: float, alpha: float, planned: int
) -> Comparison:
    """Go through the looks that the differences allow, and stop at the first that decides.

    At each look the interval is mean ± t · standard error with the tail probability that
    `sequential.nominal_levels` gives, so that over all looks each end is wrong with a chance of at most
    `alpha`. `fail`: it lies wholly below -margin. `pass`: wholly inside ±margin. `suspicious`: wholly above
    margin. Otherwise `undecided`. Differences without spread have no interval; their mean is compared itself.

    Args:
        metric: its name.
        differences: float64 [n], positive is better, in the order of the prompts.
        margin: difference that is not a change, at least 0.
        alpha: one-sided error over all looks.
        planned: prompts there will be at most; fixes the looks.

    Returns:
        The finding at the look that decided; more differences after it do not change it.
    """
    looks = planned_looks(planned)
    levels = nominal_levels(looks, alpha)
    found = Comparison(metric, "undecided", 0, None, None, None, margin, looks[0])
    for index, (look, level) in enumerate(zip(looks, levels, strict=True)):
        if len(differences) < look:
            break
        following = looks[index + 1] if index + 1 < len(looks) else None
        mean, lo, hi = _interval(differences[:look], level)
        verdict = _verdict(lo, hi, margin)
        found = Comparison(metric, verdict, look, mean, lo, hi, margin, following)
        if verdict != "undecided":
            break
    return found


def _interval(differences: NDArray[np.float64], level: float) -> tuple[float, float, float]:
    """Return mean and interval of at least one difference."""
    if differences.min() == differences.max():
        mean = float(differences[0])
        return mean, mean, mean
    n = len(differences)
    mean = float(differences.mean())
    half = critical_value(level, n) * float(differences.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def _verdict(lo: float, hi: float, margin: float) -> Verdict:
    if hi < -margin:
        return "fail"
    if lo > margin:
        return "suspicious"
    if lo >= -margin and hi <= margin:
        return "pass"
    return "undecided"
