"""Rounded weight matrices before packing: one grid for all rows, or a width and a kind of grid per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.nvfp4 import Nvfp4Codes, dequantize_nvfp4, encode_nvfp4
from harness.kernels.quantizers.ranges import SHRINK_STEPS, RangeRule
from harness.kernels.quantizers.residual import (
    BinaryPlanes,
    dequantize_planes,
    fit_binary_planes,
    nearest_codes,
)
from harness.kernels.quantizers.scales import ScaleFormat
from harness.kernels.quantizers.uniform import (
    UniformCodes,
    dequantize_uniform,
    encode_uniform,
    quantize_uniform,
)
from harness.kernels.weights import (
    BinaryPlanesWeight,
    Nvfp4Weight,
    PackedWeight,
    RowMixedWeight,
    UniformWeight,
)
from harness.methods.contract import LayerTarget, QuantizeJob
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix

PLAIN_BITS = 8


@dataclass(frozen=True)
class UniformRows:
    """Rows on a uniform grid."""

    codes: UniformCodes
    bits: int
    grid: Grid
    group: int | None

    def values(self) -> Tensor:
        """Return what the codes stand for: float32 [rows, cols]."""
        return dequantize_uniform(self.codes, self.bits, grid=self.grid, group=self.group)

    def take(self, rows: Tensor) -> UniformRows:
        """Return some of the rows (index or mask)."""
        return replace(self, codes=self.codes.take(rows))

    def again(self, weight: Tensor) -> UniformRows:
        """Round another matrix of the same shape with the same scales and zero points."""
        steps, zero = self.codes.steps, self.codes.zero
        codes = encode_uniform(weight, steps, zero, self.bits, grid=self.grid, group=self.group)
        return self.with_codes(codes)

    def with_codes(self, codes: Tensor) -> UniformRows:
        """Return the same grids with other codes, uint8 [rows, cols]."""
        return replace(self, codes=replace(self.codes, codes=codes))

    def pack(self) -> PackedWeight:
        """Return the rows in packed storage."""
        return UniformWeight.pack(self.codes, self.bits, self.grid, self.group)


@dataclass(frozen=True)
class PlaneRows:
    """Rows as sums of signed binary planes."""

    codes: BinaryPlanes

    def values(self) -> Tensor:
        """Return what the codes stand for: float32 [rows, cols]."""
        return dequantize_planes(self.codes.codes, self.codes.alphas)

    def take(self, rows: Tensor) -> PlaneRows:
        """Return some of the rows (index or mask)."""
        return PlaneRows(BinaryPlanes(self.codes.codes[rows], self.codes.alphas[rows]))

    def again(self, weight: Tensor) -> PlaneRows:
        """Round another matrix of the same shape with the same amplitudes."""
        alphas = self.codes.alphas
        return PlaneRows(BinaryPlanes(nearest_codes(weight, alphas), alphas))

    def pack(self) -> PackedWeight:
        """Return the rows in packed storage."""
        return BinaryPlanesWeight.pack(self.codes)


@dataclass(frozen=True)
class Nvfp4Rows:
    """Rows in NVFP4."""

    codes: Nvfp4Codes

    def values(self) -> Tensor:
        """Return what the codes stand for: float32 [rows, cols]."""
        return dequantize_nvfp4(self.codes)

    def take(self, rows: Tensor) -> Nvfp4Rows:
        """Return some of the rows (index or mask); the tensor's scale is that of all."""
        return Nvfp4Rows(replace(self.codes, codes=self.codes.codes[rows], scale=self.codes.scale[rows]))

    def again(self, weight: Tensor) -> Nvfp4Rows:
        """Round another matrix of the same shape with the same scales."""
        codes = encode_nvfp4(weight, self.codes.scale, self.codes.tensor_scale)
        return Nvfp4Rows(replace(self.codes, codes=codes))

    def pack(self) -> PackedWeight:
        """Return the rows in packed storage."""
        return Nvfp4Weight.pack(self.codes)


