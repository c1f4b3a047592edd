"""What the kernels read of each kind of packed weight: views of its storage, no copies of its codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from harness.kernels.quantizers.grid import fixed_offset
from harness.kernels.quantizers.nvfp4 import BITS as NVFP4_BITS
from harness.kernels.quantizers.nvfp4 import GROUP as NVFP4_GROUP
from harness.kernels.quantizers.nvfp4 import decode_e2m1, e4m3_values
from harness.kernels.quantizers.residual import level_table
from harness.kernels.quantizers.scales import (
    LARGEST_E8M0_UNIT,
    LARGEST_PRODUCT,
    group_multiplier,
    largest_unit,
    units_per_step,
)
from harness.kernels.stored import held
from harness.kernels.weights import (
    BinaryPlanesWeight,
    NormalFloatWeight,
    Nvfp4Weight,
    PackedWeight,
    RowMixedWeight,
    UniformWeight,
)

CODES_PER_SLOT = {2: 8, 3: 8, 4: 4}
"""Widths the few-token kernel decodes, and the codes of one of its slots."""
SLOTS_AT_ONCE = 64
"""Slots a step of that kernel covers: whole groups."""

FLOAT8_GROUPS = (8, 16, 32, 64, 128, 256, 512)
"""Groups of columns that the float8 expansion knows."""

Units = Callable[[], tuple[Tensor, Tensor]]
"""Expands a weight: units [rows, cols] and what one unit of each row is worth, float [rows]."""


class Codes(NamedTuple):
    """Packed codes and how one becomes a number: the arguments of `harness.kernels.triton.ops.expand`.

    Attributes:
        packed: uint8 [rows, bytes].
        bits: width of a code.
        cols: codes per row.
        scale: one per (row, group); int8 ones are exponents of two. None for 1.
        group: columns that share a scale, 0 for all of a row; with `flat`, a run of the flattened matrix.
        flat: see `group`.
        offset: stored zero points of the shape of `scale`, or None for `fixed`.
        fixed: the offset of all codes.
        doubled: whether units are `2 * code - 2 * fixed`.
        table: float32 [2**bits] or [rows, 2**bits]: values of the codes, instead of `code - offset`.
    """

    packed: Tensor
    bits: int
    cols: int
    scale: Tensor | None = None
    group: int = 0
    flat: bool = False
    offset: Tensor | None = None
    fixed: float = 0.0
    doubled: bool = False
    table: Tensor | None = None

    def expand(self, dtype: torch.dtype) -> Tensor:
        """Return the numbers: [rows, cols] of `dtype`."""
        from harness.kernels.triton import ops

        numbers: Tensor = ops.expand(
            self.packed, self.bits, self.cols, dtype, self.scale, self.group, self.flat, self.offset,
            self.fixed, self.doubled, self.table,
        )  # fmt: skip
        return numbers

    def expand_rows(self, out: Tensor, rows: Tensor) -> None:
        """Write the numbers to the rows `rows` (int64) of `out`."""
        from harness.kernels.triton import ops

        ops.expand_rows(
            out, rows, self.packed, self.bits, self.scale, self.group, self.flat, self.offset, self.fixed,
            self.doubled, self.table,
        )  # fmt: skip


class Float8Codes(NamedTuple):
    """How a uniform weight is expanded to float8 with all else its product reads.

    It holds no tensors: those are the weight's at the time of a call.

    Attributes:
        bits: as in `Codes`, and so are the next four; `scale` is the int8 exponents of two.
        cols: see above.
        group: see above.
        fixed: see above.
        doubled: see above.
        worth: units per step, inverted: 1, or 1/2 where units are half steps.
    """

    bits: int
    cols: int
    group: int
    fixed: float
    doubled: bool
    worth: float

    def expand(
        self,
        weight: UniformWeight,
        dtype: torch.dtype,
        bias: Tensor | None,
        up: Tensor | None,
        gains: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return units, the rows' scales, and bias and up in `dtype`, see `ops.expand_float8`."""
        from harness.kernels.triton import ops

        packed, exponent, scale, zero = held(weight, "packed", "multiplier", "scale", "zero")
        found: tuple[Tensor, Tensor, Tensor | None, Tensor | None] = ops.expand_float8(
            packed, self.bits, self.cols, exponent, self.group, scale, self.worth, zero, self.fixed,
            self.doubled, bias, up, gains, dtype,
        )  # fmt: skip
        return found


