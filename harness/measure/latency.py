"""Milliseconds of one denoiser step, quantized and reference measured in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

WARM_UP = 3
ROUNDS = 20
_OUTSIDE = 0.05


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of the times of one function, in milliseconds."""

    median: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios and its interval."""

    median: float
    lo: float
    hi: float


@dataclass(frozen=True)
class StepTimes:
    """Times of the quantized step and of the reference's, measured under the same conditions.

    Attributes:
        quantized: milliseconds.
        reference: milliseconds.
        ratio: of the two times of one round, over rounds.
    """

    quantized: Quartiles
    reference: Quartiles
    ratio: Ratio


def compare_step_ms(
    quantized: Callable[[], object],
    reference: Callable[[], object],
    device: torch.device | str,
    *,
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
) -> StepTimes:
    """Time two functions in turns, so that heat and other load meet both alike.

    Every round runs both once, and the order alternates from round to round (AB, BA, AB, ...), so that
    neither always profits from what the other left in the caches.

    Args:
        quantized: one denoiser step of the quantized model.
        reference: the same step of the reference.
        device: where they run; on CUDA the time is taken by events on the current stream.
        rounds: timed runs of each, at least 1.
        warm_up: untimed runs of each before.

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"at least one round is needed, got {rounds}")
    for _ in range(warm_up):
        quantized()
        reference()
    times: tuple[list[float], list[float]] = ([], [])
    pair = (quantized, reference)
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[which].append(time_ms(pair[which], device))
    ratios = [ours / theirs for ours, theirs in zip(*times, strict=True)]
    return StepTimes(quartiles(times[0]), quartiles(times[1]), median_ratio(ratios))


def time_ms(function: Callable[[], object], device: torch.device | str) -> float:
    """Run `function` once and return its duration in milliseconds, work queued on the device included."""
    if torch.device(device).type == "cuda":
        return _cuda_ms(function, torch.device(device))
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def _cuda_ms(function: Callable[[], object], device: torch.device) -> float:
    """Time by CUDA events; the device is idle before the first, so no earlier work is counted."""
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        start, end = _event(), _event()
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def quartiles(times: Sequence[float]) -> Quartiles:
    """Return the median and the quartiles of times, linearly interpolated."""
    lo, median, hi = np.percentile(np.asarray(times, dtype=np.float64), [25, 50, 75])
    return Quartiles(float(median), float(lo), float(hi))


def median_ratio(ratios: Sequence[float]) -> Ratio:
    """Return the median and its distribution-free interval of at least 95 %, from order statistics.

    The k-th smallest and k-th largest enclose the median unless fewer than k values fall on one side of it, a
    binomial count. Below six values no such pair reaches 95 %; the extremes are given.
    """
    ordered, n = sorted(ratios), len(ratios)
    outside, k = 2.0 * 0.5**n, 0
    while outside <= _OUTSIDE and k < (n - 1) // 2:
        k += 1
        outside += 2.0 * math.comb(n, k) * 0.5**n
    k = max(0, k - 1) if outside > _OUTSIDE else k
    return Ratio(float(np.median(ordered)), ordered[k], ordered[n - 1 - k])
