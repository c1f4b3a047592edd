"""A weight-only product of one token, on integer dot products, in one launch: a lane reads 32 codes of a row.

One token leaves nothing to do but to read the weight, so a program asks for weight, scales and zero points
before it waits for the token, and while it multiplies some rows it asks for the next. Rows go to warps whole,
and each warp makes the token integers of 16 bits itself, in the lanes that read the codes they meet: no value
changes lanes until the sums of a row do. An integer is a signed byte and an unsigned one, `256 * high + low`:
codes are masked four at a time and go to `dp4a` as they stand, once for each. Sums of 32 products are exact
in int32; the scales of groups and zero points are applied to sums.

Integers of 16 bits relative to the largest of 32 values are block floating point: a value is off by at most
2^-16 of that largest, where bfloat16 itself is off by 2^-9 of each. A value that is not finite makes all
outputs not a number or infinite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from harness.kernels.triton.project import after_others
from harness.kernels.triton.token import LANES, RUN, along, apart, dot, integers

ROWS_FIRST = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7))
"""Whether Triton gives the lanes of a warp to the first of two axes that are alike to it, not the last.

Tiles stand so that lanes go along a row either way. Where this is wrong, results are the same, later.
"""


@triton.constexpr_function
def words_of(bits):
    """Words of 32 bits that hold the codes of a lane: of 3 bits, their plane of two."""
    return 4 if bits == 4 else 2


@triton.constexpr_function
def mask_of(half, bits):
    """Bits of one code in each byte, which has two nibbles with a code at the bottom of each."""
    return (((1 << bits) - 1) << (4 * half)) * 0x01010101


@triton.constexpr_function
def dot_asm(half, bits):
    """Instructions: mask one code in each byte and add its products with both bytes of the inputs."""
    products = "dp4a.u32.s32 $0, t, $3, $5; dp4a.u32.u32 $1, t, $4, $6;"
    mask = mask_of(half, bits)
    return f"{{ .reg .b32 t; and.b32 t, $2, {mask}; {products} }}"


@triton.constexpr_function
def nibbles_asm():
    """Instructions: put planes of 32 codes of 3 bits together in nibbles, $4 and $5 of two bits, $6 of one.

    Bytes 0, 2, 4 and 6 of the first have their third bits in the lower halves of the bytes of the second, the
    others in the upper halves. Each half is spread to bits 2, 3, 6 and 7 of its byte: bits 2 and 6 belong to
    the even codes, the other two, one bit further down, to the odd ones. What is left over is masked later.
    """
    low, two = 0x0F0F0F0F, 0x33333333  # 0xE2 below: bits of the first where these are set, else of the third
    lines = ["prmt.b32 a, $4, $5, 0x6420;", "shl.b32 u, $6, 2;", "shl.b32 v, $6, 4;"]
    for even, odd, upper in (("$0", "$1", "v"), ("$2", "$3", "$6")):
        lines += [
            f"lop3.b32 u, u, {low}, {upper}, 0xE2;",
            f"lop3.b32 {even}, a, {two}, u, 0xE2;",
            "shr.b32 a, a, 2;",
            "shr.b32 u, u, 1;",
            f"lop3.b32 {odd}, a, {two}, u, 0xE2;",
        ]
        if even == "$0":
            lines += ["prmt.b32 a, $4, $5, 0x7531;", "shr.b32 u, $6, 2;"]
    return f"{{ .reg .b32 a, u, v; {' '.join(lines)} }}"


@triton.jit
def nibbles(words, third, BITS: tl.constexpr, NATIVE: tl.constexpr):
    """Return 32 codes as the nibbles of four words, see `column_of`; other bits of a nibble are undefined.

    Args:
        words: int32: codes, of 3 bits their plane of two.
        third: int32, with 3 bits: the plane of one.
    """
    if BITS == 4:
        return words
    elif BITS == 2:
        return words[0], words[0] >> 2, words[1], words[1] >> 2
    elif NATIVE:
        return tl.inline_asm_elementwise(
            nibbles_asm(), "=&r,=&r,=&r,=&r,r,r,r", [words[0], words[1], third],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        low: tl.constexpr = 0x33333333
        result = ()
        for part in tl.static_range(2):
            codes = tl.zeros_like(third)
            for byte in tl.static_range(4):
                source = words[byte // 2] >> (16 * (byte % 2) + 8 * part)
                codes |= (source & 0xFF) << (8 * byte)
            high = third >> (4 * part)
            even = (high & 0x01010101) << 2 | (high & 0x04040404) << 4
            odd = (high & 0x02020202) << 1 | (high & 0x08080808) << 3
            result = result + (codes & low | even, (codes >> 2) & low | odd)
        return result


@triton.jit
def added(
    word, high, low, total, rest,
    HALF: tl.constexpr, BITS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Add products of the codes in the lower or the upper nibbles to sums with the bytes of their inputs.

    Args:
        word: int32, of `nibbles`; sums of upper ones come out 16 times too large.
        high: int32: high bytes of the inputs of those codes; low alike.
    """
    if NATIVE:
        return tl.inline_asm_elementwise(
            dot_asm(HALF, BITS), "=&r,=r,r,r,r,r,r", [word, high, low, total, rest],
            dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        codes = ((word >> (4 * HALF)) & mask_of(0, BITS)) << (4 * HALF)
        return total + dot(codes, high, True), rest + dot(codes, low, False)


@triton.jit
def read_once(at, mask, EVEN: tl.constexpr):
    """Load what no other program reads."""
    if EVEN:
        return tl.load(at, eviction_policy="evict_first")
    else:
        return tl.load(at, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def asked(
    packed, scale, zero, bias, up, rows, lanes, step,
    outs, cols, row_words, groups, rank,
    BITS: tl.constexpr, PER: tl.constexpr, STORED: tl.constexpr, BIAS: tl.constexpr, BRANCH: tl.constexpr,
    RANK: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, APART: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Load everything of ROWS rows of each warp, APART from another, from chunk `step * CHUNKS` on.

    Returns:
        codes, planes of one, scales and zero points, each by row and chunk, then biases and factors.
    """
    words: tl.constexpr = words_of(BITS)
    word = tl.arange(0, words)[None, None, :]
    tiles, thirds, scales, zeros, shifts, factors = (), (), (), (), (), ()
    for index in tl.static_range(ROWS):
        row = tl.minimum(rows + index * APART, outs - 1)
        # Lanes of a warp have the same row, which Triton shall not give to them: see `ROWS_FIRST`.
        if BIAS:
            shifts = shifts + (tl.load(tl.max_contiguous(bias + row, (1, 1))),)
        if BRANCH:
            for part in tl.static_range(RANK // LANES):
                direction = part * LANES + lanes
                held = direction < rank
                place = tl.max_contiguous(up + (row * rank + direction), (1, 1))
                factors = factors + (tl.load(place, mask=held, other=0.0),)
        for chunk in tl.static_range(CHUNKS):
            at = step * CHUNKS + chunk
            there = lanes * RUN + at * (LANES * RUN) < cols
            start = packed + (row * row_words + lanes * words) + at * (LANES * words)
            tiles = tiles + (read_once(start[:, :, None] + word, there[:, :, None], EVEN),)
            if BITS == 3:
                # A word by itself, so that lanes hold the same columns of both planes.
                plane = packed + (row * row_words + cols // 16 + lanes) + at * LANES
                thirds = thirds + (read_once(tl.max_contiguous(plane, (1, 1)), there, EVEN),)
            # What is the same for all is added last, to the address: it becomes part of the instruction.
            if LANES % PER == 0:
                group, further = row * groups + lanes // PER, at * (LANES // PER)
            else:
                group, further = row * groups + (lanes + at * LANES) // PER, 0
            scales = scales + (read_once(scale + group + further, there, EVEN),)
            if STORED:
                zeros = zeros + (read_once(zero + group + further, there, EVEN),)
    return tiles, thirds, scales, zeros, shifts, factors


@triton.jit
def made(
    x, smooth, lanes, step, cols,
    BITS: tl.constexpr, SMOOTH: tl.constexpr, EVEN: tl.constexpr, NATIVE: tl.constexpr,
    CHUNKS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Make chunks of the token `integers`, from chunk `step * CHUNKS` on."""
    token = ()
    for chunk in tl.static_range(CHUNKS):
        first = (lanes + (step * CHUNKS + chunk) * LANES) * RUN
        token = token + (integers(x, smooth, first, cols, BITS, SMOOTH, EVEN, NATIVE, TALL, WIDE),)
    return token


@triton.jit
def multiplied(
    sums, held, token,
    BITS: tl.constexpr, STORED: tl.constexpr, OFFSET: tl.constexpr, NATIVE: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add the products of what was `asked` for with the token's `integers`, by chunk, to the sum of a row."""
    words: tl.constexpr = words_of(BITS)
    tiles, thirds, scales, zeros, _shifts, _factors = held
    result = ()
    for index in tl.static_range(ROWS):
        total = sums[index]
        for chunk in tl.static_range(CHUNKS):
            bytes_, unit, whole = token[chunk]
            first = tl.zeros((TALL, WIDE), tl.int32)
            upper_first, upper_rest = first, first
            if STORED:
                rest = zeros[index * CHUNKS + chunk].to(tl.int32) * -whole
            else:
                rest = whole * -OFFSET
            third = thirds[index * CHUNKS + chunk] if BITS == 3 else whole
            codes = nibbles(apart(tiles[index * CHUNKS + chunk], TALL, WIDE, words), third, BITS, NATIVE)
            for word in tl.static_range(4):
                first, rest = added(
                    codes[word], bytes_[4 * word], bytes_[4 * word + 1], first, rest, 0, BITS, NATIVE
                )
                upper_first, upper_rest = added(
                    codes[word], bytes_[4 * word + 2], bytes_[4 * word + 3], upper_first, upper_rest, 1, BITS,
                    NATIVE,
                )  # fmt: skip
            both = first * 256 + rest + ((upper_first * 256 + upper_rest) >> 4)
            scaled = scales[index * CHUNKS + chunk].to(tl.float32) * unit
            total += both.to(tl.float32) * scaled
        result = result + (total,)
    return result


@triton.jit
def finished(
    out, rows, lanes, outs, sums, held, branch,
    BIAS: tl.constexpr, BRANCH: tl.constexpr, RANK: tl.constexpr, FLIP: tl.constexpr, ROWS: tl.constexpr,
    APART: tl.constexpr,
):  # fmt: skip
    """Add branch and bias to the sums of ROWS rows of each warp, and store them, each by its first lane."""
    shifts, factors = held[4], held[5]
    for index in tl.static_range(ROWS):
        total = sums[index]
        if BRANCH:
            for part in tl.static_range(RANK // LANES):
                total += factors[index * (RANK // LANES) + part].to(tl.float32) * branch[part]
        y = tl.broadcast_to(tl.sum(total, axis=0 if FLIP else 1, keep_dims=True), total.shape)
        if BIAS:
            y += shifts[index].to(tl.float32)
        row = rows + index * APART
        place = tl.max_contiguous(out + row, (1, 1))
        tl.store(place, y.to(out.dtype.element_ty), mask=(row < outs) & (lanes == 0))


@triton.jit
def single_kernel(
    out, projected, x, smooth, packed, scale, zero, bias, up,
    outs, cols, row_words, groups, steps, rank,
    BITS: tl.constexpr, PER: tl.constexpr, STORED: tl.constexpr, OFFSET: tl.constexpr, SMOOTH: tl.constexpr,
    BIAS: tl.constexpr, BRANCH: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr,
    NATIVE: tl.constexpr, OVERLAP: tl.constexpr, FLIP: tl.constexpr, LONG: tl.constexpr,
    WARPS: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One token times a weight: `out = x / smooth @ ((code - zero) * scale).T + branch + bias`.

    Args:
        out: [outs].
        projected: float32 [PARTS, RANK], see `project_one_kernel`; with `BRANCH`.
        x: [cols].
        smooth: float16 [cols], with `SMOOTH`: divides x.
        packed: int32 [outs, row_words]: codes of 2 or 4 bits, or of 3 bits as two planes.
        scale: float16 [outs, groups].
        zero: uint8 [outs, groups], with `STORED`; otherwise `OFFSET`, an integer, is that of all.
        bias: float16 [outs], with `BIAS`.
        up: float16 [outs, rank], with `BRANCH`.
        steps: how often ROWS rows of each warp are read; with `LONG`, how often CHUNKS chunks of them are.
        PER: lanes that share a scale.
        RANK: directions of the branch with those that fill the lanes.
        EVEN: whether the chunks, of LANES * RUN columns, end where the columns do.
        NATIVE: whether there are dot products of bytes; Triton's interpreter has none.
        OVERLAP: whether the kernels before and after may overlap with this one.
        FLIP: `ROWS_FIRST`.
        LONG: whether a row has more than CHUNKS chunks: steps walk over them, else over rows.
    """
    tall: tl.constexpr = LANES if FLIP else WARPS
    wide: tl.constexpr = WARPS if FLIP else LANES
    lanes = along(tl.arange(0, LANES), not FLIP) + along(tl.zeros((WARPS,), tl.int32), FLIP)
    moved: tl.constexpr = 0 if LONG else WARPS * ROWS
    begin = tl.program_id(0) * (WARPS * ROWS) * (1 if LONG else steps)
    rows = tl.zeros((tall, wide), tl.int32) + along(begin + tl.arange(0, WARPS), FLIP)
    held = asked(
        packed, scale, zero, bias, up, rows, lanes, 0, outs, cols, row_words, groups, rank,
        BITS, PER, STORED, BIAS, BRANCH, RANK, EVEN, ROWS, WARPS, CHUNKS,
    )  # fmt: skip
    after_others(OVERLAP)  # in that order: the next product reads its weight without waiting
    branch = ()
    if BRANCH:
        for part in tl.static_range(RANK // LANES):
            value = tl.zeros((tall, wide), tl.float32)
            for index in tl.static_range(PARTS):
                value += tl.load(tl.max_contiguous(projected + index * RANK + part * LANES + lanes, (1, 1)))
            branch = branch + (value,)
    empty = ()
    for _ in tl.static_range(ROWS):
        empty = empty + (tl.zeros((tall, wide), tl.float32),)
    if not LONG:
        token = made(x, smooth, lanes, 0, cols, BITS, SMOOTH, EVEN, NATIVE, CHUNKS, tall, wide)
    sums = empty
    for step in tl.range(1, steps):
        coming = asked(
            packed, scale, zero, bias, up, rows + step * moved, lanes, step if LONG else 0,
            outs, cols, row_words, groups, rank,
            BITS, PER, STORED, BIAS, BRANCH, RANK, EVEN, ROWS, WARPS, CHUNKS,
        )  # fmt: skip
        if LONG:
            token = made(x, smooth, lanes, step - 1, cols, BITS, SMOOTH, EVEN, NATIVE, CHUNKS, tall, wide)
        sums = multiplied(sums, held, token, BITS, STORED, OFFSET, NATIVE, ROWS, CHUNKS, tall, wide)
        if not LONG:
            here = rows + (step - 1) * moved
            finished(out, here, lanes, outs, sums, held, branch, BIAS, BRANCH, RANK, FLIP, ROWS, WARPS)
            sums = empty
        held = coming
    if LONG:
        token = made(x, smooth, lanes, steps - 1, cols, BITS, SMOOTH, EVEN, NATIVE, CHUNKS, tall, wide)
    sums = multiplied(sums, held, token, BITS, STORED, OFFSET, NATIVE, ROWS, CHUNKS, tall, wide)
    here = rows + (steps - 1) * moved
    finished(out, here, lanes, outs, sums, held, branch, BIAS, BRANCH, RANK, FLIP, ROWS, WARPS)
