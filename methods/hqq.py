"""HQQ, half-quadratic quantization (Badri & Shaji 2023): weight-only, no data, robust to outliers.

Per group, min w.r.t. the zero point z and an auxiliary error E

    |E|_p^p + beta/2 |E - (W - Q(W; z))|^2,     p < 1,

in turns: E by the generalised soft threshold of the l_p norm, z in closed form, beta growing. The scale stays
that of the min-max range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.kernels.quantizers.uniform import UniformCodes, encode_uniform
from harness.methods.contract import MethodConfig, QuantizeJob, method
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix
from harness.methods.rounding import UniformRows, round_plain, round_uniform

SMALLEST = 1e-8


@dataclass(frozen=True)
class HqqConfig(MethodConfig):
    """Settings of `hqq`; the defaults are those of the public code.

    Attributes:
        group: weights per scale along the inputs.
        norm: the exponent p, above 0 and at most 1.
        beta: initial weight of the quadratic term.
        growth: factor of beta per iteration.
        iterations: at most so many; the search ends when the mean absolute error does not fall.
    """

    group: int = 64
    norm: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    iterations: int = 20

    def __post_init__(self) -> None:
        """Check the numbers; raises ValueError."""
        if self.group < 2:
            raise ValueError(f"group is at least 2, not {self.group}")
        if not 0 < self.norm <= 1:
            raise ValueError(f"norm is above 0 and at most 1, not {self.norm}")
        if self.beta <= 0 or self.growth < 1:
            raise ValueError("beta is above 0 and growth at least 1")
        if self.iterations < 0:
            raise ValueError(f"iterations is at least 0, not {self.iterations}")


@method(
    "hqq",
    HqqConfig,
    version=1,
    weight_only=True,
    act_bits=(16,),
    in_all=False,
    summary="weight-only half-quadratic, group 64",
)
def quantize(job: QuantizeJob, config: HqqConfig) -> None:
    """Round every target's weight in groups with fitted zero points; activations stay as they are."""
    for target in round_plain(job, job.targets):
        layer = job.layer(target.name)
        rows = half_quadratic(weight_matrix(layer), target.w_bits, config)
        job.replace(target.name, packed_layer(layer, rows.pack(), activation_quantizer(target)))


def half_quadratic(weight: Tensor, bits: int, config: HqqConfig) -> UniformRows:
    """Fit the zero points of a grouped grid.

    Args:
        weight: float32 [rows, cols].
        bits: 2-8.
        config: settings.

    Returns:
        rows on an `affine` grid, its scales those of the min-max range.

    Raises:
        TypeError: the width has no grouped uniform grid.
    """
    rows = round_uniform(weight, bits, group=config.group, grid="affine", ranges="minmax")
    if not isinstance(rows, UniformRows):
        raise TypeError(f"{bits} bits have no uniform grid in groups")
    best, least, beta = rows, float((weight - rows.values()).abs().mean()), config.beta
    for _ in range(config.iterations):
        error = _threshold(weight - rows.values(), beta, config.norm)
        rows = _refit(weight, error, rows)
        beta *= config.growth
        found = float((weight - rows.values()).abs().mean())
        if found >= least:
            break
        best, least = rows, found
    return best


def _threshold(x: Tensor, beta: float, norm: float) -> Tensor:
    """Generalised soft threshold: sign(x) max(|x| - |x|^(p-1)/beta, 0)."""
    size = x.abs()
    return x.sign() * (size - (size + SMALLEST).pow(norm - 1) / beta).clamp_min(0)


def _refit(weight: Tensor, error: Tensor, rows: UniformRows) -> UniformRows:
    """Move every zero point to the mean of `code - (W - E) / scale` of its group, and round again."""
    scale, zero = rows.codes.scale, rows.codes.zero
    assert zero is not None
    cols = weight.shape[1]
    group = torch.arange(cols, device=weight.device) // (rows.group or cols)
    divisor = scale.float()[:, group]
    wanted = rows.codes.codes.float() - (weight - error) / torch.where(divisor > 0, divisor, 1.0)
    sums = torch.zeros(scale.shape, device=weight.device).index_add_(1, group, wanted)
    fitted = sums / torch.bincount(group).float()
    # A group of zeros has scale 0: its codes mean nothing, whatever the zero point.
    zero = torch.where(scale > 0, fitted.clamp(-1e4, 1e4), 0.0).half()
    codes = encode_uniform(weight, scale, zero, rows.bits, grid=rows.grid, group=rows.group)
    return replace(rows, codes=UniformCodes(codes, scale, zero))