class FewTokenWeight(NamedTuple):
    """How the few-token kernel reads a uniform weight, whose tensors are those at the time of a call.

    Attributes:
        bits: as in `Codes`, and so are the next two.
        group: see above; all columns for one scale per row.
        fixed: see above.
        single: whether one token has a kernel of its own.
    """

    bits: int
    group: int
    fixed: float
    single: bool

    def multiply_one(
        self,
        x: Tensor,
        weight: UniformWeight,
        bias: Tensor | None,
        smooth: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
    ) -> Tensor:
        """Return all of a layer's output for one token, see `harness.kernels.triton.ops.single`."""
        from harness.kernels.triton import ops

        packed, scale, zero = held(weight, "packed", "scale", "zero")
        y: Tensor = ops.single(
            x, packed, scale, self.bits, self.group, zero, self.fixed, bias, smooth, down, up
        )
        return y

    def multiply(self, x: Tensor, weight: UniformWeight, bias: Tensor | None) -> Tensor:
        """Return the product of few tokens with the weight, see `harness.kernels.triton.ops.gemv`."""
        from harness.kernels.triton import ops

        packed, scale, zero = held(weight, "packed", "scale", "zero")
        y: Tensor = ops.gemv(x, packed, scale, self.bits, self.group, zero, self.fixed, bias)
        return y


def expandable(weight: PackedWeight) -> bool:
    """Whether the kernels can read a weight: all kinds of this package, not those of other libraries."""
    return isinstance(weight, RowMixedWeight) or weight.kind in _FLOAT_CODES


