"""Round to nearest on a uniform grid: per tensor, per output channel, or per group of input channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.kernels.quantizers import ranges as range_rules
from harness.kernels.quantizers import scales as two_level
from harness.kernels.quantizers.grid import (
    Grid,
    check_grid,
    decode,
    encode,
    grid_step,
    half_scale,
    zero_point,
)
from harness.kernels.quantizers.ranges import RangeRule
from harness.kernels.quantizers.scales import ScaleFormat

Group = int | Literal["tensor"] | None
"""Values that share a scale: so many neighbouring columns, the whole tensor, or None for one row."""


@dataclass(frozen=True)
class UniformCodes:
    """A matrix on a uniform grid.

    Attributes:
        codes: uint8 [rows, cols].
        scale: float16 [rows, groups]; [1, 1] for one scale per tensor; [rows, 1] beside multipliers.
        zero: zero points, one per group, uint8 (float16 for `affine`); None for the symmetric grids.
        multiplier: of scales of two levels, [rows, groups]: uint8 for `integer`, int8 exponents for `e8m0`
            (`harness.kernels.quantizers.scales`); None for `float`.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    multiplier: Tensor | None = None

    @property
    def scale_format(self) -> ScaleFormat:
        """Format of the scales."""
        return scale_format_of(self.multiplier)

    @property
    def steps(self) -> Tensor:
        """The step of every group: `scale` itself, or its exact float32 product with the multipliers."""
        if self.multiplier is None:
            return self.scale
        relative = two_level.group_multiplier(self.scale_format, self.multiplier)
        return self.scale.to(torch.float32) * relative

    def take(self, rows: Tensor) -> UniformCodes:
        """Return some of the rows (index or mask); not for one scale per tensor."""
        zero = None if self.zero is None else self.zero[rows]
        multiplier = None if self.multiplier is None else self.multiplier[rows]
        return UniformCodes(self.codes[rows], self.scale[rows], zero, multiplier)


def scale_format_of(multiplier: Tensor | None) -> ScaleFormat:
    """Return the format whose multipliers have this dtype; `float` has none."""
    if multiplier is None:
        return "float"
    return "e8m0" if multiplier.dtype == torch.int8 else "integer"


def check_weight_scales(scale_format: str, bits: int, grid: Grid, group: Group) -> None:
    """Raise ValueError unless a weight of this grid and group can have scales of this format."""
    two_level.check_scale_format(
        scale_format, two_level.largest_unit(bits, grid), f"the {grid} grid of {bits} bits"
    )
    if scale_format == "float":
        return
    if group is None or group == "tensor":
        raise ValueError(f"{scale_format} scales are for groups of columns; one scale per row needs none")
    if grid == "affine":
        raise ValueError(f"{scale_format} scales need an integer zero point, which the affine grid has not")


def check_group(group: Group) -> None:
    """Raise ValueError unless `group` is a positive number, `tensor` or None."""
    if group is None or group == "tensor":
        return
    if isinstance(group, bool) or not isinstance(group, int) or group < 1:
        raise ValueError(f"a group is a positive number of columns, 'tensor' or None, not {group!r}")


