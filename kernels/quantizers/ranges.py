"""Which range a group of values is quantized over.

Pure functions: x float32 [groups, n] -> (lo [groups], hi [groups]).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from harness.kernels.quantizers.grid import (
    ZERO_POINTS,
    Grid,
    check_grid,
    code_range,
    fixed_offset,
    grid_parameters,
    safe_divisor,
)

RangeRule = Literal["minmax", "percentile", "mse"]
RANGE_RULES: tuple[str, ...] = get_args(RangeRule)

SHRINK_STEPS = 80
CHUNK = 1 << 18
"""Values worked on at once: temporaries stay in the second-level cache, and memory stays bounded."""


def minmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each group (float32 [groups, n] -> two [groups])."""
    return x.amin(dim=-1), x.amax(dim=-1)


def percentile(x: Tensor, percent: float) -> tuple[Tensor, Tensor]:
    """Return the `100 - percent` and the `percent` percentile of each group, linearly interpolated.

    Args:
        x: float32 [groups, n].
        percent: between 50 and 100; 100 is `minmax`.

    Raises:
        ValueError: `percent` is outside 50..100.
    """
    if not 50 <= percent <= 100:
        raise ValueError(f"a percentile lies in 50..100, not {percent}")
    position = percent / 100 * (x.shape[-1] - 1)
    below = int(position)
    above = min(below + 1, x.shape[-1] - 1)
    lo, hi = [], []
    for chunk in torch.split(x, max(1, CHUNK // x.shape[-1])):
        # Sorted rather than torch.quantile, which refuses large inputs.
        ordered = chunk.sort(dim=-1).values
        hi.append(ordered[:, below].lerp(ordered[:, above], position - below))
        lo.append(ordered[:, -1 - below].lerp(ordered[:, -1 - above], position - below))
    return torch.cat(lo), torch.cat(hi)


def mse(
    x: Tensor, bits: int, grid: Grid, *, steps: int = SHRINK_STEPS, power: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Search the range whose grid has the least error, over shrunken copies of the min-max range.

    Candidate `k` is the min-max range times `1 - 0.8 k/steps`, k = 0..steps-1, both ends together, and its
    error is `sum |x - grid(x)|^power` with the scale as it is stored. All candidates are tried on all groups:
    the error has several local minima at 2-3 bits, so nothing is pruned. Of equal candidates the widest wins.
    (The shrink search with power 2.4 is the one of BRECQ and its descendants; power 2 is the mean squared
    error.)

    Args:
        x: float32 [groups, n].
        bits: width of a code.
        grid: which grid.
        steps: number of candidates, 1-100; 80, in steps of 1 %, is the usual search.
        power: exponent of the error.

    Raises:
        ValueError: a wrong grid or number of steps.
    """
    check_grid(bits, grid)
    if not 1 <= steps <= 100:
        raise ValueError(f"the shrink search takes 1 to 100 steps, not {steps}")
    lo, hi = minmax(x)
    if grid in ZERO_POINTS:
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    # At 80 steps exactly k/100.
    shrink = 1 - torch.arange(steps, dtype=torch.float32, device=x.device) * SHRINK_STEPS / steps / 100
    rows = max(1, CHUNK // x.shape[-1])
    best = torch.cat(
        [
            _errors(part, part_lo, part_hi, shrink, bits, grid, power).argmin(dim=1)
            for part, part_lo, part_hi in zip(*(torch.split(t, rows) for t in (x, lo, hi)), strict=True)
        ]
    )
    return lo * shrink[best], hi * shrink[best]


def _errors(x: Tensor, lo: Tensor, hi: Tensor, shrink: Tensor, bits: int, grid: Grid, power: float) -> Tensor:
    """Return the error of every candidate: [groups, candidates].

    Errors are taken in units of the scale: two passes fewer over the values than decoding them.
    """
    scale, zero = grid_parameters(lo[:, None] * shrink, hi[:, None] * shrink, bits, grid)
    divisor = safe_divisor(scale)
    offset = torch.full_like(divisor, fixed_offset(bits, grid)) if zero is None else zero.to(torch.float32)
    smallest, largest = code_range(bits, grid)
    errors = torch.zeros_like(divisor)
    for column in torch.split(x, CHUNK, dim=-1):
        unit, code = torch.empty_like(column), torch.empty_like(column)
        for k in range(shrink.shape[0]):
            here = slice(k, k + 1)
            torch.div(column, divisor[:, here], out=unit)
            torch.add(unit, offset[:, here], out=code)
            difference = code.round_().clamp_(smallest, largest).sub_(offset[:, here]).sub_(unit)
            error = difference.square_() if power == 2.0 else difference.abs_().pow_(power)
            errors[:, k] += error.sum(dim=-1)
    return errors * divisor.pow(power)