def float_weight(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Expand a packed weight to [rows, cols] of a float type, each value rounded once."""
    if not isinstance(weight, RowMixedWeight):
        return _float_codes(weight).expand(dtype)
    out = torch.empty(weight.rows, weight.cols, dtype=dtype, device=weight.row_part.device)
    for index, part in enumerate(weight.weights()):
        _float_codes(part).expand_rows(out, _rows_of(weight, index))
    return out


def units_weight(weight: PackedWeight, dtype: torch.dtype) -> Units | None:
    """Return how to expand a weight to units of int8 or float8_e4m3fn, exactly; None where they do not fit.

    A row then has one scale: group scales are part of the units.
    """
    if isinstance(weight, RowMixedWeight):
        parts = [_unit_codes(part, dtype) for part in weight.weights()]
        if any(part is None or part[0].scale is not None for part in parts):
            return None
        return lambda: _mixed_units(weight, [part for part in parts if part is not None], dtype)
    found = _unit_codes(weight, dtype)
    if found is None:
        return None
    codes, scale = found
    return lambda: (codes.expand(dtype), scale())


def float8_codes(weight: PackedWeight) -> Float8Codes | None:
    """Return what expands to float8 in one go; None where `units_weight` has to, or nothing can."""
    found = _unit_codes(weight, torch.float8_e4m3fn)
    if found is None or not isinstance(weight, UniformWeight) or weight.scale.numel() != weight.rows:
        return None
    codes = found[0]
    if codes.scale is None or codes.group not in FLOAT8_GROUPS:
        return None
    worth = 1 / units_per_step(weight.grid)
    return Float8Codes(codes.bits, codes.cols, codes.group, codes.fixed, codes.doubled, worth)


def few_token_weight(weight: PackedWeight) -> FewTokenWeight | None:
    """Return what the few-token kernel reads of a weight; None where it cannot."""
    if not isinstance(weight, UniformWeight) or weight.multiplier is not None or weight.group == "tensor":
        return None
    codes = CODES_PER_SLOT.get(weight.bits)
    if codes is None or weight.cols % codes or weight.packed.shape[1] % 4:
        return None
    group = weight.cols if weight.group is None else weight.group
    if group < weight.cols and (group % codes or SLOTS_AT_ONCE % (group // codes)):
        return None
    fixed = 0.0 if weight.zero is not None else fixed_offset(weight.bits, weight.grid)
    whole = fixed.is_integer() if weight.zero is None else not weight.zero.is_floating_point()
    # Lanes read 32 columns each, and of 3 bits two words of one plane.
    single = weight.cols % (64 if weight.bits == 3 else 32) == 0 and (group % 32 == 0 or group >= weight.cols)
    return FewTokenWeight(weight.bits, group, fixed, single) if whole else None


def _float_codes(weight: PackedWeight) -> Codes:
    return _FLOAT_CODES[weight.kind](weight)


def _uniform(weight: UniformWeight) -> Codes:
    scale = weight.scale
    if weight.multiplier is not None:
        scale = scale.to(torch.float32) * group_multiplier(weight.scale_format, weight.multiplier)
    return Codes(
        weight.packed,
        weight.bits,
        weight.cols,
        scale,
        weight.group if isinstance(weight.group, int) else 0,
        offset=weight.zero,
        fixed=0.0 if weight.zero is not None else fixed_offset(weight.bits, weight.grid),
    )


def _normal_float(weight: NormalFloatWeight) -> Codes:
    return Codes(
        weight.packed, weight.bits, weight.cols, weight.absmax, weight.block, flat=True, table=weight.codebook
    )


def _planes(weight: BinaryPlanesWeight) -> Codes:
    return Codes(weight.packed, weight.planes, weight.cols, table=level_table(weight.alphas))


def _nvfp4(weight: Nvfp4Weight) -> Codes:
    table = decode_e2m1(torch.arange(1 << NVFP4_BITS, device=weight.packed.device))
    scale = e4m3_values(weight.scale) * weight.tensor_scale
    return Codes(weight.packed, NVFP4_BITS, weight.cols, scale, NVFP4_GROUP, table=table)


_FLOAT_CODES = cast(
    "dict[str, Callable[[PackedWeight], Codes]]",
    {
        UniformWeight.kind: _uniform,
        NormalFloatWeight.kind: _normal_float,
        BinaryPlanesWeight.kind: _planes,
        Nvfp4Weight.kind: _nvfp4,
    },
)


def _unit_codes(weight: PackedWeight, dtype: torch.dtype) -> tuple[Codes, Callable[[], Tensor]] | None:
    """Return the codes of a weight as units, and what gives its rows' scales."""
    if not isinstance(weight, UniformWeight) or weight.grid == "affine":
        return None
    grouped = isinstance(weight.group, int) and weight.group < weight.cols
    kinds = {None: torch.int8, torch.uint8: torch.int8, torch.int8: torch.float8_e4m3fn}
    multiplier = weight.multiplier
    if grouped and multiplier is None:
        return None
    if multiplier is not None and kinds[multiplier.dtype] != dtype:
        return None
    most = LARGEST_PRODUCT if dtype == torch.int8 else LARGEST_E8M0_UNIT
    if largest_unit(weight.bits, weight.grid) > most:
        return None
    codes = Codes(
        weight.packed,
        weight.bits,
        weight.cols,
        multiplier,
        weight.group if isinstance(weight.group, int) else 0,
        offset=weight.zero,
        fixed=0.0 if weight.zero is not None else fixed_offset(weight.bits, weight.grid),
        doubled=units_per_step(weight.grid) == 2,
    )
    return codes, lambda: _row_scale(weight)


def _row_scale(weight: UniformWeight) -> Tensor:
    """What one unit of each row is worth: float [rows]."""
    scale = weight.scale.reshape(-1)
    scale = scale.expand(weight.rows) if scale.numel() == 1 else scale
    if units_per_step(weight.grid) == 2:
        return scale.to(torch.float32) / 2
    return scale.contiguous()


def _mixed_units(
    weight: RowMixedWeight, parts: list[tuple[Codes, Callable[[], Tensor]]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    out = torch.empty(weight.rows, weight.cols, dtype=dtype, device=weight.row_part.device)
    scale = torch.empty(weight.rows, dtype=torch.float32, device=out.device)
    for index, (codes, row_scale) in enumerate(parts):
        rows = _rows_of(weight, index)
        codes.expand_rows(out, rows)
        scale[rows] = row_scale().to(torch.float32)
    return out, scale


def _rows_of(weight: RowMixedWeight, index: int) -> Tensor:
    """Where the rows of a part go, int64, without asking the device how many there are."""
    first = sum(part.rows for part in weight.weights()[:index])
    order = torch.argsort(weight.row_part, stable=True)
    return order[first : first + weight.weights()[index].rows]
