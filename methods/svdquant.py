"""SVDQuant (ICLR 2025): smoothing, a 16-bit low-rank branch, and a group-quantized residual.

    x W^T  is computed as  x1 (up down)^T + Q(x1) Q(R)^T,   x1 = x / s,   R = W * s - up down

The smoothing vector is searched on the output error with branch and both quantizers in place, jointly for
layers that share an input; the branch is then refined by alternating between it and the rounded residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.ranges import SHRINK_STEPS, RangeRule
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob, method
from harness.methods.layers import (
    activation_quantizer,
    kernel_taps,
    packed_layer,
    per_column,
    weight_matrix,
)
from harness.methods.lowrank import rank_rule, truncated_svd
from harness.methods.objective import LayerSample, row_errors
from harness.methods.rounding import PlaneRows, UniformRows, round_plain, round_uniform
from harness.methods.smoothing import input_channel_absmax, smoothing_grid, smoothing_scale

SAMPLE_ROWS = 512
PUBLISHED_BITS = 4
# The smoothing search compares candidates on some output channels and with a coarse search of the ranges.
TRIAL_CHANNELS = 32
TRIAL_STEPS = 16


@dataclass(frozen=True)
class SvdquantConfig(MethodConfig):
    """Settings of `svdquant`.

    Attributes:
        rank: rank of the branch; None is the rank rule (`harness.methods.lowrank.rank_rule`).
        grid: smoothing candidates, an odd number: 39 is the published grid, 1 is no smoothing.
        iterations: refinements of the branch after the first decomposition.
        group: weights per scale along the inputs.
        residual: grid of the residual; `auto` is `narrow` from 4 bits up as published, `asymmetric` below,
            where a symmetric grid with zero wastes a level and one without zero moves every small weight.
        range: how the ends of a group's grid are found; `auto` is `minmax` from 4 bits up as published, `mse`
            below.
        conv: whether convolutions get a branch too, or only the group-quantized weight as published.
    """

    rank: int | None = None
    grid: int = 9
    iterations: int = 6
    group: int = 64
    residual: Literal["auto", "narrow", "midrise", "asymmetric"] = "auto"
    range: Literal["auto", "mse", "minmax"] = "auto"
    conv: bool = True

    def __post_init__(self) -> None:
        """Check the numbers; raises ValueError."""
        smoothing_grid(self.grid)
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"rank is none or at least 0, not {self.rank}")
        if self.iterations < 0:
            raise ValueError(f"iterations is at least 0, not {self.iterations}")
        if self.group < 2:
            raise ValueError(f"group is at least 2, not {self.group}")

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


@dataclass(frozen=True)
class _Piece:
    """One layer on its way through the method.

    Attributes:
        target: what it is.
        layer: the float layer.
        weight: its matrix.
        wanted: what should come out on the samples, [n, rows].
        rank: rank of its branch; 0 for none.
    """

    target: LayerTarget
    layer: nn.Linear | nn.Conv2d
    weight: Tensor
    wanted: Tensor
    rank: int

    def scaled(self, smooth: Tensor | None) -> Tensor:
        """Return the weight with its input channels multiplied by `smooth`."""
        return self.weight if smooth is None else self.weight * per_column(smooth, kernel_taps(self.layer))


@dataclass(frozen=True)
class _Split:
    """A weight as branch plus rounded residual, with the output error."""

    branch: LowRankBranch | None
    residual: UniformRows | PlaneRows
    error: float


@dataclass(frozen=True)
class _Inputs:
    """Samples of one input tensor under one smoothing, as the branch and the residual see them: [n, cols]."""

    smooth: Tensor | None
    exact: Tensor
    quantized: Tensor


@method(
    "svdquant",
    SvdquantConfig,
    version=1,
    needs_calibration=True,
    summary="smoothing + low-rank branch + group 64",
)
def quantize(job: QuantizeJob, config: SvdquantConfig) -> None:
    """Replace every target; layers with one input are smoothed together."""
    for group in job.input_groups():
        low = round_plain(job, group)
        if low:
            _quantize_group(job, low, config)


def _quantize_group(job: QuantizeJob, targets: list[LayerTarget], config: SvdquantConfig) -> None:
    sample = LayerSample(job.layer(targets[0].name), job.stream().samples(targets[0].name), SAMPLE_ROWS)
    pieces = [_piece(job, target, sample, config) for target in targets]
    inputs, exponents = _search_smoothing(job, pieces, sample, config)
    for piece in pieces:
        best = _refine(piece, inputs, config)
        packed = packed_layer(
            piece.layer, best.residual.pack(), _act(piece.target), smooth=inputs.smooth, branch=best.branch
        )
        job.replace(piece.target.name, packed)
        job.note(
            piece.target.name,
            rank=piece.rank,
            alpha=round(exponents[0], 4),
            beta=round(exponents[1], 4),
            residual=config.residual_grid(piece.target.w_bits),
        )


def _piece(job: QuantizeJob, target: LayerTarget, sample: LayerSample, config: SvdquantConfig) -> _Piece:
    layer = job.layer(target.name)
    weight = weight_matrix(layer)
    rank = rank_rule(job.width, job.embedded) if config.rank is None else config.rank
    if isinstance(layer, nn.Conv2d) and not config.conv:
        rank = 0
    return _Piece(target, layer, weight, F.linear(sample.plain, weight), min(rank, *weight.shape))


def _act(target: LayerTarget) -> ActQuantizer | None:
    """Dynamic: symmetric per token and 64 channels up to 4 bits (as published), per token above."""
    if target.a_bits <= 4:
        return activation_quantizer(target, symmetric=target.kind == "linear", group=64)
    return activation_quantizer(target)


def _search_smoothing(
    job: QuantizeJob, pieces: list[_Piece], sample: LayerSample, config: SvdquantConfig
) -> tuple[_Inputs, tuple[float, float]]:
    """Pick the exponents with the least output error of the group, on some of its output channels."""
    target = pieces[0].target
    taps = kernel_taps(pieces[0].layer)
    w_absmax = input_channel_absmax([p.weight for p in pieces], taps)
    best, chosen, least = None, (0.0, 0.0), float("inf")
    for alpha, beta in smoothing_grid(config.grid):
        smooth = None
        if alpha or beta:
            smooth = smoothing_scale(job.stream().absmax(target.name), w_absmax, alpha, beta)
        inputs = _Inputs(smooth, sample.rows(smooth), sample.rows(smooth, _act(target)))
        if config.grid == 1:
            return inputs, chosen
        error = sum(_trial_error(piece, inputs, config) for piece in pieces)
        if best is None or error < least:
            best, chosen, least = inputs, (alpha, beta), error
    assert best is not None
    return best, chosen


def _trial_error(piece: _Piece, inputs: _Inputs, config: SvdquantConfig) -> float:
    """Output error of a one-shot split, on a fixed share of the output channels."""
    rows = torch.linspace(0, len(piece.weight) - 1, min(len(piece.weight), TRIAL_CHANNELS)).long()
    weight = piece.scaled(inputs.smooth)
    branch = _branch(weight, piece.rank, fast=True)
    part = None if branch is None else LowRankBranch(branch.down, branch.up[rows])
    residual = _round(_remainder(weight[rows], part), piece, config, steps=TRIAL_STEPS)
    return _error(piece.wanted[:, rows], inputs, part, residual) * len(piece.weight) / len(rows)


def _refine(piece: _Piece, inputs: _Inputs, config: SvdquantConfig) -> _Split:
    """Fit the branch to what the codes leave, round what the branch leaves, and so on; keep the best.

    The residual keeps the scales of its first rounding, which a branch of small rank hardly changes.
    """
    weight = piece.scaled(inputs.smooth)
    branch = _branch(weight, piece.rank)
    residual = _round(_remainder(weight, branch), piece, config)
    best = _Split(branch, residual, _error(piece.wanted, inputs, branch, residual))
    for _ in range(config.iterations if branch is not None else 0):
        branch = _branch(weight - residual.values(), piece.rank)
        residual = residual.again(_remainder(weight, branch))
        error = _error(piece.wanted, inputs, branch, residual)
        if error < best.error:
            best = _Split(branch, residual, error)
    return best


def _branch(matrix: Tensor, rank: int, *, fast: bool = False) -> LowRankBranch | None:
    return LowRankBranch(*truncated_svd(matrix, rank, fast=fast)) if rank else None


def _remainder(weight: Tensor, branch: LowRankBranch | None) -> Tensor:
    return weight if branch is None else weight - branch.product()


def _round(
    matrix: Tensor, piece: _Piece, config: SvdquantConfig, *, steps: int = SHRINK_STEPS
) -> UniformRows | PlaneRows:
    bits = piece.target.w_bits
    grid, ranges = config.residual_grid(bits), config.residual_range(bits)
    return round_uniform(matrix, bits, group=config.group, grid=grid, ranges=ranges, steps=steps)


def _error(
    wanted: Tensor, inputs: _Inputs, branch: LowRankBranch | None, residual: UniformRows | PlaneRows
) -> float:
    if branch is not None:
        wanted = wanted - branch(inputs.exact)
    return float(row_errors(wanted, inputs.quantized, residual.values()).double().sum())
