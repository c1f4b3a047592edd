"""Round to nearest on a uniform grid: per tensor, per output channel, or per group of input channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.kernels.quantizers import ranges as range_rules
from harness.kernels.quantizers.grid import Grid, check_grid, decode, encode, grid_parameters
from harness.kernels.quantizers.ranges import RangeRule

Group = int | Literal["tensor"] | None
"""Values that share a scale: so many neighbouring columns, the whole tensor, or None for one row."""


@dataclass(frozen=True)
class UniformCodes:
    """A matrix on a uniform grid.

    Attributes:
        codes: uint8 [rows, cols].
        scale: float16 [rows, groups]; [1, 1] for one scale per tensor.
        zero: zero points of the shape of `scale`, uint8 (float16 for `affine`); None for the symmetric grids.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


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

    Returns:
        Codes chosen for the scales as they are stored, in float16. A group of zeros decodes to zeros.

    Raises:
        ValueError: a wrong width, grid, group or rule, or weights that are not finite.
    """
    check_grid(bits, grid)
    check_group(group)
    w = w.detach().to(torch.float32)
    if not bool(torch.isfinite(w).all()):
        raise ValueError("the weights are not finite")
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    for block in blocks(w, group):
        values = block.reshape(-1, block.shape[-1])
        lo, hi = _range(values, bits, grid, ranges, percentile, power, steps)
        scale, zero = grid_parameters(lo, hi, bits, grid)
        scales.append(scale.view(block.shape[:2]))
        if zero is not None:
            zeros.append(zero.view(block.shape[:2]))
    scale, zero = torch.cat(scales, dim=1), torch.cat(zeros, dim=1) if zeros else None
    return UniformCodes(encode_uniform(w, scale, zero, bits, grid=grid, group=group), scale, zero)


def encode_uniform(
    w: Tensor, scale: Tensor, zero: Tensor | None, bits: int, *, grid: Grid, group: Group
) -> Tensor:
    """Return the uint8 codes [rows, cols] of a matrix for parameters as in `UniformCodes`."""
    return _by_block(w, scale, zero, group, lambda x, s, z: encode(x, s, z, bits, grid).to(torch.uint8))


def dequantize_uniform(codes: UniformCodes, bits: int, *, grid: Grid, group: Group) -> Tensor:
    """Return the float32 values [rows, cols] of a quantized matrix."""
    return _by_block(codes.codes, codes.scale, codes.zero, group, lambda x, s, z: decode(x, s, z, bits, grid))


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
) -> Tensor:
    """Apply `function` to each run of equal groups with its parameters; return the columns together."""
    done, first = [], 0
    for block in blocks(x, group):
        last = first + block.shape[1]
        part_zero = None if zero is None else zero[:, first:last, None]
        done.append(function(block, scale[:, first:last, None], part_zero).flatten(1))
        first = last
    return (done[0] if len(done) == 1 else torch.cat(done, dim=1)).view(x.shape)
