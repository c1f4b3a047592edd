"""Two-level group scales: one float scale per row, and per group a small integer or a power of two.

| format | a row holds | a group holds | step of a group |
|---|---|---|---|
| `float` | nothing | a float16 step | the step itself |
| `integer` | a float scale s | k, uint8, 1..K | s * k |
| `e8m0` | a float scale s | e, int8, -9..0 | s * 2^e |

With `float` a matrix product has to rescale its sum after every group. With the others a value is
`s * (k * unit)`, `unit` the small integer a code stands for, and the products `k * unit` are themselves
numbers of the tensor cores: int8 for `integer` (two-level scales as in QServe, Lin et al. 2024, arXiv
2405.04532, section 4.1), float8 e4m3 for `e8m0` (power-of-two scales as in the OCP microscaling formats).
One product over all columns then needs the row's scale only, once, at its end.

Units: `code - offset`, an integer, for grids whose offset is one. The offset of `midrise` is a half-integer:
its units are `2 * code - (2^b - 1)`, odd, and count half a step each. K is the largest multiplier with
`K * largest |unit| <= 127`; at 4 bits 18 (`narrow`) and 8 (`asymmetric`, `midrise`). In e4m3 every
`unit * 2^e` is exact for units up to 16 and e from -9 to 0.

Everything here is plain float32 arithmetic with IEEE rounding in the order written, so that another backend
can repeat it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from harness.kernels.quantizers.grid import LARGEST_SCALE, Grid, divided, half_scale

ScaleFormat = Literal["float", "integer", "e8m0"]
SCALE_FORMATS: tuple[str, ...] = get_args(ScaleFormat)

LARGEST_PRODUCT = 127
LARGEST_E8M0_UNIT = 16
"""e4m3 has four significant bits: every integer up to this is exact, and so is its product with 2^-9..2^0."""
SMALLEST_EXPONENT = -9
ROW_CANDIDATES = 8
"""Row scales tried for a weight."""

GroupError = Callable[[Tensor], Tensor]
"""Error of every group at given steps: float32 [rows, groups] -> [rows, groups]."""


def units_per_step(grid: Grid) -> int:
    """Return how many units one step of a grid is."""
    return 2 if grid == "midrise" else 1


def largest_unit(bits: int, grid: Grid) -> int:
    """Return the largest |unit| of a grid (an `asymmetric` zero point may lie at either end of its codes)."""
    return (1 << (bits - 1 if grid == "narrow" else bits)) - 1


def largest_multiplier(largest: int) -> int:
    """Return K for units up to `largest`."""
    return LARGEST_PRODUCT // largest


def check_scale_format(scale_format: str, largest: int, what: str) -> None:
    """Raise ValueError unless the format exists and holds units up to `largest`.

    Args:
        scale_format: name of the format.
        largest: largest |unit|.
        what: what has these units, for the message.
    """
    if scale_format not in SCALE_FORMATS:
        raise ValueError(f"unknown scale format {scale_format!r}; valid: {', '.join(SCALE_FORMATS)}")
    most = {"float": largest, "integer": LARGEST_PRODUCT, "e8m0": LARGEST_E8M0_UNIT}[scale_format]
    if largest > most:
        raise ValueError(f"{scale_format} scales hold units up to {most}, and {what} reaches {largest}")


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent exactly: integers -126..127 to float32."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def ceil_exponent(ratio: Tensor) -> Tensor:
    """Return the least e in -9..0 with `2^e >= ratio`, -9 and 0 being the ends: int32.

    Read off the bits of the float32: its exponent, and one more unless the fraction is zero.

    Args:
        ratio: float32, not negative.
    """
    bits = ratio.view(torch.int32)
    return ((bits >> 23) - 127 + ((bits & 0x7FFFFF) != 0)).clamp_(SMALLEST_EXPONENT, 0)


def group_multiplier(scale_format: ScaleFormat, multiplier: Tensor) -> Tensor:
    """Return what the row's scale is multiplied by, from how it is stored: float32."""
    return power_of_two(multiplier) if scale_format == "e8m0" else multiplier.to(torch.float32)


