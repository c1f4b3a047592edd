"""Weight-only products with few tokens: decoding is the work, so codes are decoded where they are multiplied.

Codes are read in units of whole 32-bit words: 8 codes of 4 bits, 16 of 2, 32 of 1 in one word, 32 codes of
3 bits in three. Code `p` of every unit meets column `p` of the unit of x, so nothing is ever interleaved.

A code becomes a float by putting its bits into the mantissa of 1: `1 + code * 2^-n`, one logic operation
where a conversion instruction has an eighth of the rate. What the ones add up to depends on x alone and is
taken off once per unit.
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


@triton.jit
def columns(x, UNITS: tl.constexpr, CODES: tl.constexpr):
    """Take [UNITS, CODES] apart into its columns, in bit-reversed order."""
    if CODES == 1:
        return (tl.reshape(x, (UNITS,)),)
    else:
        even, odd = tl.split(tl.reshape(x, (UNITS, CODES // 2, 2)))
        return columns(even, UNITS, CODES // 2) + columns(odd, UNITS, CODES // 2)


@triton.constexpr_function
def reversed_bits(position, count):
    """Where `columns` put a column."""
    result, size = 0, count
    while size > 1:
        result, position, size = result * 2 + position % 2, position // 2, size // 2
    return result


@triton.jit
def gemv_kernel(
    out, x, packed, scale, offset, bias,
    outs, cols, row_words, groups, group, fixed_offset,
    BITS: tl.constexpr, CODES: tl.constexpr, STORED: tl.constexpr, PER_ROW: tl.constexpr, BIAS: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One token times a weight on a uniform grid, `out[n] = sum_k (code - offset) * scale * x[k] + bias[n]`.

    Args:
        out: [tokens, outs], float; the token is the second axis of the grid.
        x: [tokens, cols], float.
        packed: int32 [outs, row_words].
        scale: float16 [outs, groups].
        offset: [outs, groups], with `STORED`; otherwise `fixed_offset` is the offset of all.
        bias: float16 [outs], with `BIAS`.
        group: columns that share a scale, a multiple of `CODES`.
        CODES: codes per unit; cols is a multiple of it.
        CHUNKS: how many times UNITS cover a row: all of it is asked for before any of it is used.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64)
    words: tl.constexpr = 3 if BITS == 3 else 1
    mask: tl.constexpr = (1 << BITS) - 1
    here = row < outs
    units = cols // CODES
    loaded = ()
    factors = ()
    for chunk in tl.static_range(CHUNKS):
        unit = chunk * UNITS + tl.arange(0, UNITS)
        inside = here[:, None] & (unit < units)[None, :]
        address = packed + (row[:, None] * row_words + unit[None, :] * words)
        for word in tl.static_range(words):
            loaded = loaded + (tl.load(address + word, mask=inside, other=0).to(tl.uint32, bitcast=True),)
        if not PER_ROW:
            where = row[:, None] * groups + (unit * CODES // group)[None, :]
            factors = factors + (tl.load(scale + where, mask=inside, other=0.0),)
    total = tl.zeros((ROWS, UNITS), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        unit = chunk * UNITS + tl.arange(0, UNITS)
        inside = here[:, None] & (unit < units)[None, :]
        values = tl.load(
            x + token * cols + unit[:, None] * CODES + tl.arange(0, CODES)[None, :],
            mask=(unit < units)[:, None],
            other=0.0,
        ).to(tl.float32)
        # A code stands inside the mantissa of a number from 1 to 2: its x is made larger by as much.
        large = values * (1 << (13 - tl.arange(0, CODES) * BITS % 12)).to(tl.float32)[None, :]
        whole = tl.sum(values, axis=1)
        base = tl.sum(large, axis=1)
        if not STORED:
            base += fixed_offset * whole
        parts = columns(large, UNITS, CODES)
        product = tl.zeros((ROWS, UNITS), tl.float32) - base[None, :]
        first = loaded[chunk * words]
        second = loaded[chunk * words + words // 2]
        third = loaded[chunk * words + words - 1]
        for p in tl.static_range(CODES):
            bits = window(first, second, third, words, p * BITS // 12) & (mask << (10 + p * BITS % 12))
            code = (bits | ONE).to(tl.float32, bitcast=True)
            product += code * parts[reversed_bits(p, CODES)][None, :]
        if STORED:
            if PER_ROW:
                zero = tl.load(offset + row, mask=here, other=0).to(tl.float32)[:, None]
            else:
                where = row[:, None] * groups + (unit * CODES // group)[None, :]
                zero = tl.load(offset + where, mask=inside, other=0).to(tl.float32)
            product -= zero * whole[None, :]
        if PER_ROW:
            total += product
        else:
            total += factors[chunk].to(tl.float32) * product
    y = tl.sum(total, axis=1)
    if PER_ROW:
        y *= tl.load(scale + row, mask=here, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + row, mask=here, other=0.0).to(tl.float32)
    tl.store(out + token * outs + row, y.to(out.dtype.element_ty), mask=here)
