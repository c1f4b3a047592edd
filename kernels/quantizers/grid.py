"""The uniform grids: what a code means, and which code a value gets.

All are one affine family, `value = (code - offset) * scale`:

| grid | offset | codes | levels |
|---|---|---|---|
| `asymmetric` | an integer zero point in 0..2^b-1 | 0..2^b-1 | 2^b, zero among them |
| `affine` | a float16 zero point | 0..2^b-1 | 2^b, zero among them only by chance |
| `narrow` | 2^(b-1) | 1..2^b-1 | 2^b - 1, symmetric, zero among them |
| `midrise` | (2^b-1)/2 | 0..2^b-1 | 2^b, symmetric, none of them zero |

(Jacob et al. 2018, eq. 1, for the zero point; the mid-rise / mid-tread distinction is Gersho & Gray's.)

A scale is stored in 16 bits, and codes are chosen for the stored scale. Since a scale then has 11 significant
bits and `code - offset` at most 9, decoding in float32 is exact: every backend that multiplies in float32
agrees bit for bit. (`affine` offsets have 11 bits of their own: there the product is rounded once.) Scales of
two levels (`harness.kernels.quantizers.scales`) decode exactly too: 11 bits times a product of at most 8.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Grid = Literal["asymmetric", "narrow", "midrise", "affine"]
GRIDS: tuple[str, ...] = get_args(Grid)

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16: a scale of a non-zero group is never rounded to nothing."""
LARGEST_SCALE = 65504.0
ZERO_POINTS: dict[str, torch.dtype] = {"asymmetric": torch.uint8, "affine": torch.float16}
"""How the grids with stored zero points store them."""


def check_grid(bits: int, grid: str) -> None:
    """Raise ValueError unless `grid` exists and has at least two levels at this width."""
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}; valid: {', '.join(GRIDS)}")
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, not {bits}")
    if grid == "narrow" and bits == 1:
        raise ValueError("a narrow grid of 1 bit has a single level; use midrise")


def code_range(bits: int, grid: Grid) -> tuple[int, int]:
    """Return the smallest and the largest code."""
    return (1 if grid == "narrow" else 0), 2**bits - 1


def fixed_offset(bits: int, grid: Grid) -> float:
    """Return the offset of a grid without a zero point."""
    return float(2 ** (bits - 1)) if grid == "narrow" else (2**bits - 1) / 2


def divided(values: Tensor, by: float) -> Tensor:
    """Divide by a number with IEEE rounding, on every device.

    CUDA divides by a Python number by multiplying with its reciprocal, a bit off: codes next to a tie flip.
    """
    return values / torch.full((), float(by), device=values.device)


def half_scale(scale: Tensor) -> Tensor:
    """Round positive scales to float16: saturating above, and never to zero unless they are zero."""
    kept = scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16)
    return torch.where(scale > 0, kept, torch.zeros_like(kept))


def safe_divisor(scale: Tensor) -> Tensor:
    """Return the scale in float32 with zeros replaced by one (an all-zero group has scale zero)."""
    scale = scale.to(torch.float32)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def grid_step(lo: Tensor, hi: Tensor, bits: int, grid: Grid) -> Tensor:
    """Return the step of the grid laid over the range `lo`..`hi`, before it is stored: float32.

    Args:
        lo: smallest value to represent, float32, any shape. For symmetric grids only max(|lo|, |hi|) counts.
        hi: largest value to represent, same shape.
        bits: width of a code.
        grid: which grid; with a zero point the range is extended to include zero.
    """
    levels = float(2**bits - 1)
    if grid not in ZERO_POINTS:
        absmax = torch.maximum(lo.abs(), hi.abs())
        return divided(absmax, 2 ** (bits - 1) - 1) if grid == "narrow" else absmax * (2 / levels)
    return divided(hi.clamp(min=0), levels) - divided(lo.clamp(max=0), levels)


def zero_point(lo: Tensor, scale: Tensor, bits: int, grid: Grid) -> Tensor | None:
    """Return the zero point of a range that starts at `lo`, for its scale as stored.

    Returns:
        uint8, or float16 for `affine`; None for the symmetric grids.
    """
    if grid not in ZERO_POINTS:
        return None
    zero = (-lo.clamp(max=0) / safe_divisor(scale)).clamp_(0, 2**bits - 1)
    return zero.to(torch.float16) if grid == "affine" else zero.round_().to(torch.uint8)


def grid_parameters(lo: Tensor, hi: Tensor, bits: int, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Lay a grid over the range `lo`..`hi`.

    Args:
        lo: smallest value to represent, float32, any shape. For symmetric grids only max(|lo|, |hi|) counts.
        hi: largest value to represent, same shape.
        bits: width of a code.
        grid: which grid.

    Returns:
        The scale as stored (float16) and the zero point (uint8, or float16 for `affine`), None for the
        symmetric grids. A range with a zero point is extended to include zero. A range of nothing but zero
        has scale 0.
    """
    scale = half_scale(grid_step(lo, hi, bits, grid))
    return scale, zero_point(lo, scale, bits, grid)


def encode(x: Tensor, scale: Tensor, zero: Tensor | None, bits: int, grid: Grid) -> Tensor:
    """Return the nearest codes as float32 integers, of the shape of `x`.

    Args:
        x: float32 values.
        scale: stored scales, broadcastable to `x`.
        zero: zero points, broadcastable to `x`, None for the symmetric grids.
        bits: width of a code.
        grid: which grid.
    """
    offset = fixed_offset(bits, grid) if zero is None else zero.to(torch.float32)
    smallest, largest = code_range(bits, grid)
    return (x / safe_divisor(scale)).add_(offset).round_().clamp_(smallest, largest)


def decode(codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, grid: Grid) -> Tensor:
    """Return the float32 values of `codes` (uint8, or the floats of `encode`, which are overwritten)."""
    offset = fixed_offset(bits, grid) if zero is None else zero.to(torch.float32)
    return codes.to(torch.float32).sub_(offset).mul_(scale.to(torch.float32))
