"""SVDQuant (ICLR 2025): smoothing, a 16-bit low-rank branch, and a group-quantized residual.

    x W^T  is computed as  x1 (up down)^T + Q(x1) Q(R)^T,   x1 = x / s,   R = W * s - up down

The smoothing vector is searched on the output error with branch and both quantizers in place, jointly for
layers that share an input; the branch is then refined by alternating between it and the rounded residual,
whose codes may be chosen by GPTQ in the end. Every part can be switched off: see `ABLATION`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch.nn.functional as F
from torch import nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.quantizers import nvfp4
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.ranges import RangeRule
from harness.kernels.quantizers.scales import ScaleFormat
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob, method
from harness.methods.hessian import DAMPING, HESSIAN_ROWS, round_with_feedback, second_moment
from harness.methods.layers import activation_quantizer, kernel_taps, packed_layer, weight_matrix
from harness.methods.lowrank import rank_rule
from harness.methods.objective import LayerSample
from harness.methods.phases import phase
from harness.methods.rounding import UniformRows, round_plain
from harness.methods.smoothing import input_channel_absmax, smoothing_grid, smoothing_scale
from harness.methods.split import Inputs, Piece, Split, refine, remainder, stack, trial_error, with_residual

SAMPLE_ROWS = 512
PUBLISHED_BITS = 4
SHIFTS = {"gelu": 0.171875, "silu": 0.2734375}
"""Published constants that make the outputs of these functions non-negative (SiLU's but for 0.005)."""

_NAIVE = {"grid": "1", "rank": "0", "iterations": "0"}
ABLATION: tuple[dict[str, str], ...] = (
    _NAIVE,
    {"rank": "0", "iterations": "0"},
    {"grid": "1", "iterations": "0"},
    {"iterations": "0"},
    {},
    {"rounding": "gptq"},
)
"""Naive, smoothing only, branch only, both, with refinement, with GPTQ."""
PUBLISHED = (
    {
        "grid": "39",
        "iterations": "100",
        "early_stop": "true",
        "rescale": "true",
        "svd": "exact",
        "shared": "true",
        "unsigned": "true",
        "conv": "false",
    },
)
"""The paper's algorithm with the settings of its code, at the rank of the rank rule."""
SCALES: tuple[dict[str, str], ...] = ({}, {"scales": "integer"}, {"scales": "e8m0"})
"""The formats of group scales."""


@dataclass(frozen=True)
class SvdquantConfig(MethodConfig):
    """Settings of `svdquant`.

    Attributes:
        rank: rank of the branch; None is the rank rule (`harness.methods.lowrank.rank_rule`).
        grid: smoothing candidates, an odd number: 39 is the published grid, 1 is no smoothing.
        iterations: refinements of the branch after the first decomposition.
        group: weights per scale along the inputs.
        scales: of these groups and of the inputs' groups: one `float` each as published, or one float per row
            (per token) and an `integer` or a power of two (`e8m0`) per group, see
            `harness.kernels.quantizers.scales`. Layers whose inputs stay in 16 bits keep `float` scales.
        residual: grid of the residual; `auto` is `narrow` from 4 bits up as published, `asymmetric` below,
            where a symmetric grid with zero wastes a level and one without zero moves every small weight.
        range: how the ends of a group's grid are found; `auto` is `minmax` from 4 bits up as published, `mse`
            below.
        conv: whether convolutions get a branch too, or only the group-quantized weight as published.
        early_stop: end refining at the first step that is no better, as published, or take all of them.
        rescale: whether each refinement finds the residual's ranges anew, as published.
        svd: `exact` in float64 as published, `randomized` (`torch.svd_lowrank`), or `auto`: exact for small
            matrices, a block power iteration for large ones.
        shared: whether q, k and v (or k and v) of one attention get one branch with a common down factor, as
            published, or one each.
        unsigned: whether inputs behind GELU or SiLU are shifted to be non-negative and quantized without a
            sign, as published.
        rounding: codes of the residual: `nearest`, or `gptq` on the second moment of the quantized inputs.
        damping: of that second moment, relative to its mean diagonal.
        rows: calibration rows the errors are formed on, drawn at random where there are more; beyond
            `harness.methods.objective.HALF_ROWS` they are held and multiplied in bfloat16.
        format: `int`, or `nvfp4` for 4-bit residuals and 4-bit inputs of linear layers; then `group`,
            `residual`, `range` and `unsigned` mean nothing there, and neither GPTQ nor `scales` is defined.
    """

    rank: int | None = None
    grid: int = 9
    iterations: int = 6
    group: int = 64
    scales: ScaleFormat = "float"
    residual: Literal["auto", "narrow", "midrise", "asymmetric"] = "auto"
    range: Literal["auto", "mse", "minmax"] = "auto"
    conv: bool = True
    early_stop: bool = False
    rescale: bool = False
    svd: Literal["auto", "exact", "randomized"] = "auto"
    shared: bool = False
    unsigned: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"
    damping: float = DAMPING
    rows: int = SAMPLE_ROWS
    format: Literal["int", "nvfp4"] = "int"

    def __post_init__(self) -> None:
        """Check the numbers; raises ValueError."""
        smoothing_grid(self.grid)
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"rank is none or at least 0, not {self.rank}")
        if self.iterations < 0:
            raise ValueError(f"iterations is at least 0, not {self.iterations}")
        if self.group < 2:
            raise ValueError(f"group is at least 2, not {self.group}")
        if self.rows < 1:
            raise ValueError(f"rows is at least 1, not {self.rows}")
        if not 0 < self.damping <= 10:
            raise ValueError(f"damping is above 0 and at most 10, not {self.damping}")
        if self.format == "nvfp4" and self.rounding == "gptq":
            raise ValueError("gptq needs a uniform grid, which format=nvfp4 does not have")
        if self.format == "nvfp4" and self.scales != "float":
            raise ValueError(f"scales={self.scales} are of format=int; nvfp4 has scales of its own")

    def residual_grid(self, bits: int) -> Grid:
        """Return the grid of a residual of `bits` bits."""
        if self.residual != "auto":
            return "midrise" if bits == 1 else self.residual
        return "narrow" if bits >= PUBLISHED_BITS else "asymmetric"

    def residual_range(self, bits: int) -> RangeRule:
        """Return how the ranges of a residual of `bits` bits are found."""
        if self.range != "auto":
            return self.range
        return "minmax" if bits >= PUBLISHED_BITS else "mse"