@dataclass(frozen=True)
class MixedRows:
    """Rows of several kinds and widths.

    Attributes:
        parts: part i holds the rows with `row_part == i`, in increasing order.
        row_part: uint8 [rows].
    """

    parts: tuple[UniformRows | PlaneRows, ...]
    row_part: Tensor

    def values(self) -> Tensor:
        """Return what the codes stand for: float32 [rows, cols]."""
        held = torch.cat([part.values() for part in self.parts])
        order = torch.argsort(self.row_part, stable=True)
        return torch.empty_like(held).index_copy_(0, order, held)

    def again(self, weight: Tensor) -> MixedRows:
        """Round another matrix of the same shape with the same parameters."""
        parts = tuple(part.again(weight[self.row_part == i]) for i, part in enumerate(self.parts))
        return replace(self, parts=parts)

    def share_of_planes(self) -> float:
        """Return the share of rows stored as binary planes of more than one bit."""
        planes = [part.codes for part in self.parts if isinstance(part, PlaneRows)]
        return sum(len(p.codes) for p in planes if p.alphas.shape[1] > 1) / len(self.row_part)

    def pack(self) -> PackedWeight:
        """Return the rows in packed storage; without an index when all are of one part."""
        packed = [part.pack() for part in self.parts]
        return packed[0] if len(packed) == 1 else RowMixedWeight(packed, self.row_part)


def round_uniform(
    weight: Tensor,
    bits: int,
    *,
    group: int | None = None,
    grid: Grid = "asymmetric",
    ranges: RangeRule = "mse",
    percentile: float = 99.9,
    steps: int = SHRINK_STEPS,
    scale_format: ScaleFormat = "float",
) -> UniformRows | PlaneRows:
    """Round to the nearest point of a uniform grid per output channel or group.

    At one bit the grid is symmetric without zero: an asymmetric two-level grid must contain zero and so
    loses one sign of the weights. Per channel that is +-mean|w|, the best sign grid.

    Args:
        weight: float32 [rows, cols].
        bits: 1-8.
        group: columns per scale; None for one scale per row.
        grid: kind of grid.
        ranges: how its ends are found.
        percentile: share of the values inside, in per cent, for `ranges="percentile"`.
        steps: candidate ranges, for `ranges="mse"`.
        scale_format: how the scales of groups are stored; other than `float` needs `group`.

    Raises:
        ValueError: the format does not hold the grid.
    """
    if bits == 1 and group is None:
        return round_planes(weight, 1)
    if bits == 1:
        grid = "midrise"
    codes = quantize_uniform(
        weight,
        bits,
        grid=grid,
        group=group,
        ranges=ranges,
        percentile=percentile,
        steps=steps,
        scale_format=scale_format,
    )
    return UniformRows(codes, bits, grid, group)


def check_grouped(group: int, scales: ScaleFormat) -> None:
    """Raise ValueError when a format of group scales is asked for without groups (`group` 0)."""
    if not group and scales != "float":
        raise ValueError(f"scales={scales} are for groups; set group too")


def round_planes(weight: Tensor, planes: int, iterations: int = 15) -> PlaneRows:
    """Round every row to a sum of `planes` signed amplitudes refitted by least squares."""
    return PlaneRows(fit_binary_planes(weight, planes, iterations))


def mix_rows(candidates: list[tuple[Tensor, UniformRows | PlaneRows]], choice: Tensor) -> MixedRows:
    """Take every row from the candidate chosen for it.

    Args:
        candidates: each with the row numbers it covers, int64, ascending.
        choice: int64 [rows], for every row a candidate that covers it; on the host.
    """
    used = sorted(set(choice.tolist()))
    row_part = torch.zeros(len(choice), dtype=torch.uint8)
    parts = []
    for index, number in enumerate(used):
        rows, rounded = candidates[number]
        row_part[choice == number] = index
        parts.append(rounded.take(choice[rows] == number))
    return MixedRows(tuple(parts), row_part.to(parts[0].codes.codes.device))


def round_plain(job: QuantizeJob, targets: Sequence[LayerTarget]) -> list[LayerTarget]:
    """Replace the layers that stay at 8 bits (per-channel MSE grid, dynamic activations); return the others.

    At 8 bits the grid's error is far below what mixing, smoothing or a branch could win, so no method spends
    bytes there.
    """
    low = []
    for target in targets:
        if target.w_bits < PLAIN_BITS:
            low.append(target)
            continue
        layer = job.layer(target.name)
        weight = round_uniform(weight_matrix(layer), target.w_bits).pack()
        job.replace(target.name, packed_layer(layer, weight, activation_quantizer(target)))
        job.note(target.name, plain=True)
    return low
