"""Round to nearest: one uniform asymmetric grid per output channel or group, no search beyond its range.

The usual baseline. Ranges minimise the squared weight error by default: with min-max ranges the baseline
loses at 2-3 bits by its outliers alone and every other method looks good beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.kernels.quantizers.scales import ScaleFormat
from harness.methods.contract import MethodConfig, QuantizeJob, method
from harness.methods.layers import activation_quantizer, calibrated_quantizer, packed_layer, weight_matrix
from harness.methods.rounding import check_grouped, round_uniform


@dataclass(frozen=True)
class PtqConfig(MethodConfig):
    """Settings of `ptq`.

    Attributes:
        range: how the ends of a weight grid are found.
        percentile: share of the weights inside the grid, in per cent, for `range=percentile`.
        group: weights per scale along the inputs; 0 is one scale per output channel.
        scales: of these groups: one `float` each, or one float per row and an `integer` or a power of two
            (`e8m0`) per group, see `harness.kernels.quantizers.scales`.
        act: activation ranges: `dynamic` (per token, or per sample of a convolution), `static` (one per
            layer) or `per_step` (one per layer and step), the latter two per tensor from calibration.
    """

    range: Literal["mse", "minmax", "percentile"] = "mse"
    percentile: float = 99.9
    group: Literal[0, 64, 128] = 0
    scales: ScaleFormat = "float"
    act: Literal["dynamic", "static", "per_step"] = "dynamic"

    def __post_init__(self) -> None:
        """Check percentile and scales; raises ValueError."""
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile is between 50 and 100, not {self.percentile}")
        check_grouped(self.group, self.scales)


# Only static ranges read the calibration, but the runner records it before it knows the config.
@method(
    "ptq",
    PtqConfig,
    version=1,
    needs_calibration=True,
    summary="round to nearest, MSE ranges",
    variants={
        "ranges": ({"range": "minmax"}, {"range": "percentile"}, {}),
        "activations": ({}, {"act": "static"}, {"act": "per_step"}),
    },
)
def quantize(job: QuantizeJob, config: PtqConfig) -> None:
    """Round every target's weight to its grid."""
    for target in job.targets:
        layer = job.layer(target.name)
        weight = round_uniform(
            weight_matrix(layer),
            target.w_bits,
            group=config.group or None,
            ranges=config.range,
            percentile=config.percentile,
            scale_format=config.scales,
        )
        if config.act == "dynamic":
            act = activation_quantizer(target)
        else:
            act = calibrated_quantizer(target, config.act, job.stream())
        job.replace(target.name, packed_layer(layer, weight.pack(), act))
