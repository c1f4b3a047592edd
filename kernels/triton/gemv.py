"""Weight-only products with few tokens: decoding is the work, so codes are decoded where they are multiplied.

Codes are read in units of whole 32-bit words: 8 codes of 4 bits, 16 of 2, 32 of 1 in one word, 32 codes of
3 bits in three. Code `p` of every unit meets column `p` of the unit of x, so nothing is ever interleaved.

A code becomes a float by putting its bits into the mantissa of a power of two and subtracting that: one
logic operation and one addition, exact, where a conversion instruction has an eighth of their rate.
"""

from __future__ import annotations

import triton
import triton.language as tl

ONE = tl.constexpr(0x3F800000)
"""Bits of 1 as float32."""
LOWEST = tl.constexpr(10)
"""Where the lowest code of a window stands: below, too much would cancel."""
WINDOW = tl.constexpr(12)
"""Bits of a window: whole codes of every width up to 4, above `LOWEST` and inside the mantissa."""


@triton.jit
def shifted(word, BY: tl.constexpr):
    """Shift left by a number of either sign."""
    if BY >= 0:
        return word << BY
    else:
        return word >> -BY


@triton.jit
def window(first, second, third, WORDS: tl.constexpr, WHICH: tl.constexpr):
    """Return the bits of a unit from bit `WHICH * WINDOW` on, moved to bit `LOWEST`."""
    start: tl.constexpr = WHICH * WINDOW
    if start < 32:
        low = shifted(first, LOWEST - start)
        return low | shifted(second, LOWEST + 32 - start) if WORDS == 3 and start + WINDOW > 32 else low
    elif start < 64:
        low = shifted(second, LOWEST + 32 - start)
        return low | shifted(third, LOWEST + 64 - start) if start + WINDOW > 64 else low
    else:
        return shifted(third, LOWEST + 64 - start)


