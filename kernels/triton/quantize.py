"""Activation quantization, a program per few tokens with all their channels in registers: one pass over x."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_even(x):
    """Round to nearest, ties to even: exact for |x| < 2^22 (what is added has no fraction bits)."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def power_of_two_above(x):
    """Return the least power of two that is not below a positive normal x."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def quantize_kernel(
    codes, row_scale, row_zero, x, smooth, lo_given, hi_given,
    tokens, cols, x_stride, out_stride, tokens_per_range,
    BITS: tl.constexpr, GRID: tl.constexpr, GIVEN: tl.constexpr, GROUP: tl.constexpr, LARGEST_K: tl.constexpr,
    SMOOTH: tl.constexpr, TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Quantize tokens.

    Args:
        codes: int8 or float8_e4m3fn [tokens, out_stride], of which `cols` are written. `symmetric`: code;
            `asymmetric`: code - zero up to 7 bits, code - 128 at 8; `integer`: k * code with the group's
            multiplier k; `e8m0`: 2^e * code with the group's exponent e.
        row_scale: float32 [tokens], value of one unit of `codes`.
        row_zero: float32 [tokens], zero - 128; written for `asymmetric` at 8 bits alone.
        x: [tokens, cols], rows `x_stride` apart.
        smooth: float16 [cols], with `SMOOTH`.
        lo_given: float32, stored ranges; read with `GIVEN`, for token t at `t // tokens_per_range`.
        hi_given: alike.
        LARGEST_K: the largest multiplier of a group: an integer, or for `e8m0` a power of two.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    col = tl.arange(0, COLS)
    inside = here[:, None] & (col < cols)[None, :]
    values = tl.load(x + token.to(tl.int64)[:, None] * x_stride + col[None, :], mask=inside, other=0.0)
    values = values.to(tl.float32)
    if SMOOTH:
        values *= (1.0 / tl.load(smooth + col, mask=col < cols, other=1.0).to(tl.float32))[None, :]
    levels: tl.constexpr = (1 << BITS) - 1
    largest: tl.constexpr = (1 << (BITS - 1)) - 1
    # Neither min nor max keeps a NaN: x - x is one for NaN and infinity, else nothing.
    poison = tl.sum(values - values, axis=1)
    zero = tl.zeros((TOKENS,), tl.float32)
    if GRID == "asymmetric":
        if GIVEN:
            lowest = tl.load(lo_given + token // tokens_per_range, mask=here, other=0.0)
            highest = tl.load(hi_given + token // tokens_per_range, mask=here, other=0.0)
        else:
            lowest, highest = tl.min(values, axis=1), tl.max(values, axis=1)
        lowest, highest = tl.minimum(lowest, 0.0), tl.maximum(highest, 0.0)
        scale = tl.math.div_rn(highest, levels * 1.0) - tl.math.div_rn(lowest, levels * 1.0)
        scale = tl.where(scale == 0.0, 1.0, scale)
        zero = tl.minimum(tl.maximum(round_even(tl.math.div_rn(-lowest, scale)), 0.0), levels * 1.0)
        if BITS == 8:
            tl.store(row_zero + token, zero - 128.0, mask=here)
        code = round_even(values * tl.math.div_rn(1.0, scale)[:, None] + zero[:, None])
        code = tl.minimum(tl.maximum(code, 0.0), levels * 1.0) - (128.0 if BITS == 8 else zero[:, None])
    elif GRID == "symmetric":
        if GIVEN:
            lowest = tl.load(lo_given + token // tokens_per_range, mask=here, other=0.0)
            highest = tl.load(hi_given + token // tokens_per_range, mask=here, other=0.0)
            absmax = tl.maximum(tl.abs(lowest), tl.abs(highest))
        else:
            absmax = tl.max(tl.abs(values), axis=1)
        scale = tl.math.div_rn(absmax, largest * 1.0)
        scale = tl.where(scale == 0.0, 1.0, scale)
        code = round_even(values * tl.math.div_rn(1.0, scale)[:, None])
        code = tl.minimum(tl.maximum(code, -largest * 1.0), largest * 1.0)
    else:
        grouped = tl.reshape(values, (TOKENS, COLS // GROUP, GROUP))
        peaks = tl.max(tl.abs(grouped), axis=2)
        scale = tl.math.div_rn(tl.max(peaks, axis=1), largest * LARGEST_K * 1.0)
        scale = tl.where(scale == 0.0, 1.0, scale)
        ratio = tl.math.div_rn(peaks, tl.broadcast_to((scale * largest)[:, None], peaks.shape))
        if GRID == "integer":
            k = tl.minimum(tl.maximum(tl.ceil(ratio), 1.0), LARGEST_K * 1.0)
        else:
            # Below 2^-9 a code of one would be no number of the 8-bit float.
            k = tl.minimum(power_of_two_above(tl.maximum(ratio, 0.001953125)), LARGEST_K * 1.0)
        step = tl.math.div_rn(1.0, tl.broadcast_to(scale[:, None], k.shape) * k)
        grouped = round_even(grouped * step[:, :, None])
        grouped = tl.minimum(tl.maximum(grouped, -largest * 1.0), largest * 1.0) * k[:, :, None]
        code = tl.reshape(grouped, (TOKENS, COLS))
    tl.store(row_scale + token, scale + poison, mask=here)
    target = codes + token.to(tl.int64)[:, None] * out_stride + col[None, :]
    tl.store(target, code.to(codes.dtype.element_ty), mask=inside)


@triton.jit
def project_kernel(
    partial, x, smooth, down,
    tokens, cols, x_stride, span,
    SMOOTH: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr,
    TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Low-rank down-projection `x / smooth @ down.T`, in parts of the channels.

    Args:
        partial: float32 [parts, tokens, RANK], the second axis of the grid being the part: summed by whoever
            reads it, in order, so that the result is the same every time.
        x: [tokens, cols], rows `x_stride` apart.
        smooth: float16 [cols], with `SMOOTH`; it divides the factor here, which has fewer elements than x.
        down: float16 [RANK, cols].
        span: channels per part, a multiple of COLS.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    direction = tl.arange(0, RANK)
    start = x + token.to(tl.int64)[:, None] * x_stride
    product = tl.zeros((TOKENS, RANK), tl.float32)
    first = tl.program_id(1) * span
    for offset in range(first, tl.minimum(first + span, cols), COLS):
        col = offset + tl.arange(0, COLS)
        values = tl.load(start + col[None, :], mask=here[:, None] & (col < cols)[None, :], other=0.0)
        factor = tl.load(down + direction[None, :] * cols + col[:, None], mask=(col < cols)[:, None], other=0.0)
        factor = factor.to(tl.float32)
        if SMOOTH:
            factor *= (1.0 / tl.load(smooth + col, mask=col < cols, other=1.0).to(tl.float32))[:, None]
        if PRECISION == "ieee":
            product = tl.dot(values.to(tl.float32), factor, product, input_precision="ieee")
        else:
            product = tl.dot(values, factor.to(values.dtype), product)
    tl.store(
        partial + (tl.program_id(1).to(tl.int64) * tokens + token)[:, None] * RANK + direction[None, :],
        product,
        mask=here[:, None],
    )
