"""The kernels as torch custom ops: what `torch.compile`, fake tensors and dispatch modes see of them.

Each has a fake implementation that knows shapes and types only. Scratch is what an op returns or allocates:
it comes from torch's allocator and is reused by the next layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.kernels.triton import few, inputs, launch
from harness.kernels.triton.register import custom_op


@custom_op()
def expand(
    packed: Tensor,
    bits: int,
    cols: int,
    dtype: torch.dtype,
    scale: Tensor | None,
    group: int,
    flat: bool,
    offset: Tensor | None,
    fixed_offset: float,
    doubled: bool,
    table: Tensor | None,
) -> Tensor:
    """Expand packed codes to [rows, cols] of `dtype`, see `expand_kernel`; `group` 0 is one scale per row."""
    out = torch.empty(packed.shape[0], cols, dtype=dtype, device=packed.device)
    launch.expand(
        out, packed, bits, cols, scale=scale, group=group, flat=flat, offset=offset,
        fixed_offset=fixed_offset, doubled=doubled, table=table,
    )  # fmt: skip
    return out


@expand.register_fake
def _(
    packed: Tensor, bits: int, cols: int, dtype: torch.dtype, scale: Tensor | None, group: int, flat: bool,
    offset: Tensor | None, fixed_offset: float, doubled: bool, table: Tensor | None,
) -> Tensor:  # fmt: skip
    return packed.new_empty(packed.shape[0], cols, dtype=dtype)


@custom_op(mutated=("out",))
def expand_rows(
    out: Tensor,
    rows_of: Tensor,
    packed: Tensor,
    bits: int,
    scale: Tensor | None,
    group: int,
    flat: bool,
    offset: Tensor | None,
    fixed_offset: float,
    doubled: bool,
    table: Tensor | None,
) -> None:
    """As `expand`, row i going to row `rows_of[i]` of `out` [all rows, cols]."""
    launch.expand(
        out, packed, bits, out.shape[1], scale=scale, group=group, flat=flat, offset=offset,
        fixed_offset=fixed_offset, doubled=doubled, table=table, rows_of=rows_of,
    )  # fmt: skip


@expand_rows.register_fake
def _(
    out: Tensor, rows_of: Tensor, packed: Tensor, bits: int, scale: Tensor | None, group: int, flat: bool,
    offset: Tensor | None, fixed_offset: float, doubled: bool, table: Tensor | None,
) -> None:  # fmt: skip
    return None


@custom_op()
def quantize_tokens(
    x: Tensor,
    bits: int,
    grid: str,
    group: int,
    largest_k: int,
    smooth: Tensor | None,
    lo: Tensor | None,
    hi: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize tokens [tokens, cols], see `quantize_kernel`: codes, row_scale, row_zero (else empty)."""
    given = None if lo is None or hi is None else (lo, hi)
    codes, row_scale, row_zero = inputs.quantize(
        x, bits, grid, group=group, largest_k=largest_k, smooth=smooth, given=given
    )
    return codes, row_scale, row_scale.new_empty(0) if row_zero is None else row_zero


