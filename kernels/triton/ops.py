"""The kernels as torch custom ops: what `torch.compile` and CUDA graphs see of them.

Each has a fake implementation that knows shapes and types only. Scratch is what an op returns or allocates:
it comes from torch's allocator and is reused by the next layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.kernels.triton import launch


@torch.library.custom_op("harness::expand", mutates_args=())
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


@torch.library.custom_op("harness::expand_rows", mutates_args={"out"})
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


@torch.library.custom_op("harness::quantize_tokens", mutates_args=())
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
    codes, row_scale, row_zero = launch.quantize(
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
    return x.new_empty(x.shape, dtype=launch.code_type(grid)), row, row.new_empty(zeros)


@torch.library.custom_op("harness::quantize_projected", mutates_args=())
def quantize_projected(
    x: Tensor, bits: int, grid: str, group: int, largest_k: int, smooth: Tensor | None, down: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize tokens to groups of two-level scales and project them: codes, row_scale, projected."""
    return launch.quantize_projected(x, bits, grid, down, group=group, largest_k=largest_k, smooth=smooth)


@quantize_projected.register_fake
def _(
    x: Tensor, bits: int, grid: str, group: int, largest_k: int, smooth: Tensor | None, down: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    row = x.new_empty(x.shape[0], dtype=torch.float32)
    return (
        x.new_empty(x.shape, dtype=launch.code_type(grid)),
        row,
        x.new_empty(x.shape[0], launch.padded_rank(down)),
    )


@torch.library.custom_op("harness::project", mutates_args=())
def project(x: Tensor, down: Tensor, smooth: Tensor | None) -> Tensor:
    """Down-project tokens [tokens, cols] to [tokens, `launch.padded_rank`], in the type of `x`."""
    partial, _ = launch.project(x, down, smooth)
    return partial.sum(dim=0).to(x.dtype)


@project.register_fake
def _(x: Tensor, down: Tensor, smooth: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], launch.padded_rank(down))


@torch.library.custom_op("harness::scaled_linear", mutates_args=())
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
    """Multiply codes [tokens, cols] with expanded units [outs, cols], see `linear_kernel`."""
    col_sum = None if row_zero is None else weight.sum(dim=1, dtype=torch.int32)
    return launch.linear(
        codes, weight, row_scale, col_scale, dtype=dtype, row_zero=row_zero, col_sum=col_sum,
        projected=projected, up=up, bias=bias,
    )  # fmt: skip


@scaled_linear.register_fake
def _(
    codes: Tensor, weight: Tensor, row_scale: Tensor, col_scale: Tensor, row_zero: Tensor | None,
    projected: Tensor | None, up: Tensor | None, bias: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return codes.new_empty(codes.shape[0], weight.shape[0], dtype=dtype)


@torch.library.custom_op("harness::gemv", mutates_args=())
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
