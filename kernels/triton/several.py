"""A weight-only product of up to 16 tokens, on tensor cores, in one launch: inputs stay in registers.

The warps of a program share out the columns. Each keeps its columns of all tokens as the tensor core takes
them and walks over rows, sixteen at a time: tiles of whole rows are copied to shared memory steps ahead (by
descriptor, on Hopper and later), every warp multiplies its part of them, and the parts are added up.

Codes are not converted. A byte alone in a bfloat16 is that byte times 2^-133, a subnormal number that tensor
cores keep: one logic operation leaves two codes standing, at a bit of the lower byte, and inputs are lifted
by as much as codes stand too low. Products of codes are exact, and no weight is rounded: scales and zero
points are applied to sums of 64 columns, zero points by way of the sums of the inputs.

The kernel is laid out for what Triton makes of it: no value changes lanes between shared memory and tensor
core. A lane has sixteen columns of a group, in slots as in `harness.kernels.triton.gemv`. Code `p` of all
its slots meets the inputs of their columns: any four columns of each of four lanes are a step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from harness.kernels.triton.gemv import parted, reversed_bits
from harness.kernels.triton.project import after_others

GROUP = tl.constexpr(64)
"""Columns that share a scale: of a warp, one group in each of its chunks."""
ROWS = tl.constexpr(16)
"""Rows of a tile, the tensor core's."""
LANES = tl.constexpr(4)
"""Lanes among which a group is shared out."""
PIECE = tl.constexpr(8)
"""Columns of a lane that are one load of the inputs."""
LIFT = tl.constexpr(60)
"""Power of two by which inputs are lifted: theirs and that of standing codes is that of float32 sums."""
LOWERED = tl.constexpr(73)
"""Power of two by which sums are too small (outputs below 2^-53 lose bits): 133 less `LIFT`."""