@method(
    "svdquant",
    SvdquantConfig,
    version=2,
    needs_calibration=True,
    summary="smoothing + low-rank branch + group 64",
    variants={"ablation": ABLATION, "published": PUBLISHED, "scales": SCALES},
)
def quantize(job: QuantizeJob, config: SvdquantConfig) -> None:
    """Replace every target; layers with one input are smoothed together."""
    for group in job.input_groups():
        low = round_plain(job, group)
        if low:
            _quantize_group(job, low, config)


def _quantize_group(job: QuantizeJob, targets: list[LayerTarget], config: SvdquantConfig) -> None:
    sample = LayerSample(job.layer(targets[0].name), job.stream().samples(targets[0].name), config.rows)
    pieces = [_piece(job, target, sample, config) for target in targets]
    if config.shared:
        runs = groupby(pieces, key=lambda piece: piece.targets[0].role.rpartition(".")[0])
        pieces = [stack(list(run)) for _, run in runs]
    with phase("search"):
        inputs, exponents = _search_smoothing(job, pieces, sample, config)
    for piece in pieces:
        with phase("refine"):
            best = refine(piece, inputs, config)
        if config.rounding == "gptq":
            best = _with_feedback(job, piece, inputs, best, config)
        with phase("pack"):
            _replace(job, piece, best, inputs, config)
        for target in piece.targets:
            job.note(
                target.name,
                rank=piece.rank,
                alpha=round(exponents[0], 4),
                beta=round(exponents[1], 4),
                residual="nvfp4" if config.format == "nvfp4" else config.residual_grid(target.w_bits),
            )


