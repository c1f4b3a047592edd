"""A weight-only product of one token, on integer dot products: a lane reads 32 codes of a row at once.

One token leaves nothing to do but to read the weight, so everything that is read is asked for before anything
is computed, in runs of 512 bytes per warp, and rows go to warps whole. The token's values are integers of 15
bits with one scale per 32 columns, each a pair of int8, `128 * high + low`: codes are masked four at a time
and go to `dp4a` as they stand, once for each half. Sums of 32 products are exact in int32; the scales of
groups and zero points are applied to sums.

Integers of 15 bits relative to the largest of 32 values are block floating point: a value is off by at most
2^-15 of that largest, where bfloat16 itself is off by 2^-9 of each. A value that is not finite makes all
outputs not a number.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from harness.kernels.triton.project import after_others

RUN = tl.constexpr(32)
"""Columns of a lane: its own scale of the inputs, and one group of the weight."""
LANES = tl.constexpr(32)
PIECE = tl.constexpr(128)
"""Columns that are projected at once."""
MOST = tl.constexpr(16256.0)
"""Largest integer a value becomes: 127 * 128."""
ROWS_FIRST = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7))
"""Whether Triton gives the lanes of a warp to the first of two axes that are alike to it, not the last.

Tiles stand so that lanes go along a row either way. Where this is wrong, results are the same, later.
"""


@triton.constexpr_function
def words_of(bits):
    """Words of 32 bits that hold the codes of a lane: of 3 bits, their plane of two."""
    return 4 if bits == 4 else 2


@triton.constexpr_function
def fields_of(bits):
    """Codes of a byte, of 3 bits in their plane of two."""
    return 2 if bits == 4 else 4


@triton.constexpr_function
def dot_asm(field, bits):
    """Instructions: mask one code in each byte and add its products with both halves of the inputs."""
    wide, mask = (4, 0x0F0F0F0F) if bits == 4 else (2, 0x03030303)
    move = f"shr.b32 t, $2, {wide * field};" if field else "mov.b32 t, $2;"
    if bits != 3:
        take, first = f"and.b32 t, t, {mask};", 3
    else:
        up = 2 - field
        third = f"shl.b32 u, $3, {up};" if up > 0 else f"shr.b32 u, $3, {-up};" if up else "mov.b32 u, $3;"
        take, first = f"{third} and.b32 u, u, {0x04040404}; lop3.b32 t, t, {mask}, u, 0xEA;", 4
    high, low, total, rest = (f"${first + i}" for i in range(4))
    products = f"dp4a.u32.s32 $0, t, {high}, {total}; dp4a.u32.s32 $1, t, {low}, {rest};"
    return f"{{ .reg .b32 t, u; {move} {take} {products} }}"


@triton.constexpr_function
def nibbles_asm(half):
    """Instructions: both bytes of a half word, each twice."""
    return f"prmt.b32 $0, $1, 0, {0x3322 if half else 0x1100};"


@triton.jit
def dot(codes, values):
    """Add the products of four bytes each: unsigned times signed."""
    total = (codes & 0xFF) * ((values << 24) >> 24)
    for byte in tl.static_range(1, 4):
        total += ((codes >> (8 * byte)) & 0xFF) * ((values << (24 - 8 * byte)) >> 24)
    return total


@triton.jit
def added(
    word, third, high, low, total, rest,
    FIELD: tl.constexpr, BITS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Add products of one code per byte of a word to the sums with the high and the low halves of inputs.

    Args:
        word: int32: codes, of 3 bits their plane of two.
        third: int32, with 3 bits: `nibbles` of the plane of one.
        high: int32: high halves of the inputs of those codes, a byte each; low alike.
    """
    if NATIVE:
        if BITS == 3:
            return tl.inline_asm_elementwise(
                dot_asm(FIELD, BITS), "=&r,=r,r,r,r,r,r,r", [word, third, high, low, total, rest],
                dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip
        else:
            return tl.inline_asm_elementwise(
                dot_asm(FIELD, BITS), "=&r,=r,r,r,r,r,r", [word, high, low, total, rest],
                dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip
    else:
        codes = (word >> ((4 if BITS == 4 else 2) * FIELD)) & (0x0F0F0F0F if BITS == 4 else 0x03030303)
        if BITS == 3:
            codes |= ((third >> FIELD) & 0x01010101) << 2
        return total + dot(codes, high), rest + dot(codes, low)


@triton.jit
def nibbles(plane, HALF: tl.constexpr, NATIVE: tl.constexpr):
    """Put the four nibbles of half a word into four bytes."""
    if NATIVE:
        pairs = tl.inline_asm_elementwise(
            nibbles_asm(HALF), "=r,r", [plane], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        half = (plane >> (16 * HALF)) & 0xFFFF
        pairs = (half & 0xFF) * 0x101 | ((half >> 8) & 0xFF) * 0x1010000
    return (pairs & 0x000F000F) | ((pairs >> 4) & 0x0F000F00)


@triton.jit
def split_kernel(
    halves, unit, total, projected, x, smooth, down,
    cols, rank,
    BITS: tl.constexpr, SMOOTH: tl.constexpr, BRANCH: tl.constexpr, RANK: tl.constexpr,
    OVERLAP: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Make a token integers where the codes of a weight of BITS meet them, and project it in parts.

    A program per AT_ONCE lanes; the token reaches as far as there are programs, and is zero from `cols` on.

    Args:
        halves: int32 [chunks, 2, 8, LANES]: high, then low halves of a lane's values, four bytes of those
            that meet one field of a word.
        unit: float32 [chunks * LANES]: what one unit is worth; not a number where a value is none.
        total: int32 [chunks * LANES]: sum of the integers.
        projected: float32 [programs, RANK]: `x / smooth @ down.T` of the program's columns; with `BRANCH`.
        x: [cols].
        smooth: float16 [cols], with `SMOOTH`: divides x.
        down: float16 [rank, cols], with `BRANCH`.
        OVERLAP: whether the kernels before and after may overlap with this one.
    """
    lane = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    col = lane[:, None] * RUN + tl.arange(0, RUN)[None, :]
    after_others(OVERLAP)  # in that order: the product reads its weight without waiting
    factor = tl.full((AT_ONCE, RUN), 1.0, tl.float32)
    if SMOOTH:
        factor = 1.0 / tl.load(smooth + col, mask=col < cols, other=1.0).to(tl.float32)
    values = tl.load(x + col, mask=col < cols, other=0.0).to(tl.float32) * factor
    largest = tl.max(tl.abs(values), axis=1)
    inverse = MOST / tl.maximum(largest, 1e-30)
    whole = tl.floor(values * inverse[:, None] + 0.5).to(tl.int32)
    tl.store(unit + lane, largest * (1.0 / MOST) + tl.sum(values - values, axis=1))
    tl.store(total + lane, tl.sum(whole, axis=1))
    fields: tl.constexpr = fields_of(BITS)
    step = tl.arange(0, 8)
    high = tl.zeros((8, AT_ONCE), tl.int32)
    low = tl.zeros((8, AT_ONCE), tl.int32)
    for byte in tl.static_range(4):
        code = (step // fields) * (4 * fields) + byte * fields + step % fields
        where = lane[None, :] * RUN + code[:, None]
        number = tl.load(x + where, mask=where < cols, other=0.0).to(tl.float32)
        if SMOOTH:
            number *= 1.0 / tl.load(smooth + where, mask=where < cols, other=1.0).to(tl.float32)
        integer = tl.floor(number * inverse[None, :] + 0.5).to(tl.int32)
        upper = (integer + 64) >> 7
        high |= (upper & 0xFF) << (8 * byte)
        low |= ((integer - upper * 128) & 0xFF) << (8 * byte)
    target = halves + (lane // LANES * (16 * LANES) + lane % LANES)[None, :] + step[:, None] * LANES
    tl.store(target, high)
    tl.store(target + 8 * LANES, low)
    if BRANCH:
        direction = tl.arange(0, RANK)
        part = tl.zeros((RANK,), tl.float32)
        for piece in tl.static_range(AT_ONCE * RUN // PIECE):
            place = (tl.program_id(0) * AT_ONCE) * RUN + piece * PIECE + tl.arange(0, PIECE)
            held = (direction < rank)[:, None] & (place < cols)[None, :]
            rows = tl.load(down + direction[:, None] * cols + place[None, :], mask=held, other=0.0)
            value = tl.load(x + place, mask=place < cols, other=0.0).to(tl.float32)
            if SMOOTH:
                value *= 1.0 / tl.load(smooth + place, mask=place < cols, other=1.0).to(tl.float32)
            part += tl.sum(rows.to(tl.float32) * value[None, :], axis=1)
        tl.store(projected + tl.program_id(0) * RANK + direction, part)


@triton.jit
def along(v, LAST: tl.constexpr):
    """Let a vector be the last axis of two, or the first."""
    if LAST:
        return v[None, :]
    else:
        return v[:, None]


@triton.jit
def read_once(at, mask, EVEN: tl.constexpr):
    """Load what no other program reads."""
    if EVEN:
        return tl.load(at, eviction_policy="evict_first")
    else:
        return tl.load(at, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def words_apart(tile, TALL: tl.constexpr, WIDE: tl.constexpr, WORDS: tl.constexpr):
    """Take [TALL, WIDE, WORDS] apart into its words."""
    if WORDS == 2:
        return tl.split(tile)
    else:
        even, odd = tl.split(tl.reshape(tile, (TALL, WIDE, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth


@triton.jit
def single_kernel(
    out, halves, unit, total, projected, packed, scale, zero, bias, up,
    outs, cols, row_words, groups, turns, rank,
    BITS: tl.constexpr, PER: tl.constexpr, STORED: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr,
    BRANCH: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr,
    NATIVE: tl.constexpr, OVERLAP: tl.constexpr, FLIP: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One token times a weight on a uniform grid: `out = x @ ((code - zero) * scale).T + branch + bias`.

    Args:
        out: [outs].
        halves: as `split_kernel` leaves it; so are unit, total and projected.
        packed: int32 [outs, row_words]: codes of 2 or 4 bits, or of 3 bits as two planes.
        scale: float16 [outs, groups].
        zero: uint8 [outs, groups], with `STORED`; otherwise `OFFSET`, an integer, is that of all.
        bias: float16 [outs], with `BIAS`.
        up: float16 [outs, rank], with `BRANCH`.
        turns: how often CHUNKS chunks of LANES * RUN columns are read.
        PER: lanes that share a scale.
        RANK: directions of the branch with those that fill the lanes.
        PARTS: programs that projected.
        EVEN: whether the chunks end where the columns do.
        NATIVE: whether there are dot products of bytes; Triton's interpreter has none.
        OVERLAP: whether this kernel may begin before `split_kernel` ends: it reads the weight meanwhile.
        FLIP: `ROWS_FIRST`.
    """
    words: tl.constexpr = words_of(BITS)
    fields: tl.constexpr = fields_of(BITS)
    tall: tl.constexpr = LANES if FLIP else ROWS
    wide: tl.constexpr = ROWS if FLIP else LANES
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    held = tl.minimum(row, outs - 1)
    lane = tl.arange(0, LANES)
    rows = along(held, FLIP)
    lanes = along(lane, not FLIP)
    start = packed + (rows * row_words + lanes * words)[:, :, None] + tl.arange(0, words)[None, None, :]
    # A word of the plane of one is loaded by itself, so that lanes hold the same columns of both planes.
    plane = tl.max_contiguous(packed + cols // 16 + (rows * row_words + lanes), (1, 1))
    if BIAS:
        shift = tl.load(bias + held).to(tl.float32)
    else:
        shift = tl.zeros((ROWS,), tl.float32)
    factors = ()
    if BRANCH:
        for index in tl.static_range(RANK // LANES):
            direction = index * LANES + lanes
            factors = factors + (tl.load(up + rows * rank + direction, mask=direction < rank, other=0.0),)
    sums = tl.zeros((tall, wide), tl.float32)
    for turn in tl.range(0, turns):
        tiles = ()
        thirds = ()
        scales = ()
        zeros = ()
        for chunk in tl.static_range(CHUNKS):
            at = turn * CHUNKS + chunk
            there = lanes * RUN + at * (LANES * RUN) < cols
            tiles = tiles + (read_once(start + at * (LANES * words), there[:, :, None], EVEN),)
            if BITS == 3:
                thirds = thirds + (read_once(plane + at * LANES, there, EVEN),)
            group = at * (LANES // PER) + lanes // PER if LANES % PER == 0 else (lanes + at * LANES) // PER
            scales = scales + (read_once(scale + rows * groups + group, there, EVEN),)
            if STORED:
                zeros = zeros + (read_once(zero + rows * groups + group, there, EVEN),)
        if OVERLAP:
            gdc_launch_dependents()  # of those that come next, the first waits before it lets others begin
            gdc_wait()
        for chunk in tl.static_range(CHUNKS):
            at = turn * CHUNKS + chunk
            first = tl.zeros((tall, wide), tl.int32)
            whole = along(tl.load(total + at * LANES + lane), not FLIP)
            if STORED:
                rest = zeros[chunk].to(tl.int32) * -whole
            else:
                rest = tl.broadcast_to(whole * -OFFSET, (tall, wide))
            apart = words_apart(tiles[chunk], tall, wide, words)
            for word in tl.static_range(words):
                third = apart[word]
                if BITS == 3:
                    third = nibbles(thirds[chunk], word, NATIVE)
                for field in tl.static_range(fields):
                    source = halves + (at * 16 + word * fields + field) * LANES + lane
                    high = along(tl.load(source), not FLIP)
                    low = along(tl.load(source + 8 * LANES), not FLIP)
                    first, rest = added(apart[word], third, high, low, first, rest, field, BITS, NATIVE)
            worth = along(tl.load(unit + at * LANES + lane), not FLIP)
            sums += (first * 128 + rest).to(tl.float32) * (scales[chunk].to(tl.float32) * worth)
    if BRANCH:
        for index in tl.static_range(RANK // LANES):
            value = tl.zeros((LANES,), tl.float32)
            for part in tl.static_range(PARTS):
                value += tl.load(projected + part * RANK + index * LANES + lane)
            sums += factors[index].to(tl.float32) * along(value, not FLIP)
    y = tl.sum(sums, axis=0 if FLIP else 1) + shift
    tl.store(out + row, y.to(out.dtype.element_ty), mask=row < outs)