@triton.constexpr_function
def stands_at(p, bits):
    """At which bit code `p` of a slot stands; codes of 3 bits are put at those of 4 before."""
    return 2 * (p % 4) if bits == 2 else 4 * (p // 2 % 2 if bits == 3 else p % 2)


@triton.constexpr_function
def stand_asm(p, bits):
    """Instructions that let code `p` of two slots stand: $0 from $1, of 3 bits with third bytes in $2."""
    mask = ((1 << bits) - 1) << stands_at(p, bits)
    lines, high = ["mov.b32 t, $1;"], p >= (2 if bits == 4 else 4)
    if bits == 3:  # third bits of the even codes or of the odd ones, beside their low two bits
        odd = p % 2
        lines = [
            "prmt.b32 u, $2, 0, 0x4140;",  # two bytes, each in 16 bits
            "shl.b32 v, u, 4;",
            f"lop3.b32 u, u, v, {0x0A0A0A0A if odd else 0x05050505}, 0xA8;",  # (u | v) & mask
            f"mul.lo.u32 u, u, {2 + 8 if odd else 4 + 16};",
            "shr.b32 t, $1, 2;" if odd else "mov.b32 t, $1;",
            f"lop3.b32 t, t, {0x33333333}, u, 0xE2;",  # t & mask | u & ~mask
        ]
    down = "shr.b32 t, t, 8;" if high else ""
    return f"{{ .reg .b32 t, u, v; {' '.join(lines)} {down} and.b32 $0, t, {mask * 0x10001}; }}"


@triton.jit
def standing(slots, third, P: tl.constexpr, BITS: tl.constexpr, NATIVE: tl.constexpr):
    """Let code `P` of slots stand: bfloat16, or without `NATIVE` float32 as they are.

    Args:
        slots: int16, see `harness.kernels.triton.gemv`.
        third: int16, with 3 bits: third bits of the codes of two neighbours, in both.
    """
    if NATIVE:
        if BITS == 3:
            bits = tl.inline_asm_elementwise(
                stand_asm(P, BITS), "=&r,r,r", [slots, third], dtype=tl.int16, is_pure=True, pack=2
            )
        else:
            bits = tl.inline_asm_elementwise(
                stand_asm(P, BITS), "=r,r", [slots], dtype=tl.int16, is_pure=True, pack=2
            )
        return bits.to(tl.bfloat16, bitcast=True)
    else:
        wide: tl.constexpr = 4 if BITS == 4 else 2
        code = (slots.to(tl.uint16, bitcast=True).to(tl.int32) >> (wide * P)) & ((1 << wide) - 1)
        if BITS == 3:
            byte = 8 * (tl.arange(0, third.shape[2]) % 2)[None, None, :]
            code |= ((third.to(tl.uint16, bitcast=True).to(tl.int32) >> (P + byte)) & 1) << 2
        return code.to(tl.float32)


@triton.jit
def stacked(values, FIRST: tl.constexpr, EACH: tl.constexpr, COUNT: tl.constexpr):
    """Put `COUNT` values side by side in a new last axis: [rows, lanes] -> [rows, lanes, COUNT]."""
    if COUNT == 1:
        return tl.expand_dims(values[FIRST], 2)
    else:
        even = stacked(values, FIRST, 2 * EACH, COUNT // 2)
        odd = stacked(values, FIRST + EACH, 2 * EACH, COUNT // 2)
        return tl.reshape(tl.join(even, odd), values[0].shape + (COUNT,))


@triton.jit
def paired(a, b, COUNT: tl.constexpr):
    """Put two slots of `a` before two of `b`, for each lane: both of COUNT lanes -> [COUNT, 4]."""
    both = tl.join(tl.reshape(a, (COUNT, 2)), tl.reshape(b, (COUNT, 2)))
    return tl.reshape(tl.permute(both, (0, 2, 1)), (COUNT, 4))


@triton.jit
def lifted(values, STEP: tl.constexpr, BITS: tl.constexpr, CODES: tl.constexpr, NATIVE: tl.constexpr):
    """Choose from a lane's sixteen columns those that meet code `STEP` of its slots, lifted."""
    chosen = stacked(values, STEP, CODES, 2 * PIECE // CODES)
    if NATIVE:
        return (chosen.to(tl.float32) * (2.0 ** (LIFT - stands_at(STEP, BITS)))).to(tl.bfloat16)
    else:
        return chosen.to(tl.float32)


@triton.jit
def inputs_of(
    x, tokens, cols, CHUNK: tl.constexpr, BITS: tl.constexpr, CODES: tl.constexpr, STORED: tl.constexpr,
    OFFSET: tl.constexpr, NATIVE: tl.constexpr, WARPS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Load a chunk of the inputs, a group for each warp.

    Returns:
        [WARPS, 16, TOKENS] for each of the four steps of a group, and [WARPS, 1, TOKENS]: the sums of the
        inputs, times minus `OFFSET`, or minus one where zero points are `STORED`.
    """
    each: tl.constexpr = TOKENS * WARPS
    line = tl.arange(0, each)
    token = line // (8 * WARPS) * 8 + line % 8
    col = ((line // 8 % WARPS) + CHUNK * WARPS) * GROUP
    piece = tl.arange(0, LANES * PIECE)
    there = (token < tokens) & (col < cols)
    values = ()
    for index in tl.static_range(2):
        place = piece // PIECE * (2 * PIECE) + index * PIECE + piece % PIECE
        loaded = tl.load(x + (token * cols + col)[:, None] + place[None, :], mask=there[:, None], other=0.0)
        columns = parted(tl.reshape(loaded, (each, LANES, PIECE)), PIECE)
        for column in tl.static_range(PIECE):
            values = values + (columns[reversed_bits(column, PIECE)],)
    whole = tl.zeros((each, LANES), tl.float32)
    for column in tl.static_range(2 * PIECE):
        whole += values[column].to(tl.float32)
    sums = tl.sum(whole, axis=1) * ((-1.0 if STORED else -OFFSET) * (2.0**-LOWERED if NATIVE else 1.0))
    sums = tl.permute(tl.reshape(sums, (TOKENS // 8, WARPS, 8)), (1, 0, 2))
    parts = ()
    for step in tl.static_range(GROUP // 16):
        if CODES == 4:  # whose slots fill a step: of narrower codes two do
            part = lifted(values, step, BITS, CODES, NATIVE)
        else:
            first = lifted(values, 2 * step, BITS, CODES, NATIVE)
            second = lifted(values, 2 * step + 1, BITS, CODES, NATIVE)
            part = paired(first, second, each * LANES)
        part = tl.permute(tl.reshape(part, (TOKENS // 8, WARPS, 8, 16)), (1, 3, 0, 2))
        parts = parts + (tl.reshape(part, (WARPS, 16, TOKENS)),)
    return parts, tl.reshape(sums, (WARPS, 1, TOKENS))


@triton.jit
def by_chunk(tile, WARPS: tl.constexpr, EACH: tl.constexpr, CHUNKS: tl.constexpr):
    """Take rows apart: [ROWS, CHUNKS * WARPS * EACH] -> CHUNKS times [WARPS, ROWS, EACH]."""
    parts = parted(tl.permute(tl.reshape(tile, (ROWS, CHUNKS, WARPS, EACH)), (2, 0, 3, 1)), CHUNKS)
    chunks = ()
    for chunk in tl.static_range(CHUNKS):
        chunks = chunks + (parts[reversed_bits(chunk, CHUNKS)],)
    return chunks


@triton.jit
def weights_of(
    slots, third, STEP: tl.constexpr, BITS: tl.constexpr, CODES: tl.constexpr, NATIVE: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Let the codes of a step stand: [WARPS, ROWS, 64 / CODES] -> [WARPS, ROWS, 16]."""
    if CODES == 4:
        return standing(slots, third, STEP, BITS, NATIVE)
    else:
        first = standing(slots, third, 2 * STEP, BITS, NATIVE)
        second = standing(slots, third, 2 * STEP + 1, BITS, NATIVE)
        return tl.reshape(paired(first, second, WARPS * ROWS * LANES), (WARPS, ROWS, 16))


@triton.jit
def multiplied(
    tile, third, scale, zero, inputs,
    BITS: tl.constexpr, CODES: tl.constexpr, STORED: tl.constexpr, NATIVE: tl.constexpr,
    WARPS: tl.constexpr, TOKENS: tl.constexpr, CHUNKS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of rows with the inputs: [WARPS, ROWS, TOKENS], parts of sums."""
    tiles, scales = by_chunk(tile, WARPS, GROUP // CODES, HELD), by_chunk(scale, WARPS, 1, HELD)
    if BITS == 3:
        thirds = by_chunk(third, WARPS, LANES, HELD)
    if STORED:
        zeros = by_chunk(zero, WARPS, 1, HELD)
    total = tl.zeros((WARPS, ROWS, TOKENS), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        parts, sums = inputs[chunk]
        accumulator = tl.broadcast_to(sums, (WARPS, ROWS, TOKENS))
        if STORED:
            accumulator *= zeros[chunk].to(tl.float32)
        beside = tiles[chunk]
        if BITS == 3:
            beside = tl.broadcast_to(thirds[chunk][:, :, :, None], (WARPS, ROWS, LANES, 2))
            beside = tl.reshape(beside, (WARPS, ROWS, GROUP // CODES))
        for step in tl.static_range(GROUP // 16):
            left = weights_of(tiles[chunk], beside, step, BITS, CODES, NATIVE, WARPS)
            accumulator = tl.dot(left, parts[step], accumulator)
        total += scales[chunk].to(tl.float32) * accumulator
    return total


@triton.jit
def added(parts, COUNT: tl.constexpr):
    """Add up along the last axis: [rows, tokens, COUNT] -> [rows, tokens]."""
    if COUNT == 1:
        return tl.reshape(parts, parts.shape[:2])
    else:
        even, odd = tl.split(tl.reshape(parts, parts.shape[:2] + (COUNT // 2, 2)))
        return added(even + odd, COUNT // 2)


@triton.jit
def several_kernel(
    out, x, packed, third, scale, zero, bias,
    tokens, outs, cols, plane, steps,
    BITS: tl.constexpr, CODES: tl.constexpr, STORED: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr,
    NATIVE: tl.constexpr, OVERLAP: tl.constexpr,
    WARPS: tl.constexpr, TOKENS: tl.constexpr, CHUNKS: tl.constexpr, HELD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Few tokens times a weight: `out = x @ ((code - zero) * scale).T + bias`.

    Args:
        out: [tokens, outs].
        x: bfloat16 [tokens, cols], at most TOKENS; columns in multiples of GROUP, magnitudes below 2^66.
        packed: descriptor of int16 [outs, row_words], blocks [ROWS, HELD * WARPS * GROUP / CODES]; of 3 bits
            with the plane of third bits, from word `plane` of a row on.
        third: of the same, with 3 bits: blocks [ROWS, HELD * WARPS * LANES].
        scale: descriptor of float16 [outs, groups], blocks [ROWS, HELD * WARPS].
        zero: of uint8 [outs, groups], with `STORED`, alike; otherwise `OFFSET`, an integer, is that of all.
        bias: float16 [outs], with `BIAS`.
        steps: tiles of rows that a program walks over.
        CODES: codes per slot.
        NATIVE: whether bits of a code can stand for numbers; Triton's interpreter has no bfloat16.
        OVERLAP: whether the kernels before and after may overlap with this one.
        WARPS: of a program, 8: a chunk is a group for each.
        TOKENS: 8 or 16.
        CHUNKS: that columns have, HELD of them, a power of two, being copied.
    """
    begin = tl.program_id(0) * (ROWS * steps)
    after_others(OVERLAP)
    inputs = ()
    for chunk in tl.static_range(CHUNKS):
        inputs = inputs + (
            inputs_of(x, tokens, cols, chunk, BITS, CODES, STORED, OFFSET, NATIVE, WARPS, TOKENS),
        )  # fmt: skip
    line, token = tl.arange(0, ROWS), tl.arange(0, TOKENS)
    shift = tl.zeros((ROWS,), tl.float32)
    if BIAS:
        shift = tl.load(bias + tl.minimum(begin + line, outs - 1)).to(tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        first = begin + step * ROWS
        tile = packed.load([first, 0])
        high = third.load([first, plane]) if BITS == 3 else tile
        factor = scale.load([first, 0])
        offset = zero.load([first, 0]) if STORED else factor
        coming = shift
        if BIAS:  # asked for a step ahead
            coming = tl.load(bias + tl.minimum(first + ROWS + line, outs - 1)).to(tl.float32)
        total = multiplied(
            tile, high, factor, offset, inputs, BITS, CODES, STORED, NATIVE, WARPS, TOKENS, CHUNKS, HELD
        )
        y = added(tl.permute(total, (1, 2, 0)), WARPS) * (2.0**LOWERED if NATIVE else 1.0) + shift[:, None]
        row = first + line
        there = (row < outs)[:, None] & (token < tokens)[None, :]
        tl.store(out + token[None, :] * outs + row[:, None], y.to(out.dtype.element_ty), mask=there)
        shift = coming
