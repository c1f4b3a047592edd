"""GPTQ (Frantar et al., ICLR 2023): uniform grids, codes chosen column by column with error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.kernels.quantizers.scales import ScaleFormat
from harness.methods.contract import MethodConfig, QuantizeJob, method
from harness.methods.hessian import BLOCK, DAMPING, HESSIAN_ROWS, round_with_feedback, second_moment
from harness.methods.layers import calibrated_quantizer, packed_layer, weight_matrix
from harness.methods.objective import LayerSample
from harness.methods.rounding import UniformRows, check_grouped, round_plain, round_uniform


@dataclass(frozen=True)
class GptqConfig(MethodConfig):
    """Settings of `gptq`.

    Attributes:
        range: how the ends of a weight grid are found.
        group: weights per scale along the inputs; 0 is one scale per output channel.
        scales: of these groups: one `float` each, or one float per row and an `integer` or a power of two
            (`e8m0`) per group, see `harness.kernels.quantizers.scales`.
        damping: added to the diagonal of the second moment, relative to its mean.
        block: columns between updates of the columns behind.
        order: `descending` diagonal of the second moment first, or the columns' `own` order.
        act: activation ranges, as in `ptq`; the second moment is that of the quantized inputs, with
            `per_step` that of the static ones.
    """

    range: Literal["mse", "minmax"] = "mse"
    group: Literal[0, 64, 128] = 0
    scales: ScaleFormat = "float"
    damping: float = DAMPING
    block: int = BLOCK
    order: Literal["descending", "own"] = "descending"
    act: Literal["dynamic", "static", "per_step"] = "dynamic"

    def __post_init__(self) -> None:
        """Check numbers and scales; raises ValueError."""
        if not 0 < self.damping <= 10:
            raise ValueError(f"damping is above 0 and at most 10, not {self.damping}")
        if self.block < 1:
            raise ValueError(f"block is at least 1, not {self.block}")
        check_grouped(self.group, self.scales)


@method(
    "gptq",
    GptqConfig,
    version=1,
    needs_calibration=True,
    in_all=False,
    summary="error feedback column by column",
)
def quantize(job: QuantizeJob, config: GptqConfig) -> None:
    """Round every target's weight with error feedback."""
    for target in round_plain(job, job.targets):
        layer = job.layer(target.name)
        weight = weight_matrix(layer)
        rows = round_uniform(
            weight,
            target.w_bits,
            group=config.group or None,
            ranges=config.range,
            scale_format=config.scales,
        )
        if not isinstance(rows, UniformRows):
            raise ValueError(f"gptq needs a uniform grid, which {target.w_bits} bits do not have")
        sample = LayerSample(layer, job.stream().samples(target.name), HESSIAN_ROWS)
        scoring = calibrated_quantizer(
            target, "static" if config.act == "per_step" else config.act, job.stream()
        )
        rows = round_with_feedback(
            weight,
            rows,
            second_moment(sample.rows(None, scoring)),
            damping=config.damping,
            block=config.block,
            descending=config.order == "descending",
        )
        act = calibrated_quantizer(target, config.act, job.stream())
        job.replace(target.name, packed_layer(layer, rows.pack(), act))
