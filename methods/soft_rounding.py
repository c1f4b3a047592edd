"""AdaRound's relaxation of rounding: how far each weight is rounded up, ending at 0 or 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.methods.rounding import UniformRows

GAMMA, ZETA = -0.1, 1.1
"""The sigmoid is stretched to these ends and clipped, so that 0 and 1 are reached (AdaRound, eq. 23)."""
BETA_FIRST, BETA_LAST = 20.0, 2.0
WARM_UP = 0.2
"""Share of the steps without the regulariser."""


def soft_rounding(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rectified sigmoid h(v) and its derivative."""
    sigmoid = torch.sigmoid(v)
    stretched = sigmoid * (ZETA - GAMMA) + GAMMA
    inside = (stretched > 0) & (stretched < 1)
    return stretched.clamp(0, 1), torch.where(inside, sigmoid * (1 - sigmoid) * (ZETA - GAMMA), 0.0)


def annealed(step: int, steps: int) -> float | None:
    """Exponent of the regulariser: none at first, then from 20 to 2 along a cosine."""
    share = (step / steps - WARM_UP) / (1 - WARM_UP)
    if share < 0:
        return None
    return BETA_LAST + (BETA_FIRST - BETA_LAST) * 0.5 * (1 + math.cos(share * math.pi))


def spread(rows: UniformRows) -> Tensor:
    """The scale of every row, one where it is zero: float32 [rows, 1]."""
    values = rows.codes.scale.float()
    return torch.where(values > 0, values, torch.ones_like(values))


def decoded(rows: UniformRows, codes: Tensor) -> Tensor:
    """Return what other codes on the same grids stand for: float32 [rows, cols]."""
    return rows.with_codes(codes).values()


def down_and_free(weight: Tensor, rows: UniformRows) -> tuple[Tensor, Tensor]:
    """Return the codes of rounding down uint8, and 1 where rounding up is possible, else 0, float32.

    Args:
        weight: float32 [rows, cols].
        rows: `asymmetric` grids per row.
    """
    zero, top = rows.codes.zero, 2**rows.bits - 1
    assert zero is not None
    floor = (weight / spread(rows) + zero.float()).floor_().clamp_(0, top).to(torch.uint8)
    return floor, (floor < top).float()  # nothing rounds up from the last level


def starting_values(weight: Tensor, rows: UniformRows, floor: Tensor) -> Tensor:
    """Return the v at which h(v) is how far each weight lies above its lower level: float32 [rows, cols]."""
    fraction = ((weight - decoded(rows, floor)) / spread(rows)).clamp(0.01, 0.99)
    return torch.logit((fraction - GAMMA) / (ZETA - GAMMA))


def hardened(rows: UniformRows, floor: Tensor, free: Tensor, v: Tensor) -> UniformRows:
    """Return the grids with every weight rounded up where v is above 0, and down elsewhere."""
    codes = (floor.float() + free * (v > 0)).to(torch.uint8)
    return rows.with_codes(codes)
