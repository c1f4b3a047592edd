"""Activation quantization, a program per few tokens with all their channels in registers: one pass over x."""

from __future__ import annotations

import triton
import triton.language as tl

from harness.kernels.triton.project import after_others, places_in


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
def quotient(x, by, inverse):
    """Return `x / by` as a division rounds it, `inverse` being `1 / by` rounded (Markstein 1990).

    A quotient half-way between two codes has to come out exactly there, which a product with the inverse
    does not.
    """
    guess = x * inverse
    return tl.fma(tl.fma(guess, -by, x), inverse, guess)


@triton.jit
def halves(x):
    """Split |x| <= 448 into two numbers of float8 e4m3, float32 both: together they keep eight bits.

    Rounding is arithmetic (`round_even` at the unit in the last place), so that it is the same everywhere.
    """
    high = round_float8(x)
    return high, round_float8(x - high)


@triton.jit
def round_float8(x):
    """Round |x| <= 448 to the nearest float8 e4m3, as float32."""
    exponent = x.to(tl.int32, bitcast=True) & 0x7F800000
    # Units in the last place: three bits below the leading one, and no smaller than 2^-9.
    unit = tl.maximum(exponent - (3 << 23), (127 - 9) << 23).to(tl.float32, bitcast=True)
    return (x + 12582912.0 * unit) - 12582912.0 * unit


