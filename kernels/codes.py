"""Quantized activations as codes and their parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActCodes:
    """Quantized activations as an integer backend multiplies them.

    A value is `scale * (products + offset) - shift`, with `offset` and `shift` where there are any.

    Attributes:
        products: of the shape of the input. The codes as signed integers, int8; with scales of two levels the
            codes times the multipliers of their groups, int8 for `integer` and float8_e4m3fn for `e8m0`; for
            NVFP4 twice the E2M1 numbers, int8.
        scale: float32. One per token ([..., 1]), also with scales of two levels; one per group
            ([..., groups]) with float scales per group and NVFP4; [n, 1, ...] or [1, ...] per tensor.
        offset: of the shape of `scale`, float32 integers: minus the zero point, and 128 more where unsigned
            codes of 8 bits are held as int8; None for 0.
        shift: float32 [channels], or [channels, 1, 1] of a convolution's input, or [1]; None for 0.
        group: channels per scale where there is one per group, else None.
        multiplier: uint8 or int8 [..., groups], of scales of two levels, else None.
    """

    products: Tensor
    scale: Tensor
    offset: Tensor | None
    shift: Tensor | None
    group: int | None
    multiplier: Tensor | None = None

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what the codes stand for: in float32 bit for bit what the quantizer's forward returns.

        In float64 nothing is rounded, unless there is a shift.
        """
        values = self.products.to(dtype)
        if self.offset is not None:
            values = values + self._spread(self.offset)
        values = values * self._spread(self.scale)
        return values if self.shift is None else values - self.shift

    def _spread(self, parameter: Tensor) -> Tensor:
        """Return one parameter per channel from one per group."""
        if self.group is None:
            return parameter
        return parameter.repeat_interleave(self.group, dim=-1)[..., : self.products.shape[-1]]
