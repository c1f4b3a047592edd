"""A smoothed weight as a 16-bit low-rank branch plus a rounded residual: the inner loop of SVDQuant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from harness.kernels.branch import LowRankBranch
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.nvfp4 import BITS, quantize_nvfp4
from harness.kernels.quantizers.ranges import SHRINK_STEPS, RangeRule
from harness.kernels.quantizers.scales import ScaleFormat
from harness.methods.contract import LayerTarget
from harness.methods.layers import kernel_taps, per_column
from harness.methods.lowrank import Algorithm, decompose, truncated_svd
from harness.methods.objective import CHUNK_VALUES, row_errors
from harness.methods.phases import phase
from harness.methods.rounding import Nvfp4Rows, UniformRows, round_uniform

UNQUANTIZED_BITS = 16
TRIAL_CHANNELS = 32
TRIAL_STEPS = 16
"""The smoothing search compares candidates on some output channels and with a coarse search of the ranges."""


Residual = UniformRows | Nvfp4Rows


class SplitSettings(Protocol):
    """What the split takes from a method's config."""

    @property
    def iterations(self) -> int:
        """Refinements after the first decomposition."""

    @property
    def early_stop(self) -> bool:
        """Whether refining ends at the first step that is no better."""

    @property
    def rescale(self) -> bool:
        """Whether each refinement finds the residual's ranges anew."""

    @property
    def svd(self) -> Algorithm:
        """How decompositions are computed."""

    @property
    def format(self) -> Literal["int", "nvfp4"]:
        """Numbers of the residual."""

    @property
    def group(self) -> int:
        """Weights per scale along the inputs."""

    @property
    def scales(self) -> ScaleFormat:
        """How the scales of groups are stored."""

    def residual_grid(self, bits: int) -> Grid:
        """Return the grid of a residual of `bits` bits."""

    def residual_range(self, bits: int) -> RangeRule:
        """Return how its ranges are found."""


@dataclass(frozen=True)
class Piece:
    """One weight, or several of one input stacked, on its way through the method.

    Attributes:
        targets: the layers, in the order of their rows.
        layers: the float layers.
        weight: their matrices stacked, float32 [rows, cols].
        wanted: what should come out on the samples, [n, rows].
        rank: rank of the branch; 0 for none.
    """

    targets: tuple[LayerTarget, ...]
    layers: tuple[nn.Linear | nn.Conv2d, ...]
    weight: Tensor
    wanted: Tensor
    rank: int

    @property
    def bits(self) -> int:
        """Width of the residual."""
        return self.targets[0].w_bits

    def scales(self, asked: ScaleFormat) -> ScaleFormat:
        """Return the format of the residual's group scales.

        Formats of two levels make a group's products integers beside integer inputs. Where inputs stay in 16
        bits nothing is won by them, and the few-token kernels read plain scales.
        """
        return asked if self.targets[0].a_bits < UNQUANTIZED_BITS else "float"

    def scaled(self, smooth: Tensor | None) -> Tensor:
        """Return the weight with its input channels multiplied by `smooth`."""
        taps = kernel_taps(self.layers[0])
        return self.weight if smooth is None else self.weight * per_column(smooth, taps)


@dataclass(frozen=True)
class Inputs:
    """Samples of one input tensor under one smoothing, as the branch and the residual see them: [n, cols].

    Both float32, or bfloat16 where there are many rows (`harness.methods.objective`).
    """

    smooth: Tensor | None
    exact: Tensor
    quantized: Tensor


@dataclass(frozen=True)
class Split:
    """A weight as branch plus rounded residual, with the output error."""

    branch: LowRankBranch | None
    residual: Residual
    error: float

    def rows(self, start: int, end: int) -> tuple[LowRankBranch | None, Residual]:
        """Return the part of some output channels; the branch's down factor is that of all."""
        branch = self.branch and LowRankBranch(self.branch.down, self.branch.up[start:end])
        return branch, self.residual.take(torch.arange(start, end))


def stack(pieces: list[Piece]) -> Piece:
    """Stack pieces of one input and one width, so that they get one branch with a common down factor."""
    return Piece(
        tuple(target for piece in pieces for target in piece.targets),
        tuple(layer for piece in pieces for layer in piece.layers),
        torch.cat([piece.weight for piece in pieces]),
        torch.cat([piece.wanted for piece in pieces], dim=1),
        min(pieces[0].rank, pieces[0].weight.shape[1]),
    )


