"""One token as integers of 16 bits, made in the lanes where the codes they meet are read.

An integer is a signed byte and an unsigned one, `256 * high + low`. Four of either are a word for `dp4a`.
"""

from __future__ import annotations

import triton
import triton.language as tl

RUN = tl.constexpr(32)
"""Columns of a lane: its own scale of the inputs, and one group of the weight."""
LANES = tl.constexpr(32)
PIECE = tl.constexpr(8)
"""Columns of a lane that are one load of the token."""
MOST = tl.constexpr(32767.0)
"""Largest integer a value becomes."""
ROUNDED = tl.constexpr(12582912.0)
"""1.5 * 2^23: a float32 to which it is added has the nearest integer in its low 16 bits."""


@triton.constexpr_function
def column_of(index, byte, bits):
    """Column of a lane whose code is in that byte of word `index // 2` of nibbles, the upper at odd `index`.

    Words of nibbles: of 4 bits, those of the row; else the even and then the odd codes of a word, of 3 bits
    of every other byte of two words.
    """
    word, half = index // 2, index % 2
    if bits == 4:
        return 8 * word + 2 * byte + half
    code = word % 2 + 2 * half
    return 16 * (word // 2) + 4 * byte + code if bits == 2 else 8 * byte + 4 * (word // 2) + code


@triton.jit
def dot(codes, values, SIGNED: tl.constexpr):
    """Add the products of four bytes each: unsigned ones times signed ones, or unsigned."""
    total = tl.zeros_like(values)
    for byte in tl.static_range(4):
        value = (values << (24 - 8 * byte)) >> 24
        if not SIGNED:
            value &= 0xFF
        total += ((codes >> (8 * byte)) & 0xFF) * value
    return total


@triton.jit
def bytes_of(first, second, third, fourth, NATIVE: tl.constexpr):
    """Put the second bytes of four words into one, and the first into another."""
    if NATIVE:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t, u; prmt.b32 t, $2, $3, 0x5140; prmt.b32 u, $4, $5, 0x5140;"
            " prmt.b32 $0, t, u, 0x7632; prmt.b32 $1, t, u, 0x5410; }",
            "=&r,=r,r,r,r,r", [first, second, third, fourth],
            dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        low = (first & 0xFF) | (second & 0xFF) << 8 | (third & 0xFF) << 16 | fourth << 24
        high = first >> 8 & 0xFF | second & 0xFF00 | (third & 0xFF00) << 8 | (fourth & 0xFF00) << 16
        return high, low


@triton.jit
def counted(high, low, upper, lower, NATIVE: tl.constexpr):
    """Add the bytes of two words, signed and unsigned, to their sums."""
    if NATIVE:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; mov.b32 t, 0x01010101; dp4a.u32.s32 $0, t, $2, $4; dp4a.u32.u32 $1, t, $3, $5; }",
            "=&r,=r,r,r,r,r", [high, low, upper, lower],
            dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return upper + dot(0x01010101, high, True), lower + dot(0x01010101, low, False)


@triton.jit
def inverse_of(values, NATIVE: tl.constexpr):
    """Divide 1 by what is neither too small nor too large for that, to the last bit or the one before."""
    if NATIVE:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [values], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / values


@triton.jit
def apart(tile, TALL: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr):
    """Take [TALL, WIDE, 2, 4 or 8] apart along its last axis."""
    if COUNT == 2:
        return tl.split(tile)
    elif COUNT == 4:
        even, odd = tl.split(tl.reshape(tile, (TALL, WIDE, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth
    else:
        even, odd = tl.split(tl.reshape(tile, (TALL, WIDE, 4, 2)))
        v0, v2, v4, v6 = apart(even, TALL, WIDE, 4)
        v1, v3, v5, v7 = apart(odd, TALL, WIDE, 4)
        return v0, v1, v2, v3, v4, v5, v6, v7


@triton.jit
def along(v, LAST: tl.constexpr):
    """Let a vector be the last axis of two, or the first."""
    if LAST:
        return v[None, :]
    else:
        return v[:, None]


@triton.jit
def integers(
    x, smooth, first, cols,
    BITS: tl.constexpr, SMOOTH: tl.constexpr, EVEN: tl.constexpr, NATIVE: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Make RUN columns of the token integers in each lane, from column `first` [TALL, WIDE] on.

    Returns:
        int32 words of high and of low bytes in turn, see `column_of`; what one unit is worth,
        float32; the sum of the integers, int32: all [TALL, WIDE].
    """
    values = ()
    for piece in tl.static_range(RUN // PIECE):
        at = (first + piece * PIECE)[:, :, None] + tl.arange(0, PIECE)[None, None, :]
        tile = tl.load(x + at) if EVEN else tl.load(x + at, mask=at < cols, other=0.0)
        tile = tile.to(tl.float32)
        if SMOOTH:
            divisor = tl.load(smooth + at) if EVEN else tl.load(smooth + at, mask=at < cols, other=1.0)
            tile *= inverse_of(divisor.to(tl.float32), NATIVE)
        values = values + apart(tile, TALL, WIDE, PIECE)
    largest = tl.full((TALL, WIDE), 1e-30, tl.float32)
    for index in tl.static_range(RUN):
        largest = tl.maximum(largest, tl.abs(values[index]), propagate_nan=tl.PropagateNan.ALL)
    inverse = MOST / largest
    rounded = ()
    for index in tl.static_range(RUN):
        rounded = rounded + ((values[index] * inverse + ROUNDED).to(tl.int32, bitcast=True),)
    words = ()
    upper = tl.zeros((TALL, WIDE), tl.int32)
    lower = tl.zeros((TALL, WIDE), tl.int32)
    for index in tl.static_range(RUN // 4):
        high, low = bytes_of(
            rounded[column_of(index, 0, BITS)], rounded[column_of(index, 1, BITS)],
            rounded[column_of(index, 2, BITS)], rounded[column_of(index, 3, BITS)], NATIVE,
        )  # fmt: skip
        upper, lower = counted(high, low, upper, lower, NATIVE)
        words = words + (high, low)
    return words, largest * (1.0 / MOST), upper * 256 + lower
