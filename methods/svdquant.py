"""SVDQuant (ICLR 2025): smoothing, a 16-bit low-rank branch, and a group-quantized residual.

    x W^T  is computed as  x1 (up down)^T + Q(x1) Q(R)^T,   x1 = x / s,   R = W * s - up down

The smoothing vector is searched on the output error with branch and both quantizers in place, jointly for layers
that share an input; the branch is then refined by alternating between it and the rounded residual.
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
from harness.kernels.weights import PackedWeight
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob, method
from harness.methods.layers import (
    activation_quantizer,
    kernel_taps,
    packed_layer,
    per_column,
    weight_matrix,
)
from harness.methods.lowrank import branch_rank, rank_rule, truncated_svd
from harness.methods.objective import LayerSample, row_errors
from harness.methods.rounding import PLAIN_BITS, round_plain, round_uniform
from harness.methods.smoothing import input_channel_absmax, smoothing_grid, smoothing_scale

SAMPLE_ROWS = 512


@dataclass(frozen=True)
class SvdquantConfig(MethodConfig):
    """Settings of `svdquant`.

    Attributes:
        rank: rank of the branch; None is the rank rule (`harness.methods.lowrank.rank_rule`).
        grid: smoothing candidates, an odd number: 39 is the published grid, 1 is no smoothing.
        iterations: refinements of the branch after the first decomposition.
        group: weights per scale along the inputs.
        residual: grid of the residual; `auto` is `narrow` from 4 bits up and `low_bits` below.
        range: how the ends of a group's grid are found.
        conv: whether convolutions get a branch too, or only the group-quantized weight as published.
    """

    rank: int | None = None
    grid: int = 9
    iterations: int = 3
    group: int = 64
    residual: Literal["auto", "narrow", "midrise", "asymmetric"] = "auto"
    range: Literal["mse", "minmax"] = "mse"
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
        return "narrow" if bits >= 4 else "midrise"


@dataclass
class _Piece:
    """One layer on its way through the method: its weight, and what should come out on the samples."""

    target: LayerTarget
    layer: nn.Linear | nn.Conv2d
    weight: Tensor
    wanted: Tensor
    rank: int


@dataclass(frozen=True)
class _Split:
    """A weight as branch plus rounded residual, with its output error."""

    down: Tensor
    up: Tensor
    residual: PackedWeight
    error: float


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
        low = [t for t in group if t.w_bits < PLAIN_BITS]
        for target in group:
            if target not in low:
                round_plain(job, target)
        if low:
            _quantize_group(job, low, config)


def _quantize_group(job: QuantizeJob, targets: list[LayerTarget], config: SvdquantConfig) -> None:
    sample = LayerSample(job.layer(targets[0].name), job.stream().samples(targets[0].name), SAMPLE_ROWS)
    pieces = [_piece(job, target, sample, config) for target in targets]
    act = _act(targets[0])
    smooth, exponents = _search_smoothing(job, pieces, sample, act, config)
    x1, inputs = sample.rows(smooth), sample.rows(smooth, act)
    for piece in pieces:
        weight = (
            piece.weight if smooth is None else piece.weight * per_column(smooth, kernel_taps(piece.layer))
        )
        best = _refine(piece, weight, x1, inputs, config)
        branch = LowRankBranch(best.down, best.up) if piece.rank else None
        packed = packed_layer(piece.layer, best.residual, _act(piece.target), smooth=smooth, branch=branch)
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
    return _Piece(target, layer, weight, F.linear(sample.plain, weight), branch_rank(rank, *weight.shape, 0))


def _act(target: LayerTarget) -> ActQuantizer | None:
    """Dynamic: symmetric per token and 64 channels up to 4 bits (as published), per token above."""
    if target.a_bits <= 4:
        return activation_quantizer(target, symmetric=target.kind == "linear", group=64)
    return activation_quantizer(target)


def _search_smoothing(
    job: QuantizeJob,
    pieces: list[_Piece],
    sample: LayerSample,
    act: ActQuantizer | None,
    config: SvdquantConfig,
) -> tuple[Tensor | None, tuple[float, float]]:
    """Pick the exponents with the least output error summed over the layers of the group."""
    best: tuple[Tensor | None, tuple[float, float]] = (None, (0.0, 0.0))
    candidates = smoothing_grid(config.grid)
    if len(candidates) == 1:
        return best
    taps = kernel_taps(pieces[0].layer)
    x_absmax = job.stream().absmax(pieces[0].target.name)
    w_absmax = input_channel_absmax([p.weight for p in pieces], taps)
    least = float("inf")
    for alpha, beta in candidates:
        smooth = smoothing_scale(x_absmax, w_absmax, alpha, beta) if alpha or beta else None
        x1, inputs = sample.rows(smooth), sample.rows(smooth, act)
        error = 0.0
        for piece in pieces:
            weight = piece.weight if smooth is None else piece.weight * per_column(smooth, taps)
            error += _split(piece, weight, weight, x1, inputs, config, fast=True).error
        if error < least:
            least, best = error, (smooth, (alpha, beta))
    return best


def _refine(piece: _Piece, weight: Tensor, x1: Tensor, inputs: Tensor, config: SvdquantConfig) -> _Split:
    """Alternate: fit the branch to what the rounded residual leaves, round what the branch leaves; keep the best."""
    best = _split(piece, weight, weight, x1, inputs, config)
    current = best
    for _ in range(config.iterations if piece.rank else 0):
        current = _split(piece, weight, weight - current.residual.dequantize(), x1, inputs, config)
        if current.error < best.error:
            best = current
    return best


def _split(
    piece: _Piece,
    weight: Tensor,
    fitted: Tensor,
    x1: Tensor,
    inputs: Tensor,
    config: SvdquantConfig,
    *,
    fast: bool = False,
) -> _Split:
    """Fit the branch to `fitted`, round what it leaves of `weight`, and measure the output error."""
    if piece.rank:
        down, up = (f.half().float() for f in truncated_svd(fitted, piece.rank, fast=fast))
    else:
        down, up = weight.new_zeros(0, weight.shape[1]), weight.new_zeros(weight.shape[0], 0)
    bits = piece.target.w_bits
    residual = round_uniform(
        weight - up @ down,
        bits,
        group=config.group,
        grid=config.residual_grid(bits),
        ranges=config.range,
    )
    wanted = piece.wanted - F.linear(F.linear(x1, down), up)
    error = float(row_errors(wanted, inputs, residual.dequantize()).double().sum())
    return _Split(down, up, residual, error)