@triton.jit
def gain_of(norm):
    """Return the power of two that makes a direction of the branch fit float8 beside the codes.

    Args:
        norm: float32, sum of the magnitudes of the direction's row of the down-projection. A token's values
            are at most 7 of its scales, so 63 / norm leaves 441, and 448 with rounding.
    """
    most = tl.math.div_rn(63.0, tl.where(norm == 0.0, 1.0, norm))
    return (most.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def grouped_codes(
    values, scale, top,
    GRID: tl.constexpr, largest: tl.constexpr, GROUP: tl.constexpr, LARGEST_K: tl.constexpr,
    KIND: tl.constexpr, EXACT: tl.constexpr, TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Round to groups with scales of two levels: products of the type `KIND`.

    A group's step is wide enough for its largest value, so nothing is clamped.

    Args:
        values: float32 [TOKENS, COLS].
        scale: float32 [TOKENS], the tokens' scales.
        top: float32 [TOKENS], the tokens' magnitudes.
        EXACT: whether to divide as the definition does. Values times a rounded inverse are equal but for the
            last bit, which decides where they lie half-way between two codes: often for 16-bit inputs as
            they are, and hardly ever for smoothed ones.
    """
    grouped = tl.reshape(values, (TOKENS, COLS // GROUP, GROUP))
    absmax = tl.max(tl.abs(grouped), axis=2)
    if GRID == "integer":
        reach = tl.broadcast_to((scale * largest)[:, None], absmax.shape)
        k = tl.minimum(tl.maximum(tl.ceil(tl.math.div_rn(absmax, reach)), 1.0), LARGEST_K * 1.0)
        step = tl.broadcast_to(scale[:, None], k.shape) * k
        inverse = tl.math.div_rn(1.0, step)[:, :, None]
        ratio = quotient(grouped, step[:, :, None], inverse) if EXACT else grouped * inverse
        units = round_even(ratio) * k[:, :, None]
    else:
        # The least e with 2^e >= absmax / top: the difference of their exponents, and one more where the
        # fraction is larger. Below 2^-9 a code of one would be no number of the 8-bit float.
        reach = absmax.to(tl.int32, bitcast=True) - top.to(tl.int32, bitcast=True)[:, None]
        exponent = tl.maximum(tl.minimum((reach + 0x7FFFFF) >> 23, 0), -9)
        # Adding 1.5 * 2^(23 + e) rounds to multiples of 2^e: the group's scale costs nothing more.
        magic = (((exponent + 150) << 23) | 0x400000).to(tl.float32, bitcast=True)[:, :, None]
        inverse = tl.math.div_rn(1.0, scale)[:, None, None]
        ratio = quotient(grouped, scale[:, None, None], inverse) if EXACT else grouped * inverse
        units = (ratio + magic) - magic
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
        ratio = quotient(values, scale[:, None], tl.math.div_rn(1.0, scale)[:, None])
        code = round_even(ratio + zero[:, None])
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
        code = round_even(quotient(values, scale[:, None], tl.math.div_rn(1.0, scale)[:, None]))
        code = tl.minimum(tl.maximum(code, -largest * 1.0), largest * 1.0)
    else:
        top = tl.max(tl.abs(values), axis=1)
        scale = tl.math.div_rn(top, largest * LARGEST_K * 1.0)
        scale = tl.where(scale == 0.0, 1.0, scale)
        code = grouped_codes(
            values, scale, top, GRID, largest, GROUP, LARGEST_K, codes.dtype.element_ty, not SMOOTH,
            TOKENS, COLS,
        )  # fmt: skip
    tl.store(row_scale + token, scale + poison, mask=here)
    target = codes + token.to(tl.int64)[:, None] * out_stride + col[None, :]
    tl.store(target, code.to(codes.dtype.element_ty), mask=inside)


@triton.jit
def magnitudes(peaks, tokens, token, PARTS: tl.constexpr, PARTS_HELD: tl.constexpr):
    """Load the magnitudes of tokens in parts of the channels: float32 [TOKENS, PARTS_HELD]."""
    part = tl.arange(0, PARTS_HELD)
    held = (token < tokens)[:, None] & (part < PARTS)[None, :]
    return tl.load(peaks + part[None, :] * tl.cast(tokens, tl.int64) + token[:, None], mask=held, other=0.0)


@triton.jit
def scale_of(found, BITS: tl.constexpr, LARGEST_K: tl.constexpr):
    """Return magnitude and scale of tokens, float32 both, from their `magnitudes`."""
    top = tl.max(found, axis=1)
    scale = tl.math.div_rn(top, ((1 << (BITS - 1)) - 1) * LARGEST_K * 1.0)
    return top, tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def scaled_kernel(
    codes, row_scale, projected, gains, scratch, x,
    tokens, cols, x_stride, out_stride,
    BITS: tl.constexpr, GRID: tl.constexpr, GROUP: tl.constexpr, LARGEST_K: tl.constexpr,
    SMOOTH: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr, PARTS_HELD: tl.constexpr,
    APPEND: tl.constexpr, OVERLAP: tl.constexpr, TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Quantize to groups with scales of two levels, the tokens' magnitudes being known (`project_kernel`).

    Args:
        codes: int8 (`integer`) or float8_e4m3fn (`e8m0`) [tokens, out_stride], of which `cols` are written,
            and 4 * RANK more with `APPEND`: the projection in units of `row_scale`, times the directions'
            gains, as high and low halves [high, low, high, low] (`units_kernel` writes what they meet).
        row_scale: float32 [tokens].
        projected: [tokens, RANK], the sum of `partial`; without `APPEND`.
        gains: float32 [RANK], see `gain_of`; with `APPEND`.
        x: [tokens, cols], rows `x_stride` apart.
        scratch: float32, see `places_in`: norms with `APPEND`; inverses, what x is multiplied by, with
            `SMOOTH`.
        PARTS_HELD: a power of two, at least PARTS.
        OVERLAP: whether kernels may overlap: with the projection, which x is older than, and with the next.

    The grid is one axis: of each block of tokens one program for their projection, then those for codes.
    """
    partial, norms, inverses, peaks = places_in(scratch, tokens, cols, PARTS, RANK)
    # Backwards, and channels before tokens: what was read last is still in the cache.
    along = (cols + COLS - 1) // COLS + 1
    block = tl.num_programs(0) // along - 1 - tl.program_id(0) // along
    index = tl.program_id(0) % along
    token = block * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    if index > 0:
        col = (index - 1) * COLS + tl.arange(0, COLS)
        inside = here[:, None] & (col < cols)[None, :]
        values = tl.load(x + token.to(tl.int64)[:, None] * x_stride + col[None, :], mask=inside, other=0.0)
        after_others(OVERLAP)
        found = magnitudes(peaks, tokens, token, PARTS, PARTS_HELD)
        values = values.to(tl.float32)
        if SMOOTH:
            values *= tl.load(inverses + col, mask=col < cols, other=1.0)[None, :]
        top, scale = scale_of(found, BITS, LARGEST_K)
        largest: tl.constexpr = (1 << (BITS - 1)) - 1
        code = grouped_codes(
            values, scale, top, GRID, largest, GROUP, LARGEST_K, codes.dtype.element_ty, not SMOOTH,
            TOKENS, COLS,
        )  # fmt: skip
        tl.store(codes + token.to(tl.int64)[:, None] * out_stride + col[None, :], code, mask=inside)
    else:
        after_others(OVERLAP)
        found = magnitudes(peaks, tokens, token, PARTS, PARTS_HELD)
        direction = tl.arange(0, RANK)
        where = token.to(tl.int64)[:, None] * RANK + direction[None, :]
        total = tl.zeros((TOKENS, RANK), tl.float32)
        for part in tl.static_range(PARTS):
            each = partial + part * tl.cast(tokens, tl.int64) * RANK + where
            total += tl.load(each, mask=here[:, None], other=0.0)
        top, scale = scale_of(found, BITS, LARGEST_K)
        # A maximum loses a NaN; a sum of products does not.
        poison = (top - top) + tl.sum(total - total, axis=1)
        tl.store(row_scale + token, scale + poison, mask=here)
        if APPEND:
            norm = tl.zeros((RANK,), tl.float32)
            for part in tl.static_range(PARTS):
                norm += tl.load(norms + part * RANK + direction)
            gain = gain_of(norm)
            if block == 0:
                tl.store(gains + direction, gain)
            high, low = halves(
                tl.math.div_rn(total, tl.broadcast_to(scale[:, None], total.shape)) * gain[None, :]
            )
            target = codes + token.to(tl.int64)[:, None] * out_stride + cols + direction[None, :]
            kind: tl.constexpr = codes.dtype.element_ty
            tl.store(target, high.to(kind), mask=here[:, None])
            tl.store(target + RANK, low.to(kind), mask=here[:, None])
            tl.store(target + 2 * RANK, high.to(kind), mask=here[:, None])
            tl.store(target + 3 * RANK, low.to(kind), mask=here[:, None])
        else:
            tl.store(projected + where, total.to(projected.dtype.element_ty), mask=here[:, None])