@triton.jit(do_not_specialize=["unit_stride"])
def gemv_kernel(
    out, x, packed, scale, offset, bias,
    unit_stride, outs, cols, row_words, groups, group, fixed_offset,
    BITS: tl.constexpr, CODES: tl.constexpr, STORED: tl.constexpr, PER_ROW: tl.constexpr, BIAS: tl.constexpr,
    CHUNKS: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One token times a weight on a uniform grid, `out[n] = sum_k (code - offset) * scale * x[k] + bias[n]`.

    Args:
        out: [tokens, outs], float; the token is the second axis of the grid.
        x: [tokens, cols], float.
        packed: int32 [outs, row_words].
        scale: float16 [outs, groups].
        offset: [outs, groups], with `STORED`; otherwise `fixed_offset` is the offset of all.
        bias: float16 [outs], with `BIAS`.
        unit_stride: 1, unknown to the compiler: it would otherwise give a lane neighbouring units, and the
            loads of x, a unit apart, would touch four times the cache lines.
        group: columns that share a scale, a multiple of `CODES`.
        CODES: codes per unit; cols is a multiple of it.
        CHUNKS: UNITS that cover a row.
        STEPS: times a program takes ROWS rows.
    """
    token = tl.program_id(1).to(tl.int64)
    words: tl.constexpr = 3 if BITS == 3 else 1
    mask: tl.constexpr = (1 << BITS) - 1
    units = cols // CODES
    lane = tl.arange(0, UNITS) * unit_stride
    columns_of = ()
    bases = ()
    wholes = ()
    for chunk in tl.static_range(CHUNKS):
        unit = chunk * UNITS + lane
        whole = tl.zeros((UNITS,), tl.float32)
        base = tl.zeros((UNITS,), tl.float32)
        for p in tl.static_range(CODES):
            value = tl.load(x + token * cols + unit * CODES + p, mask=unit < units, other=0.0).to(tl.float32)
            # The code stands inside the mantissa of a number from 1 to 2: its x is made larger by as much.
            large = value * (1 << (23 - 10 - p * BITS % 12))
            whole += value
            base += large
            columns_of = columns_of + (large,)
        wholes = wholes + (whole,)
        bases = bases + (base if STORED else base + fixed_offset * whole,)
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        here = row < outs
        total = tl.zeros((ROWS, UNITS), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            unit = chunk * UNITS + lane
            inside = here[:, None] & (unit < units)[None, :]
            address = packed + (row[:, None] * row_words + unit[None, :] * words)
            first = tl.load(address, mask=inside, other=0).to(tl.uint32, bitcast=True)
            second, third = first, first
            if BITS == 3:
                second = tl.load(address + 1, mask=inside, other=0).to(tl.uint32, bitcast=True)
                third = tl.load(address + 2, mask=inside, other=0).to(tl.uint32, bitcast=True)
            product = tl.zeros((ROWS, UNITS), tl.float32) - bases[chunk][None, :]
            for p in tl.static_range(CODES):
                bits = window(first, second, third, words, p * BITS // 12) & (mask << (10 + p * BITS % 12))
                code = (bits | ONE).to(tl.float32, bitcast=True)
                product += code * columns_of[chunk * CODES + p][None, :]
            if PER_ROW:
                if STORED:
                    zero = tl.load(offset + row, mask=here, other=0).to(tl.float32)
                    product -= zero[:, None] * wholes[chunk][None, :]
                total += product
            else:
                where = row[:, None] * groups + (unit * CODES // group)[None, :]
                if STORED:
                    zero = tl.load(offset + where, mask=inside, other=0).to(tl.float32)
                    product -= zero * wholes[chunk][None, :]
                total += tl.load(scale + where, mask=inside, other=0.0).to(tl.float32) * product
        y = tl.sum(total, axis=1)
        if PER_ROW:
            y *= tl.load(scale + row, mask=here, other=0.0).to(tl.float32)
        if BIAS:
            y += tl.load(bias + row, mask=here, other=0.0).to(tl.float32)
        tl.store(out + token * outs + row, y.to(out.dtype.element_ty), mask=here)


@triton.jit
def small_kernel(
    out, x, packed, scale, offset, bias,
    tokens, outs, cols, row_words, groups, group, fixed_offset,
    BITS: tl.constexpr, CODES: tl.constexpr, STORED: tl.constexpr, WHOLE: tl.constexpr, BIAS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """As `gemv_kernel` for up to `TOKENS` tokens, on tensor cores.

    Args:
        x: [CODES, cols // CODES, TOKENS], 16-bit: column p of every unit, tokens last, padded with zeros.
        WHOLE: whether offsets are integers, so that one subtraction takes off both them and the power of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    words: tl.constexpr = 3 if BITS == 3 else 1
    here = row < outs
    units = cols // CODES
    mask: tl.constexpr = (1 << BITS) - 1
    kind = x.dtype.element_ty
    # 2^7 in bfloat16, 2^10 in float16: integers up to the mantissa's width can be added below.
    magic: tl.constexpr = 0x4300 if x.dtype.element_ty == tl.bfloat16 else 0x6400
    base: tl.constexpr = 128.0 if x.dtype.element_ty == tl.bfloat16 else 1024.0
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for start in range(0, units, UNITS):
        unit = start + tl.arange(0, UNITS)
        inside = here[:, None] & (unit < units)[None, :]
        address = packed + row.to(tl.int64)[:, None] * row_words + unit[None, :] * words
        first = tl.load(address, mask=inside, other=0).to(tl.uint32, bitcast=True)
        second, third = first, first
        if BITS == 3:
            second = tl.load(address + 1, mask=inside, other=0).to(tl.uint32, bitcast=True)
            third = tl.load(address + 2, mask=inside, other=0).to(tl.uint32, bitcast=True)
        where = row.to(tl.int64)[:, None] * groups + (unit * CODES // group)[None, :]
        factor = tl.load(scale + where, mask=inside, other=0.0).to(kind)
        if STORED:
            lift = tl.load(offset + where, mask=inside, other=0).to(kind)
        else:
            lift = (tl.zeros((ROWS, UNITS), tl.float32) + fixed_offset).to(kind)
        if WHOLE:
            lift += base
        for p in tl.static_range(CODES):
            bits = (window(first, second, third, words, p * BITS // 12) >> (10 + p * BITS % 12)) & mask
            code = (bits | magic).to(tl.uint16).to(kind, bitcast=True)
            values = tl.load(
                x + (p * units + unit).to(tl.int64)[:, None] * TOKENS + token[None, :],
                mask=(unit < units)[:, None],
                other=0.0,
            )
            if not WHOLE:
                code -= base
            total = tl.dot((code - lift) * factor, values, total)
    if BIAS:
        total += tl.load(bias + row, mask=here, other=0.0).to(tl.float32)[:, None]
    tl.store(
        out + token.to(tl.int64)[None, :] * outs + row[:, None],
        total.to(out.dtype.element_ty),
        mask=here[:, None] & (token < tokens)[None, :],
    )
