"""MPQ-DMv2: residual mixed quantization and a low-rank branch started from the quantization error. Reconstruction.

No code and no formulas of MPQ-DMv2 are public; this is built from its abstract and from the authors' neighbouring
work, without the distillation:

* flexible residual quantization: every output channel is stored either on a uniform grid or as a sum of binary
  planes (sign residuals with least-squares amplitudes) of the same width, whichever has the least output error;
* the balanced N-1/N/N+1 mix of MPQ-DM on top, where it lowers the output error;
* object-oriented low-rank initialisation: a 16-bit side branch fitted to the quantization error as the layer's
  output sees it, i.e. an SVD weighted by the second moment of the inputs. The branch stays beside the weight:
  merged before rounding, the same start makes a layer worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.weights import PackedWeight
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob, method
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix
from harness.methods.lowrank import (
    branch_rank,
    rank_rule,
    second_moment_factor,
    truncated_svd,
    weighted_svd,
)
from harness.methods.objective import LayerSample, row_errors
from harness.methods.rounding import PLAIN_BITS, RowPlan, round_plain, round_planes, round_uniform
from harness.methods.salience import balanced_bits, best_count, descending, pearson_kurtosis

SAMPLE_ROWS = 512
MOMENT_ROWS = 2048
# Above this many bits binary planes gain nothing over a uniform grid and cost 2^bits levels to search.
MAX_PLANES = 4


@dataclass(frozen=True)
class Mpqdmv2Config(MethodConfig):
    """Settings of `mpqdmv2`.

    Attributes:
        planes: whether a channel may be stored as binary planes.
        swap: `search` over 0, 10, ..., 50 % of the channels, or `off`.
        salience: what orders the channels of the mix: the output error a bit saves, or kurtosis as in MPQ-DM.
        rank: rank of the branch; None is the rank rule (`harness.methods.lowrank.rank_rule`), 0 no branch.
        weighting: what the SVD of the error is weighted by: the full second moment of the inputs, its diagonal,
            or nothing.
        damping: added to the second moment, relative to its mean diagonal.
        iterations: refinements: round what the branch leaves, refit the branch, keep the best.
    """

    planes: bool = True
    swap: Literal["search", "off"] = "search"
    salience: Literal["error", "kurtosis"] = "error"
    rank: int | None = None
    weighting: Literal["full", "diagonal", "none"] = "full"
    damping: float = 0.05
    iterations: int = 2

    def __post_init__(self) -> None:
        """Check the numbers; raises ValueError."""
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"rank is none or at least 0, not {self.rank}")
        if not 0 < self.damping <= 10:
            raise ValueError(f"damping is above 0 and at most 10, not {self.damping}")
        if self.iterations < 0:
            raise ValueError(f"iterations is at least 0, not {self.iterations}")


@dataclass(frozen=True)
class _Fit:
    """A rounded weight and its branch, with the output error."""

    weight: PackedWeight
    down: Tensor | None
    up: Tensor | None
    error: float


@method(
    "mpqdmv2",
    Mpqdmv2Config,
    version=1,
    needs_calibration=True,
    reconstruction=True,
    summary="residual binary channels, mixed widths, error-initialised branch (reconstruction)",
)
def quantize(job: QuantizeJob, config: Mpqdmv2Config) -> None:
    """Replace every target by its mix of channels and a branch for what the mix loses."""
    for target in job.targets:
        if target.w_bits >= PLAIN_BITS:
            round_plain(job, target)
            continue
        layer = job.layer(target.name)
        weight = weight_matrix(layer)
        act = activation_quantizer(target)
        samples = job.stream().samples(target.name)
        sample = LayerSample(layer, samples, SAMPLE_ROWS)
        inputs = sample.rows(None, act)
        plan, count = choose_rows(weight, target.w_bits, sample.target, inputs, config)
        rank = rank_rule(job.width, job.embedded) if config.rank is None else config.rank
        rank = branch_rank(rank, *weight.shape, 0)
        factor = _weighting(layer, samples, config) if rank else None
        fit = _fit(weight, plan, rank, factor, sample, inputs, config)
        branch = None if fit.down is None or fit.up is None else LowRankBranch(fit.down, fit.up)
        job.replace(target.name, packed_layer(layer, fit.weight, act, branch=branch))
        job.note(
            target.name,
            swap=round(count / len(weight), 4),
            planes=round(float(plan.planes.float().mean()), 4),
            rank=rank if branch is not None else 0,
        )


def choose_rows(
    weight: Tensor, bits: int, wanted: Tensor, inputs: Tensor, config: Mpqdmv2Config
) -> tuple[RowPlan, int]:
    """Choose width and kind of every row by output error; return the plan and the number of swapped rows.

    Args:
        weight: float32 [rows, cols].
        bits: mean width.
        wanted: output to reach on the samples, [n, rows].
        inputs: quantized inputs, [n, cols].
        config: which choices are open.
    """
    error: dict[int, Tensor] = {}
    kind: dict[int, Tensor] = {}
    widths = (bits - 1, bits, bits + 1) if config.swap == "search" else (bits,)
    for width in widths:
        error[width], kind[width] = _cheapest_kind(weight, width, wanted, inputs, config)
    rows = len(weight)
    count, assigned = 0, torch.full((rows,), bits, dtype=torch.int64)
    if config.swap == "search":
        # A row worth raising is one whose loss without the bit is large, on either side of N.
        value = error[bits - 1] - error[bits + 1]
        order = descending(value if config.salience == "error" else pearson_kurtosis(weight))
        count = best_count(order, error, bits)
        assigned = balanced_bits(order, count, bits)
    planes = torch.zeros(rows, dtype=torch.bool)
    for width in widths:
        planes[assigned == width] = kind[width][assigned == width]
    return RowPlan(assigned, planes), count


def _cheapest_kind(
    weight: Tensor, bits: int, wanted: Tensor, inputs: Tensor, config: Mpqdmv2Config
) -> tuple[Tensor, Tensor]:
    """Least output error of every row at one width, and whether binary planes reach it."""
    uniform = row_errors(wanted, inputs, round_uniform(weight, bits).dequantize())
    if not config.planes or not 1 < bits <= MAX_PLANES:
        return uniform, torch.zeros(len(weight), dtype=torch.bool)
    planes = row_errors(wanted, inputs, round_planes(weight, bits).dequantize())
    return torch.minimum(uniform, planes), planes < uniform


def _weighting(layer: nn.Linear | nn.Conv2d, samples: Tensor, config: Mpqdmv2Config) -> Tensor | None:
    """Factor of the (damped) second moment of the inputs, its diagonal, or None."""
    if config.weighting == "none":
        return None
    x = LayerSample(layer, samples, MOMENT_ROWS).plain
    if config.weighting == "full":
        return second_moment_factor(x, config.damping)
    moment = x.square().mean(dim=0)
    level = float(moment.mean())
    return (moment + (config.damping * level if level > 0 else 1.0)).sqrt()


def _fit(
    weight: Tensor,
    plan: RowPlan,
    rank: int,
    factor: Tensor | None,
    sample: LayerSample,
    inputs: Tensor,
    config: Mpqdmv2Config,
) -> _Fit:
    """Round by the plan, then alternate branch and rounding; the branch-free start is one of the candidates."""
    packed = plan.round(weight)
    rounded = packed.dequantize()
    best = _Fit(packed, None, None, _error(sample.target, inputs, rounded))
    for iteration in range(config.iterations + 1 if rank else 0):
        error = weight - rounded
        pair = truncated_svd(error, rank) if factor is None else weighted_svd(error, rank, factor)
        down, up = (f.half().float() for f in pair)
        wanted = sample.target - F.linear(F.linear(sample.plain, down), up)
        if iteration:
            packed = plan.round(weight - up @ down)
            rounded = packed.dequantize()
        fit = _Fit(packed, down, up, _error(wanted, inputs, rounded))
        if fit.error < best.error:
            best = fit
    return best


def _error(wanted: Tensor, inputs: Tensor, rounded: Tensor) -> float:
    return float(row_errors(wanted, inputs, rounded).double().sum())
