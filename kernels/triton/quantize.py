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
def grouped_codes(
    values, scale, top,
    GRID: tl.constexpr, largest: tl.constexpr, GROUP: tl.constexpr, LARGEST_K: tl.constexpr,
    KIND: tl.constexpr, TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Round to groups with scales of two levels: products of the type `KIND`.

    A group's step is wide enough for its largest value, so nothing is clamped.

    Args:
        values: float32 [TOKENS, COLS].
        scale: float32 [TOKENS], the tokens' scales.
        top: float32 [TOKENS], the tokens' magnitudes.
    """
    grouped = tl.reshape(values, (TOKENS, COLS // GROUP, GROUP))
    absmax = tl.max(tl.abs(grouped), axis=2)
    if GRID == "integer":
        reach = tl.broadcast_to((scale * largest)[:, None], absmax.shape)
        k = tl.minimum(tl.maximum(tl.ceil(tl.math.div_rn(absmax, reach)), 1.0), LARGEST_K * 1.0)
    else:
        whole = tl.broadcast_to(tl.where(top == 0.0, 1.0, top)[:, None], absmax.shape)
        # Below 2^-9 a code of one would be no number of the 8-bit float.
        k = tl.minimum(power_of_two_above(tl.maximum(tl.math.div_rn(absmax, whole), 0.001953125)), 1.0)
    step = tl.math.div_rn(1.0, tl.broadcast_to(scale[:, None], k.shape) * k)
    units = round_even(grouped * step[:, :, None]) * k[:, :, None]
    if KIND == tl.int8:
        # Adding 1.5 * 2^23 leaves an integer in the low bits of the float: cheaper than a conversion.
        code = (units + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        code = units.to(KIND)
    return tl.reshape(code, (TOKENS, COLS))


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
        LARGEST_K: the largest multiplier of a group; 1 for `e8m0`.
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
        top = tl.max(tl.abs(values), axis=1)
        scale = tl.math.div_rn(top, largest * LARGEST_K * 1.0)
        scale = tl.where(scale == 0.0, 1.0, scale)
        code = grouped_codes(
            values, scale, top, GRID, largest, GROUP, LARGEST_K, codes.dtype.element_ty, TOKENS, COLS
        )
    tl.store(row_scale + token, scale + poison, mask=here)
    target = codes + token.to(tl.int64)[:, None] * out_stride + col[None, :]
    tl.store(target, code.to(codes.dtype.element_ty), mask=inside)


@triton.jit
def project_kernel(
    partial, peaks, x, smooth, down,
    tokens, cols, x_stride, span, rank,
    SMOOTH: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr, PEAKS: tl.constexpr,
    TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Low-rank down-projection `x / smooth @ down.T`, and the tokens' magnitudes, in parts of the channels.

    Args:
        partial: float32 [parts, tokens, RANK], the second axis of the grid being the part: summed by whoever
            reads it, in order, so that the result is the same every time. Zero from `rank` on: a tensor core
            multiplies no fewer than 16, and blocks have powers of two.
        peaks: float32 [parts, tokens], largest |x / smooth|, NaN or infinite where x is; with `PEAKS`.
        x: [tokens, cols], rows `x_stride` apart.
        smooth: float16 [cols], with `SMOOTH`; it divides the factor here, which has fewer elements than x.
        down: float16 [rank, cols].
        span: channels per part, a multiple of COLS.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    direction = tl.arange(0, RANK)
    start = x + token.to(tl.int64)[:, None] * x_stride
    product = tl.zeros((TOKENS, RANK), tl.float32)
    peak = tl.zeros((TOKENS,), tl.float32)
    poison = tl.zeros((TOKENS,), tl.float32)
    first = tl.program_id(1) * span
    for offset in range(first, tl.minimum(first + span, cols), COLS):
        col = offset + tl.arange(0, COLS)
        values = tl.load(start + col[None, :], mask=here[:, None] & (col < cols)[None, :], other=0.0)
        held = (direction < rank)[None, :] & (col < cols)[:, None]
        factor = tl.load(down + direction[None, :] * cols + col[:, None], mask=held, other=0.0)
        factor = factor.to(tl.float32)
        inverse = tl.full((COLS,), 1.0, tl.float32)
        if SMOOTH:
            inverse = 1.0 / tl.load(smooth + col, mask=col < cols, other=1.0).to(tl.float32)
            factor *= inverse[:, None]
        if PEAKS:
            smoothed = values.to(tl.float32) * inverse[None, :]
            peak = tl.maximum(peak, tl.max(tl.abs(smoothed), axis=1))
        if PRECISION == "ieee":
            product = tl.dot(values.to(tl.float32), factor, product, input_precision="ieee")
        else:
            product = tl.dot(values, factor.to(values.dtype), product)
    where = (tl.program_id(1).to(tl.int64) * tokens + token)[:, None] * RANK + direction[None, :]
    tl.store(partial + where, product, mask=here[:, None])
    if PEAKS:
        # A maximum loses a NaN; a sum of products does not.
        poison = tl.sum(product - product, axis=1)
        tl.store(peaks + tl.program_id(1).to(tl.int64) * tokens + token, peak + poison, mask=here)


@triton.jit
def scaled_kernel(
    codes, row_scale, projected, x, smooth, partial, peaks,
    tokens, cols, x_stride, out_stride,
    BITS: tl.constexpr, GRID: tl.constexpr, GROUP: tl.constexpr, LARGEST_K: tl.constexpr,
    SMOOTH: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr, TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Quantize to groups with scales of two levels, the tokens' magnitudes being known (`project_kernel`).

    Args:
        codes: int8 (`integer`) or float8_e4m3fn (`e8m0`) [tokens, out_stride], of which `cols` are written.
        row_scale: float32 [tokens].
        projected: [tokens, RANK], the sum of `partial`.
        x: [tokens, cols], rows `x_stride` apart.
        smooth: float16 [cols], with `SMOOTH`.
        partial: float32 [PARTS, tokens, RANK].
        peaks: float32 [PARTS, tokens].
    """
    # Backwards: what was read last is still in the cache.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    token = block * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = here[:, None] & (col < cols)[None, :]
    values = tl.load(x + token.to(tl.int64)[:, None] * x_stride + col[None, :], mask=inside, other=0.0)
    values = values.to(tl.float32)
    if SMOOTH:
        values *= (1.0 / tl.load(smooth + col, mask=col < cols, other=1.0).to(tl.float32))[None, :]
    top = tl.zeros((TOKENS,), tl.float32)
    poison = tl.zeros((TOKENS,), tl.float32)
    for part in tl.static_range(PARTS):
        peak = tl.load(peaks + part * tokens.to(tl.int64) + token, mask=here, other=0.0)
        top = tl.maximum(top, peak)
        poison += peak - peak
    largest: tl.constexpr = (1 << (BITS - 1)) - 1
    scale = tl.math.div_rn(top, largest * LARGEST_K * 1.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    tl.store(
        codes + token.to(tl.int64)[:, None] * out_stride + col[None, :],
        grouped_codes(
            values, scale, top, GRID, largest, GROUP, LARGEST_K, codes.dtype.element_ty, TOKENS, COLS
        ),
        mask=inside,
    )
    if tl.program_id(1) == 0:
        tl.store(row_scale + token, scale + poison, mask=here)
        direction = tl.arange(0, RANK)
        where = token.to(tl.int64)[:, None] * RANK + direction[None, :]
        total = tl.zeros((TOKENS, RANK), tl.float32)
        for part in tl.static_range(PARTS):
            total += tl.load(
                partial + part * tokens.to(tl.int64) * RANK + where, mask=here[:, None], other=0.0
            )
        tl.store(projected + where, total.to(projected.dtype.element_ty), mask=here[:, None])
