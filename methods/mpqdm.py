"""MPQ-DM: outlier-driven mixed quantization of output channels (AAAI 2025), without the distillation.

Channels with heavy-tailed weights get one bit more, as many with light tails one bit less; the mean stays exactly N.
The share of swapped channels is searched on the layer's output error with weights and activations quantized by
the final grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.quantizers.ranges import RangeRule
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob, method
from harness.methods.layers import (
    calibrated_quantizer,
    kernel_taps,
    packed_layer,
    per_column,
    weight_matrix,
)
from harness.methods.objective import LayerSample, row_errors
from harness.methods.rounding import PLAIN_BITS, RowPlan, round_plain, round_uniform
from harness.methods.salience import balanced_bits, best_count, descending, pearson_kurtosis
from harness.methods.smoothing import input_channel_absmax, smoothing_scale

SAMPLE_ROWS = 512


@dataclass(frozen=True)
class MpqdmConfig(MethodConfig):
    """Settings of `mpqdm`.

    Attributes:
        prescale: `search` keeps the pre-scale where it lowers the output error, `always` is the published rule.
        alpha: exponent of the pre-scale (max|x| / max|w|)^alpha.
        swap: `search` over 0, 10, ..., 50 % of the channels, or `off`.
        range: how the ends of a weight grid are found.
        act: activation ranges: `dynamic`, `static`, or `per_step` as in the published code.
    """

    prescale: Literal["search", "always", "never"] = "search"
    alpha: float = 0.5
    swap: Literal["search", "off"] = "search"
    range: Literal["mse", "minmax"] = "mse"
    act: Literal["dynamic", "static", "per_step"] = "dynamic"

    def __post_init__(self) -> None:
        """Check the exponent; raises ValueError."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is between 0 and 1, not {self.alpha}")


@dataclass(frozen=True)
class _Mix:
    """One candidate for a layer: its pre-scale, the plan of its rows, and their summed output error."""

    scale: Tensor | None
    plan: RowPlan
    swapped: int
    error: float
    error_unswapped: float


@method(
    "mpqdm",
    MpqdmConfig,
    version=1,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    needs_calibration=True,
    summary="kurtosis-driven N-1/N/N+1 channel mix, pre-scaled",
)
def quantize(job: QuantizeJob, config: MpqdmConfig) -> None:
    """Replace every target by the mix of widths with the least output error."""
    for target in job.targets:
        if target.w_bits >= PLAIN_BITS:
            round_plain(job, target)
            continue
        layer = job.layer(target.name)
        best = _best_mix(job, target, layer, config)
        weight = weight_matrix(layer)
        if best.scale is not None:
            weight = weight * per_column(best.scale, kernel_taps(layer))
        act = calibrated_quantizer(target, config.act, job.stream(), best.scale)
        packed = best.plan.round(weight, config.range)
        job.replace(target.name, packed_layer(layer, packed, act, smooth=best.scale))
        job.note(
            target.name,
            swap=round(best.swapped / len(weight), 4),
            prescale=best.scale is not None,
            gain=round(1 - best.error / best.error_unswapped, 4) if best.error_unswapped > 0 else 0.0,
        )


def prescale(job: QuantizeJob, target: LayerTarget, layer: nn.Linear | nn.Conv2d, alpha: float) -> Tensor:
    """MPQ-DM's pre-scale (max|x| / max|w|)^alpha per input channel, clamped: float16 [channels]."""
    w_absmax = input_channel_absmax([weight_matrix(layer)], kernel_taps(layer))
    return smoothing_scale(job.stream().absmax(target.name), w_absmax, alpha, alpha)


def _best_mix(
    job: QuantizeJob, target: LayerTarget, layer: nn.Linear | nn.Conv2d, config: MpqdmConfig
) -> _Mix:
    scales: list[Tensor | None] = []
    if config.prescale != "always":
        scales.append(None)
    if config.prescale != "never":
        scales.append(prescale(job, target, layer, config.alpha))
    sample = LayerSample(layer, job.stream().samples(target.name), SAMPLE_ROWS)
    mixes = []
    for scale in scales:
        act = calibrated_quantizer(
            target, "static" if config.act != "dynamic" else "dynamic", job.stream(), scale
        )
        mixes.append(_mix(layer, target.w_bits, sample, scale, act, config))
    return min(mixes, key=lambda mix: mix.error)


def _mix(
    layer: nn.Linear | nn.Conv2d,
    bits: int,
    sample: LayerSample,
    scale: Tensor | None,
    act: ActQuantizer | None,
    config: MpqdmConfig,
) -> _Mix:
    """Search the split for one pre-scale."""
    weight = weight_matrix(layer)
    if scale is not None:
        weight = weight * per_column(scale, kernel_taps(layer))
    inputs = sample.rows(scale, act)
    order = descending(pearson_kurtosis(weight))
    plain = row_errors(sample.target, inputs, round_uniform(weight, bits, ranges=config.range).dequantize())
    count = 0
    error = {bits: plain, bits - 1: plain.clone(), bits + 1: plain.clone()}
    if config.swap == "search":
        # Only the upper half can be raised and the lower half lowered: the rest need not be tried.
        half = len(order) // 2
        for width, rows in ((bits + 1, order[:half]), (bits - 1, order[len(order) - half :])):
            error[width][rows] = _errors_at(weight, rows, width, sample.target, inputs, config.range)
        count = best_count(order, error, bits)
    assigned = balanced_bits(order, count, bits)
    total = sum(float(error[b].double()[assigned == b].sum()) for b in error)
    plan = RowPlan(assigned, torch.zeros(len(order), dtype=torch.bool))
    return _Mix(scale, plan, count, total, float(plain.double().sum()))


def _errors_at(
    weight: Tensor, rows: Tensor, bits: int, target: Tensor, inputs: Tensor, ranges: RangeRule
) -> Tensor:
    """Output error of the given rows rounded at `bits`: [len(rows)]."""
    if len(rows) == 0:
        return torch.zeros(0)
    rounded = round_uniform(weight[rows], bits, ranges=ranges).dequantize()
    return row_errors(target[:, rows], inputs, rounded)
