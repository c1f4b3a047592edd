"""Rounding a weight matrix into packed form: one grid for all rows, or a width and a grid kind per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.ranges import RangeRule
from harness.kernels.quantizers.residual import fit_binary_planes
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import BinaryPlanesWeight, PackedWeight, RowMixedWeight, UniformWeight
from harness.methods.contract import LayerTarget, QuantizeJob
from harness.methods.layers import activation_quantizer, packed_layer, weight_matrix

PLAIN_BITS = 8


def round_uniform(
    weight: Tensor,
    bits: int,
    *,
    group: int | None = None,
    grid: Grid = "asymmetric",
    ranges: RangeRule = "mse",
    percentile: float = 99.9,
) -> PackedWeight:
    """Round to the nearest point of a uniform grid per output channel or group.

    At one bit every grid becomes +-mean|w|: an asymmetric two-level grid must contain zero and so loses one sign.

    Args:
        weight: float32 [rows, cols].
        bits: 1-8.
        group: columns per scale; None for one scale per row.
        grid: kind of grid.
        ranges: how its ends are found.
        percentile: share of the values inside, in per cent, for `ranges="percentile"`.
    """
    if bits == 1 and group is None:
        return round_planes(weight, 1)
    if bits == 1:
        grid = "midrise"
    codes = quantize_uniform(weight, bits, grid=grid, group=group, ranges=ranges, percentile=percentile)
    return UniformWeight.pack(codes, bits, grid, group)


def round_planes(weight: Tensor, planes: int) -> PackedWeight:
    """Round every row to a sum of `planes` signed amplitudes refitted by least squares."""
    return BinaryPlanesWeight.pack(fit_binary_planes(weight, planes))


def round_plain(job: QuantizeJob, target: LayerTarget) -> None:
    """Replace a layer the policy keeps at 8 bits or more: per-channel MSE grid, dynamic activations.

    At 8 bits the grid's error is far below what mixing, smoothing or a branch could win, so no method spends
    bytes there.
    """
    layer = job.layer(target.name)
    weight = round_uniform(weight_matrix(layer), target.w_bits)
    job.replace(target.name, packed_layer(layer, weight, activation_quantizer(target)))
    job.note(target.name, plain=True)


@dataclass(frozen=True)
class RowPlan:
    """How every row of a matrix is rounded.

    Attributes:
        bits: int64 [rows], width of each row.
        planes: bool [rows], whether the row is a sum of binary planes rather than a uniform grid.
    """

    bits: Tensor
    planes: Tensor

    def round(self, weight: Tensor, ranges: RangeRule = "mse") -> PackedWeight:
        """Round `weight` [rows, cols] by the plan; rows of one kind and width are stored together."""
        kind = self.bits * 2 + self.planes.long()
        kinds = kind.unique(sorted=True)
        parts: list[PackedWeight] = []
        row_part = torch.zeros(len(kind), dtype=torch.uint8)
        for index, value in enumerate(kinds.tolist()):
            rows = kind == value
            bits, planes = divmod(value, 2)
            part = weight[rows]
            parts.append(round_planes(part, bits) if planes else round_uniform(part, bits, ranges=ranges))
            row_part[rows] = index
        return parts[0] if len(parts) == 1 else RowMixedWeight(parts, row_part)
