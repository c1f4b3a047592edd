"""One integer GEMM with everything else of a quantized linear layer in its epilogue."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(program, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Order tiles in runs of `GROUP_M` rows of tiles, so that neighbours share operands in the cache."""
    per_run = GROUP_M * tiles_n
    run = program // per_run
    height = tl.minimum(tiles_m - run * GROUP_M, GROUP_M)
    return run * GROUP_M + (program % per_run) % height, (program % per_run) // height


@triton.jit
def epilogue(
    accumulator, row, col, out, row_scale, row_zero, col_scale, col_sum, projected, up, bias,
    tokens, outs, rank,
    ZERO: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scale the accumulator, add the low-rank up-projection and the bias, and write the tile.

    Integers without a branch are scaled in float64 where outputs have 32 bits or more: one rounding shows.
    """
    wide: tl.constexpr = out.dtype.element_ty.primitive_bitwidth >= 32
    exact: tl.constexpr = wide and RANK == 0 and accumulator.dtype == tl.int32
    kind: tl.constexpr = tl.float64 if exact else tl.float32
    row_in, col_in = row < tokens, col < outs
    a = tl.load(row_scale + row, mask=row_in, other=0.0)
    w = tl.load(col_scale + col, mask=col_in, other=0.0).to(kind)
    if ZERO:
        zero = tl.load(row_zero + row, mask=row_in, other=0.0).to(tl.int32)
        total = tl.load(col_sum + col, mask=col_in, other=0)
        accumulator = accumulator - zero[:, None] * total[None, :]
    y = accumulator.to(kind) * a.to(kind)[:, None] * w[None, :]
    if RANK > 0:
        direction = tl.arange(0, RANK)
        where = row.to(tl.int64)[:, None] * RANK + direction[None, :]
        left = tl.load(projected + where, mask=row_in[:, None], other=0.0)
        held = (direction < rank)[:, None] & col_in[None, :]
        right = tl.load(up + col[None, :] * rank + direction[:, None], mask=held, other=0.0)
        if PRECISION == "ieee":
            y = tl.dot(left.to(tl.float32), right.to(tl.float32), y, input_precision="ieee")
        else:
            y = tl.dot(left, right.to(left.dtype), y)
    if BIAS:
        y += tl.load(bias + col, mask=col_in, other=0.0).to(kind)[None, :]
    tl.store(
        out + row.to(tl.int64)[:, None] * outs + col[None, :],
        y.to(out.dtype.element_ty),
        mask=row_in[:, None] & col_in[None, :],
    )


@triton.jit
def linear_kernel(
    out, codes, weight, row_scale, row_zero, col_scale, col_sum, projected, up, bias,
    tokens, outs, cols, rank,
    ZERO: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """`out = (codes @ weight.T - zero * sum) * scales + projected @ up.T + bias`.

    Args:
        out: [tokens, outs], float.
        codes: int8 [tokens, cols].
        weight: int8 [outs, cols].
        row_scale: float32 [tokens].
        row_zero: float32 [tokens], an integer each, with `ZERO`.
        col_scale: float [outs].
        col_sum: int32 [outs], sum of each weight row, with `ZERO`.
        projected: [tokens, RANK], of the type of `out`, see `project_kernel`; with RANK > 0.
        up: float16 [outs, rank].
        bias: float16 [outs], with `BIAS`.
        EVEN: whether cols is a multiple of TILE_K.
    """
    m, n = tile_of(tl.program_id(0), tl.cdiv(tokens, TILE_M), tl.cdiv(outs, TILE_N), GROUP_M)
    row, col = m * TILE_M + tl.arange(0, TILE_M), n * TILE_N + tl.arange(0, TILE_N)
    k = tl.arange(0, TILE_K)
    # Rows past the end are read from the first ones and never written.
    left = codes + (row % tokens).to(tl.int64)[:, None] * cols + k[None, :]
    right = weight + (col % outs).to(tl.int64)[None, :] * cols + k[:, None]
    accumulator = tl.zeros((TILE_M, TILE_N), ACCUMULATE)
    for first in range(0, cols, TILE_K):
        if EVEN:
            a, b = tl.load(left), tl.load(right)
        else:
            rest = cols - first
            a = tl.load(left, mask=(k < rest)[None, :], other=0.0)
            b = tl.load(right, mask=(k < rest)[:, None], other=0.0)
        accumulator = tl.dot(a, b, accumulator, out_dtype=ACCUMULATE)
        left += TILE_K
        right += TILE_K
    epilogue(
        accumulator, row, col, out, row_scale, row_zero, col_scale, col_sum, projected, up, bias,
        tokens, outs, rank, ZERO, RANK, BIAS, PRECISION,
    )  # fmt: skip


@triton.jit
def linear_tma_kernel(
    out, codes, weight, row_scale, row_zero, col_scale, col_sum, projected, up, bias,
    tokens, outs, cols, rank,
    ZERO: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """As `linear_kernel`; `codes` and `weight` are tensor descriptors with blocks [TILE, TILE_K]."""
    m, n = tile_of(tl.program_id(0), tl.cdiv(tokens, TILE_M), tl.cdiv(outs, TILE_N), GROUP_M)
    row, col = m * TILE_M + tl.arange(0, TILE_M), n * TILE_N + tl.arange(0, TILE_N)
    accumulator = tl.zeros((TILE_M, TILE_N), ACCUMULATE)
    for first in range(0, cols, TILE_K):
        a = codes.load([m * TILE_M, first])
        b = weight.load([n * TILE_N, first])
        accumulator = tl.dot(a, b.T, accumulator, out_dtype=ACCUMULATE)
    epilogue(
        accumulator, row, col, out, row_scale, row_zero, col_scale, col_sum, projected, up, bias,
        tokens, outs, rank, ZERO, RANK, BIAS, PRECISION,
    )  # fmt: skip