def integer_group_scales(absmax: Tensor, largest: int, kmax: int) -> tuple[Tensor, Tensor]:
    """Choose the two levels of `integer` scales of tokens, in one pass once the groups' magnitudes are known.

        top   = max over the groups of absmax
        s     = top / float32(largest * kmax)        1 if that is zero
        reach = s * float32(largest)
        k     = min(max(ceil(absmax / reach), 1), kmax)

    Every operation rounds to float32 (ties to even), divisions included.

    Args:
        absmax: float32 [..., groups], largest magnitude of each group.
        largest: largest code.
        kmax: largest multiplier, see `largest_multiplier`.

    Returns:
        s float32 [..., 1] and k uint8 [..., groups]. A token that is not finite has a scale that is not, and
        multipliers without a meaning.
    """
    row = divided(absmax.amax(dim=-1, keepdim=True), largest * kmax)
    row = torch.where(row == 0, torch.ones_like(row), row)
    k = (absmax / (row * float(largest))).ceil_().clamp_(1, kmax)
    return row, k.nan_to_num_(1.0).to(torch.uint8)


def e8m0_group_scales(absmax: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Choose the two levels of `e8m0` scales of tokens.

        top = max over the groups of absmax
        s   = top / float32(largest)                 1 if that is zero
        e   = min(max(least e with 2^e >= absmax / top, -9), 0)      `ceil_exponent`

    Args:
        absmax: float32 [..., groups], largest magnitude of each group.
        largest: largest code.

    Returns:
        s float32 [..., 1] and e int8 [..., groups], otherwise as `integer_group_scales`.
    """
    top = absmax.amax(dim=-1, keepdim=True)
    row = divided(top, largest)
    ratio = absmax / torch.where(top == 0, torch.ones_like(top), top)
    row = torch.where(row == 0, torch.ones_like(row), row)
    return row, ceil_exponent(ratio.nan_to_num_(1.0)).to(torch.int8)


def fit_row_scales(
    steps: Tensor, scale_format: ScaleFormat, kmax: int, error: GroupError, *, widen_only: bool
) -> tuple[Tensor, Tensor]:
    """Choose the two levels for the steps the groups of a weight would have with scales of their own.

    The row's scale is at least what its widest group needs, and at most one multiplier (an octave for `e8m0`)
    more: of several candidates in between the one of least error is taken, the smallest of equal ones. A
    group's multiplier is the least that reaches its step, so that its range is never narrowed; without
    `widen_only` the next smaller one is tried too.

    Args:
        steps: float32 [rows, groups], 0 for a group of zeros.
        scale_format: `integer` or `e8m0`.
        kmax: largest multiplier of `integer`.
        error: of the groups at trial steps; candidates are compared by its sum over a row.
        widen_only: whether no group may get a smaller step than asked for.

    Returns:
        the rows' scales float16 [rows, 1] and the multipliers, uint8 or int8 [rows, groups]. A row of zeros
        has scale 0. A group of zeros has k = 0, or e = -9.
    """
    top = steps.amax(dim=1, keepdim=True)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for candidate in range(ROW_CANDIDATES):
        part = candidate / ROW_CANDIDATES
        row = _half_above(top * 2.0**part if scale_format == "e8m0" else top / (kmax - part))
        multiplier, errors = _multipliers(steps, row, scale_format, kmax, error, widen_only)
        total = errors.sum(dim=1, keepdim=True)
        if best is None:
            best = row, multiplier, total
            continue
        better = total < best[2]
        best = (
            torch.where(better, row, best[0]),
            torch.where(better, multiplier, best[1]),
            torch.where(better, total, best[2]),
        )
    assert best is not None
    return best[0], best[1]


def _multipliers(
    steps: Tensor, row: Tensor, scale_format: ScaleFormat, kmax: int, error: GroupError, widen_only: bool
) -> tuple[Tensor, Tensor]:
    """Return the multipliers as stored, and the groups' errors with them."""
    base = row.to(torch.float32)
    ratio = steps / torch.where(base > 0, base, 1.0)
    if scale_format == "e8m0":
        upper, least = ceil_exponent(ratio).to(torch.int8), SMALLEST_EXPONENT
    else:
        upper, least = ratio.ceil().clamp_(1, kmax).mul_(steps > 0).to(torch.uint8), 1
    errors = error(base * group_multiplier(scale_format, upper))
    if widen_only:
        return upper, errors
    lower = torch.where(upper > least, upper - 1, upper)
    narrowed = error(base * group_multiplier(scale_format, lower))
    better = narrowed < errors
    return torch.where(better, lower, upper), torch.where(better, narrowed, errors)


def _half_above(scale: Tensor) -> Tensor:
    """Round positive scales to the next float16 above; zero and saturation as `half_scale`."""
    half = half_scale(scale)
    # Neighbouring positive float16 numbers are neighbouring integers.
    above = (half.view(torch.int16) + 1).view(torch.float16)
    return torch.where((half.to(torch.float32) < scale) & (half < LARGEST_SCALE), above, half)