@quantize_tokens.register_fake
def _(
    x: Tensor, bits: int, grid: str, group: int, largest_k: int, smooth: Tensor | None, lo: Tensor | None,
    hi: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    row = x.new_empty(x.shape[0], dtype=torch.float32)
    zeros = x.shape[0] if grid == "asymmetric" and bits == 8 else 0
    return x.new_empty(x.shape, dtype=inputs.code_type(grid)), row, row.new_empty(zeros)


@custom_op()
def quantize_projected(
    x: Tensor, bits: int, grid: str, group: int, largest_k: int, smooth: Tensor | None, down: Tensor,
    append: bool, ahead: Tensor | None, gelu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Quantize tokens to groups of two-level scales and project them, see `inputs.quantize_projected`."""
    return inputs.quantize_projected(
        x, bits, grid, down, group=group, largest_k=largest_k, smooth=smooth, append=append, ahead=ahead,
        gelu=gelu,
    )  # fmt: skip


@quantize_projected.register_fake
def _(
    x: Tensor, bits: int, grid: str, group: int, largest_k: int, smooth: Tensor | None, down: Tensor,
    append: bool, ahead: Tensor | None, gelu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    tokens, (rank, cols) = x.shape[0], down.shape
    rank = inputs.padded_rank(int(rank))
    row = x.new_empty(tokens, 1, dtype=torch.float32)
    if append:
        gains = x.new_empty(rank, dtype=torch.float32)
        return x.new_empty(tokens, cols + 4 * rank, dtype=inputs.code_type(grid)), row, gains
    return x.new_empty(tokens, cols, dtype=inputs.code_type(grid)), row, x.new_empty(tokens, rank)


def _expand_float8(
    packed: Tensor, bits: int, cols: int, exponent: Tensor, group: int, row_scale: Tensor, worth: float,
    offset: Tensor | None, fixed_offset: float, doubled: bool, bias: Tensor | None, up: Tensor | None,
    gains: Tensor | None, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    return launch.expand_float8(
        packed, bits, cols, exponent, group, row_scale, worth=worth, offset=offset, fixed_offset=fixed_offset,
        doubled=doubled, bias=bias, up=up, gains=gains, dtype=dtype,
    )  # fmt: skip


@custom_op(_expand_float8)
def expand_float8(
    packed: Tensor,
    bits: int,
    cols: int,
    exponent: Tensor,
    group: int,
    row_scale: Tensor,
    worth: float,
    offset: Tensor | None,
    fixed_offset: float,
    doubled: bool,
    bias: Tensor | None,
    up: Tensor | None,
    gains: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expand packed codes to float8 units, see `units_kernel`.

    Returns:
        units, col_scale [1, rows], and `bias` and `up` in `dtype` (None or empty where there are none; with
        `gains` `up` is part of the units).
    """
    units, col_scale, bias_out, up_out = _expand_float8(
        packed, bits, cols, exponent, group, row_scale, worth, offset, fixed_offset, doubled, bias, up, gains,
        dtype,
    )  # fmt: skip
    none = col_scale.new_empty(0, dtype=dtype)
    return (
        units,
        col_scale,
        none if bias_out is None else bias_out,
        none.clone() if up_out is None else up_out,
    )


@expand_float8.register_fake
def _(
    packed: Tensor, bits: int, cols: int, exponent: Tensor, group: int, row_scale: Tensor, worth: float,
    offset: Tensor | None, fixed_offset: float, doubled: bool, bias: Tensor | None, up: Tensor | None,
    gains: Tensor | None, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = packed.shape[0]
    rank = 0 if up is None else inputs.padded_rank(int(up.shape[1]))
    return (
        packed.new_empty(rows, cols if gains is None else cols + 4 * rank, dtype=torch.float8_e4m3fn),
        packed.new_empty(1, rows, dtype=torch.float32),
        packed.new_empty(0 if bias is None else rows, dtype=dtype),
        packed.new_empty((rows, rank) if rank and gains is None else 0, dtype=dtype),
    )


@custom_op()
def project(x: Tensor, down: Tensor, smooth: Tensor | None) -> Tensor:
    """Down-project tokens [tokens, cols] to [tokens, `inputs.padded_rank`], in the type of `x`."""
    return inputs.project(x, down, smooth).sum(dim=0).to(x.dtype)


@project.register_fake
def _(x: Tensor, down: Tensor, smooth: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], inputs.padded_rank(int(down.shape[0])))


def _scaled_linear(
    codes: Tensor, weight: Tensor, row_scale: Tensor, col_scale: Tensor, row_zero: Tensor | None,
    projected: Tensor | None, up: Tensor | None, bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    sizes = [weight.shape[0]]
    return _scaled_pieces(codes, weight, row_scale, col_scale, row_zero, projected, up, bias, dtype, sizes)[0]


def _scaled_pieces(
    codes: Tensor, weight: Tensor, row_scale: Tensor, col_scale: Tensor, row_zero: Tensor | None,
    projected: Tensor | None, up: Tensor | None, bias: Tensor | None, dtype: torch.dtype, sizes: list[int],
) -> list[Tensor]:  # fmt: skip
    if row_zero is None and all(launch.has_vendor_product(codes, size, dtype) for size in sizes):
        return launch.vendor_linear(
            codes, weight, row_scale, col_scale, dtype=dtype, projected=projected, up=up, bias=bias,
            sizes=sizes,
        )  # fmt: skip
    whole = ((weight, 0), (col_scale, -1), (up, 0), (bias, 0))
    made = []
    for units, worth, factor, shift in zip(
        *(launch.cut(each, sizes, dim) for each, dim in whole), strict=True
    ):
        col_sum = None if row_zero is None else units.sum(dim=1, dtype=torch.int32)
        y = launch.linear(
            codes, units, row_scale, worth, dtype=dtype, row_zero=row_zero, col_sum=col_sum,
            projected=projected, up=factor, bias=shift,
        )  # fmt: skip
        made.append(y)
    return made


@custom_op(_scaled_linear)
def scaled_linear(
    codes: Tensor,
    weight: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    row_zero: Tensor | None,
    projected: Tensor | None,
    up: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply codes [tokens, cols] with expanded units [outs, cols], see `linear_kernel`.

    Float8 codes go to the vendor's library where it takes them (`launch.has_vendor_product`).
    """
    return _scaled_linear(codes, weight, row_scale, col_scale, row_zero, projected, up, bias, dtype)


@scaled_linear.register_fake
def _(
    codes: Tensor, weight: Tensor, row_scale: Tensor, col_scale: Tensor, row_zero: Tensor | None,
    projected: Tensor | None, up: Tensor | None, bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return codes.new_empty(codes.shape[0], weight.shape[0], dtype=dtype)


@custom_op(_scaled_pieces)
def scaled_pieces(
    codes: Tensor,
    weight: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    row_zero: Tensor | None,
    projected: Tensor | None,
    up: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
    sizes: list[int],
) -> list[Tensor]:
    """As `scaled_linear`, the outs in tensors of their own: [tokens, size] for each of the sizes."""
    return _scaled_pieces(codes, weight, row_scale, col_scale, row_zero, projected, up, bias, dtype, sizes)


@scaled_pieces.register_fake
def _(
    codes: Tensor, weight: Tensor, row_scale: Tensor, col_scale: Tensor, row_zero: Tensor | None,
    projected: Tensor | None, up: Tensor | None, bias: Tensor | None, dtype: torch.dtype, sizes: list[int],
) -> list[Tensor]:  # fmt: skip
    return [codes.new_empty(codes.shape[0], size, dtype=dtype) for size in sizes]


@custom_op()
def gemv(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bits: int,
    group: int,
    offset: Tensor | None,
    fixed_offset: float,
    bias: Tensor | None,
) -> Tensor:
    """Multiply few tokens [tokens, cols] with packed rows, see `gemv_kernel`: [tokens, outs]."""
    return launch.gemv(
        x, packed, scale, bits, group=group, offset=offset, fixed_offset=fixed_offset, bias=bias
    )


@gemv.register_fake
def _(
    x: Tensor, packed: Tensor, scale: Tensor, bits: int, group: int, offset: Tensor | None,
    fixed_offset: float, bias: Tensor | None,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], packed.shape[0])


@custom_op()
def single(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bits: int,
    group: int,
    zero: Tensor | None,
    fixed_offset: float,
    bias: Tensor | None,
    smooth: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
) -> Tensor:
    """Multiply one token [1, cols] with packed rows and add its branch, see `single_kernel`: [1, outs]."""
    return few.single(
        x, packed, scale, bits, group=group, zero=zero, fixed_offset=fixed_offset, bias=bias, smooth=smooth,
        down=down, up=up,
    )  # fmt: skip


@single.register_fake
def _(
    x: Tensor, packed: Tensor, scale: Tensor, bits: int, group: int, zero: Tensor | None, fixed_offset: float,
    bias: Tensor | None, smooth: Tensor | None, down: Tensor | None, up: Tensor | None,
) -> Tensor:  # fmt: skip
    return x.new_empty(1, packed.shape[0])