def scale_shape(rows: int, cols: int, group: Group) -> tuple[int, int]:
    """Return the shape of the scales of a [rows, cols] matrix."""
    if group == "tensor":
        return 1, 1
    return rows, 1 if group is None else -(-cols // group)


def blocks(x: Tensor, group: Group) -> list[Tensor]:
    """Cut a matrix into runs of equal groups.

    Args:
        x: [rows, cols].
        group: what shares a scale.

    Returns:
        Parts [rows, groups, n] in column order: one, or two when the last group is short. [1, 1, rows*cols]
        per tensor.
    """
    cols = x.shape[1]
    if group == "tensor":
        return [x.reshape(1, 1, -1)]
    if group is None or group >= cols:
        return [x.unsqueeze(1)]
    full = cols - cols % group
    views = [x[:, :full].reshape(-1, full // group, group)]
    return views if full == cols else [*views, x[:, full:].unsqueeze(1)]


def quantize_uniform(
    w: Tensor,
    bits: int,
    *,
    grid: Grid = "asymmetric",
    group: Group = None,
    ranges: RangeRule = "minmax",
    percentile: float = 99.9,
    power: float = 2.0,
    steps: int = range_rules.SHRINK_STEPS,
    scale_format: ScaleFormat = "float",
) -> UniformCodes:
    """Round a matrix to the nearest values of a uniform grid.

    Args:
        w: float [rows, cols]; a row is an output channel.
        bits: width of a code, 1-8 (2-8 for `narrow`).
        grid: see `harness.kernels.quantizers.grid`.
        group: columns that share a scale, `tensor`, or None for one scale per row. A last group may be short.
        ranges: how the range of a group is chosen, see `harness.kernels.quantizers.ranges`.
        percentile: in percent, 50-100, for `ranges="percentile"`.
        power: exponent of the error, for `ranges="mse"`.
        steps: candidates of the search, for `ranges="mse"`.
        scale_format: how the scales of groups are stored. With `integer` and `e8m0` the range of a group is
            widened to the next one its multiplier allows, so that `minmax` still clips nothing; with
            `ranges="mse"` the next smaller one is taken where its error is less.

    Returns:
        Codes chosen for the scales as they are stored. A group of zeros decodes to zeros (on `midrise` with
        `e8m0` scales to half the least step of its row).

    Raises:
        ValueError: a wrong width, grid, group, rule or format, or weights that are not finite.
    """
    check_grid(bits, grid)
    check_group(group)
    check_weight_scales(scale_format, bits, grid, group)
    w = w.detach().to(torch.float32)
    if not bool(torch.isfinite(w).all()):
        raise ValueError("the weights are not finite")
    wanted: list[Tensor] = []
    zeros: list[Tensor] = []
    for block in blocks(w, group):
        values = block.reshape(-1, block.shape[-1])
        lo, hi = _range(values, bits, grid, ranges, percentile, power, steps)
        step = grid_step(lo, hi, bits, grid)
        zero = zero_point(lo, half_scale(step), bits, grid)
        wanted.append(step.view(block.shape[:2]))
        if zero is not None:
            zeros.append(zero.view(block.shape[:2]))
    step, zero = torch.cat(wanted, dim=1), torch.cat(zeros, dim=1) if zeros else None
    scale, multiplier = half_scale(step), None
    if scale_format != "float":

        def error(trial: Tensor) -> Tensor:
            return _group_errors(w, trial, zero, bits, grid, group, power)

        kmax = two_level.largest_multiplier(two_level.largest_unit(bits, grid))
        widen_only = ranges != "mse"
        scale, multiplier = two_level.fit_row_scales(step, scale_format, kmax, error, widen_only=widen_only)
    rounded = UniformCodes(w, scale, zero, multiplier)
    return replace(rounded, codes=encode_uniform(w, rounded.steps, zero, bits, grid=grid, group=group))


def _group_errors(
    w: Tensor, steps: Tensor, zero: Tensor | None, bits: int, grid: Grid, group: Group, power: float
) -> Tensor:
    """Return `sum |w - grid(w)|^power` of every group: [rows, groups]."""

    def error(x: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
        difference = decode(encode(x, s, z, bits, grid), s, z, bits, grid).sub_(x)
        return (difference.square_() if power == 2.0 else difference.abs_().pow_(power)).sum(-1)

    return torch.cat(_by_block(w, steps, zero, group, error), dim=1)


def encode_uniform(
    w: Tensor, scale: Tensor, zero: Tensor | None, bits: int, *, grid: Grid, group: Group
) -> Tensor:
    """Return the uint8 codes [rows, cols] of a matrix for steps and zero points as in `UniformCodes`."""

    def code(x: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
        return encode(x, s, z, bits, grid).to(torch.uint8)

    return _together(_by_block(w, scale, zero, group, code), w)


def dequantize_uniform(codes: UniformCodes, bits: int, *, grid: Grid, group: Group) -> Tensor:
    """Return the float32 values [rows, cols] of a quantized matrix."""

    def value(x: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
        return decode(x, s, z, bits, grid)

    return _together(_by_block(codes.codes, codes.steps, codes.zero, group, value), codes.codes)


def expand_uniform(codes: UniformCodes, bits: int, *, grid: Grid, group: Group) -> tuple[Tensor, Tensor]:
    """Return what a matrix product on integer or float8 tensor cores multiplies.

    `products.float() * row_scale` equals `dequantize_uniform` exactly.

    Args:
        codes: with scales of two levels, or with one scale per row or tensor.
        bits: width of a code.
        grid: its grid; not `affine`.
        group: columns that share a scale.

    Returns:
        products, the groups' multipliers times the units of the codes: int8 [rows, cols], float8_e4m3fn for
        `e8m0`; and the rows' scales, float32 [rows, 1] ([1, 1] per tensor).

    Raises:
        ValueError: float scales of groups, or units that int8 does not hold.
    """
    if codes.multiplier is None and isinstance(group, int):
        raise ValueError("float scales of groups are not integers: nothing to expand into")
    if grid == "affine" or two_level.largest_unit(bits, grid) > two_level.LARGEST_PRODUCT:
        raise ValueError(f"int8 does not hold the {grid} grid of {bits} bits")
    per_step = two_level.units_per_step(grid)
    unit = torch.full_like(codes.scale, per_step)
    if codes.multiplier is not None:
        unit = two_level.group_multiplier(codes.scale_format, codes.multiplier) * per_step

    def product(x: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
        return decode(x, s, z, bits, grid)

    products = _together(_by_block(codes.codes, unit, codes.zero, group, product), codes.codes)
    held = torch.float8_e4m3fn if codes.scale_format == "e8m0" else torch.int8
    return products.to(held), codes.scale.to(torch.float32) / per_step


def _range(
    values: Tensor, bits: int, grid: Grid, rule: RangeRule, percentile: float, power: float, steps: int
) -> tuple[Tensor, Tensor]:
    if rule == "minmax":
        return range_rules.minmax(values)
    if rule == "percentile":
        return range_rules.percentile(values, percentile)
    if rule == "mse":
        return range_rules.mse(values, bits, grid, steps=steps, power=power)
    raise ValueError(f"unknown range rule {rule!r}; valid: {', '.join(range_rules.RANGE_RULES)}")


def _by_block(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group: Group,
    function: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> list[Tensor]:
    """Apply `function` to each run of equal groups [rows, groups, n], its parameters [rows, groups, 1]."""
    done, first = [], 0
    for block in blocks(x, group):
        last = first + block.shape[1]
        part_zero = None if zero is None else zero[:, first:last, None]
        done.append(function(block, scale[:, first:last, None], part_zero))
        first = last
    return done


def _together(parts: list[Tensor], like: Tensor) -> Tensor:
    """Return the columns of all runs together, in the shape of `like`."""
    flat = [part.flatten(1) for part in parts]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)).view(like.shape)