def _piece(job: QuantizeJob, target: LayerTarget, sample: LayerSample, config: SvdquantConfig) -> Piece:
    layer = job.layer(target.name)
    weight = weight_matrix(layer)
    rank = rank_rule(job.width, job.embedded) if config.rank is None else config.rank
    if isinstance(layer, nn.Conv2d) and not config.conv:
        rank = 0
    wanted = F.linear(sample.plain, weight.to(sample.plain.dtype))
    return Piece((target,), (layer,), weight, wanted, min(rank, *weight.shape))


def _act(target: LayerTarget, config: SvdquantConfig) -> ActQuantizer | None:
    """Dynamic: symmetric per token and 64 channels up to 4 bits (as published), per token above.

    With `unsigned`, inputs behind an activation function are on a grid of all 2^b levels from its minimum up.
    """
    low = target.a_bits <= PUBLISHED_BITS
    if config.format == "nvfp4" and target.a_bits == nvfp4.BITS and target.kind == "linear":
        return ActQuantizer(nvfp4.BITS, "group", "dynamic", True, group=nvfp4.GROUP, format="nvfp4")
    if config.unsigned and target.after and target.a_bits < 16:
        shift = SHIFTS[target.after]
        if target.kind == "conv2d":
            return ActQuantizer(target.a_bits, "tensor", "dynamic", True, shift=shift)
        if low:
            return ActQuantizer(
                target.a_bits, "group", "dynamic", True, shift=shift, scale_format=config.scales
            )
        return ActQuantizer(target.a_bits, "token", "dynamic", True, shift=shift)
    if low:
        symmetric = target.kind == "linear"
        return activation_quantizer(target, symmetric=symmetric, group=64, scale_format=config.scales)
    return activation_quantizer(target)


def _search_smoothing(
    job: QuantizeJob, pieces: list[Piece], sample: LayerSample, config: SvdquantConfig
) -> tuple[Inputs, tuple[float, float]]:
    """Pick the exponents with the least output error of the group, on some of its output channels."""
    target = pieces[0].targets[0]
    taps = kernel_taps(pieces[0].layers[0])
    w_absmax = input_channel_absmax([p.weight for p in pieces], taps)
    best, chosen, least = None, (0.0, 0.0), float("inf")
    for alpha, beta in smoothing_grid(config.grid):
        smooth = None
        if alpha or beta:
            smooth = smoothing_scale(job.stream().absmax(target.name), w_absmax, alpha, beta)
        inputs = Inputs(smooth, sample.rows(smooth), sample.rows(smooth, _act(target, config)))
        if config.grid == 1:
            return inputs, chosen
        error = sum(trial_error(piece, inputs, config) for piece in pieces)
        if best is None or error < least:
            best, chosen, least = inputs, (alpha, beta), error
    assert best is not None
    return best, chosen


def _with_feedback(
    job: QuantizeJob, piece: Piece, inputs: Inputs, best: Split, config: SvdquantConfig
) -> Split:
    """Choose the codes of the residual by GPTQ, on as many inputs as the calibration holds."""
    target = piece.targets[0]
    sample = LayerSample(piece.layers[0], job.stream().samples(target.name), HESSIAN_ROWS)
    hessian = second_moment(sample.rows(inputs.smooth, _act(target, config)))
    left = remainder(piece.scaled(inputs.smooth), best.branch)
    if not isinstance(best.residual, UniformRows):
        raise TypeError("gptq needs a uniform grid")
    codes = round_with_feedback(left, best.residual, hessian, damping=config.damping)
    return with_residual(best, codes, piece, inputs)


def _replace(job: QuantizeJob, piece: Piece, best: Split, inputs: Inputs, config: SvdquantConfig) -> None:
    start = 0
    for target, layer in zip(piece.targets, piece.layers, strict=True):
        end = start + len(layer.weight)
        branch, residual = best.rows(start, end)
        packed = packed_layer(
            layer, residual.pack(), _act(target, config), smooth=inputs.smooth, branch=branch
        )
        job.replace(target.name, packed)
        start = end