def trial_error(piece: Piece, inputs: Inputs, settings: SplitSettings) -> float:
    """Output error of a one-shot split, on a fixed share of the output channels."""
    rows = torch.linspace(0, len(piece.weight) - 1, min(len(piece.weight), TRIAL_CHANNELS)).long()
    weight = piece.scaled(inputs.smooth)
    part = None
    if piece.rank:
        with phase("svd"):
            down, up = truncated_svd(weight, piece.rank, fast=True)
        part = LowRankBranch(down, up[rows])
    residual = _round(remainder(weight[rows], part), piece, settings, steps=TRIAL_STEPS)
    error = _error(piece.wanted[:, rows], inputs, part, residual)
    return error * len(piece.weight) / len(rows)


def refine(piece: Piece, inputs: Inputs, settings: SplitSettings) -> Split:
    """Fit the branch to what the codes leave, round what the branch leaves, and so on; keep the best.

    Without `rescale` the residual keeps the scales of its first rounding, which a branch of small rank hardly
    changes.
    """
    weight = piece.scaled(inputs.smooth)
    branch = _branch(weight, piece.rank, settings)
    residual = _round(remainder(weight, branch), piece, settings)
    best = Split(branch, residual, _error(piece.wanted, inputs, branch, residual))
    for _ in range(settings.iterations if branch is not None else 0):
        branch = _branch(weight - residual.values(), piece.rank, settings)
        left = remainder(weight, branch)
        residual = _round(left, piece, settings) if settings.rescale else residual.again(left)
        error = _error(piece.wanted, inputs, branch, residual)
        if error < best.error:
            best = Split(branch, residual, error)
        elif settings.early_stop:
            break
    return best


def with_residual(split: Split, residual: Residual, piece: Piece, inputs: Inputs) -> Split:
    """Return the split with another residual, its error formed anew."""
    return replace(split, residual=residual, error=_error(piece.wanted, inputs, split.branch, residual))


def remainder(weight: Tensor, branch: LowRankBranch | None) -> Tensor:
    """Return what a branch leaves of a weight."""
    return weight if branch is None else weight - branch.product()


def _branch(matrix: Tensor, rank: int, settings: SplitSettings) -> LowRankBranch | None:
    if not rank:
        return None
    with phase("svd"):
        return LowRankBranch(*decompose(matrix, rank, settings.svd))


def _round(matrix: Tensor, piece: Piece, settings: SplitSettings, *, steps: int = SHRINK_STEPS) -> Residual:
    bits = piece.bits
    if settings.format == "nvfp4":
        if bits != BITS:
            raise ValueError(f"nvfp4 is a format of {BITS} bits, not {bits}")
        return Nvfp4Rows(quantize_nvfp4(matrix))
    grid, ranges = settings.residual_grid(bits), settings.residual_range(bits)
    rounded = round_uniform(
        matrix,
        bits,
        group=settings.group,
        grid=grid,
        ranges=ranges,
        steps=steps,
        scale_format=piece.scales(settings.scales),
    )
    if not isinstance(rounded, UniformRows):
        raise TypeError("a residual in groups is on a uniform grid")
    return rounded


def _error(wanted: Tensor, inputs: Inputs, branch: LowRankBranch | None, residual: Residual) -> float:
    if inputs.quantized.dtype == torch.bfloat16:
        return _half_error(wanted, inputs, branch, residual.values().bfloat16())
    if branch is not None:
        wanted = wanted - branch(inputs.exact)
    return float(row_errors(wanted, inputs.quantized, residual.values()).double().sum())


def _half_error(wanted: Tensor, inputs: Inputs, branch: LowRankBranch | None, weight: Tensor) -> float:
    """Output error by bfloat16 products, a part of the rows at a time; sums in float32 and float64.

    What bfloat16 rounds off is a hundred times smaller than an error of 4-bit weights, and nearly the same
    for all candidates that are compared.
    """
    total = torch.zeros((), dtype=torch.float64, device=wanted.device)
    part = max(1, CHUNK_VALUES // max(wanted.shape[1], inputs.exact.shape[1]))
    factors = None if branch is None else (branch.down.bfloat16(), branch.up.bfloat16())
    parts = (torch.split(x, part) for x in (wanted, inputs.exact, inputs.quantized))
    for target, exact, quantized in zip(*parts, strict=True):
        left = torch.addmm(target, quantized, weight.T, alpha=-1)
        if factors is not None:
            left = torch.addmm(left, exact @ factors[0].T, factors[1].T, alpha=-1)
        total += torch.linalg.vector_norm(left, dtype=torch.float32).double().square()
    return float(total)
