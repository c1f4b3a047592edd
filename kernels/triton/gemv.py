"""Weight-only products with few tokens, on tensor cores: codes are decoded into the operand's registers.

A row of packed codes is read as slots: 16-bit words of four 4-bit or eight 2-bit codes; eight codes of 3 bits
are such a word of the first plane and a byte of the second. Code `p` of every slot meets the inputs at `p` of
the slots' columns: a product over slots for each `p`, and nothing is ever interleaved.

A code becomes a number by standing in the mantissa of 128 in bfloat16 (of 1024 in float16): one shift and
one logic operation for two codes, where a conversion has an eighth of the rate. Taking the offset off is
exact then; with scales of groups the weight is rounded to 16 bits, as it is where weights are expanded first.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def place_of(p, bits):
    """Where in the mantissa code `p` is left standing, so that neighbours share a shift."""
    if bits == 3:
        return p // 2 % 2 * 4
    return bits * p % 6 if bits < 4 else 0


@triton.constexpr_function
def shift_of(p, bits):
    """How far the low bits of code `p` are moved down from where they are stored."""
    return (2 if bits == 3 else bits) * p - place_of(p, bits)


@triton.constexpr_function
def decode_two(shift, mask, one):
    """Instructions that decode two codes, of two slots in the halves of a register."""
    move = f"shr.b32 t, $1, {shift};" if shift else "mov.b32 t, $1;"
    return f"{{ .reg .b32 t; {move} lop3.b32 $0, t, {mask * 0x10001}, {one * 0x10001}, 0xEA; }}"


@triton.constexpr_function
def decode_four(p, place, one):
    """Instructions that decode four codes of 3 bits, of slots in halves of two registers and bytes of one.

    The third bits of the even codes, or of the odd ones, are moved to bits 2, 6, 10 and 14, beside low bits
    at 0, 4, 8 and 12: what every other code decodes to needs the same instructions, which are done once.
    Two copies of bits two apart add up in between, and carry no further.
    """
    odd = p % 2
    lines = [".reg .b32 t, u, v;"]
    for half in range(2):
        word = f"${2 + half}"
        lines += [
            f"prmt.b32 u, $4, 0, {(0x4140, 0x4342)[half]};",  # two bytes, each in 16 bits
            "shl.b32 v, u, 4;",
            f"lop3.b32 u, u, v, {0x0A0A0A0A if odd else 0x05050505}, 0xA8;",  # (u | v) & mask
            f"mul.lo.u32 u, u, {2 + 8 if odd else 4 + 16};",
            f"shr.b32 t, {word}, 2;" if odd else f"mov.b32 t, {word};",
            f"lop3.b32 t, t, {0x33333333}, u, 0xE2;",  # t & mask | u & ~mask
            "shr.b32 t, t, 8;" if p >= 4 else "",
            f"lop3.b32 ${half}, t, {(7 << place) * 0x10001}, {one * 0x10001}, 0xEA;",
        ]
    return f"{{ {' '.join(lines)} }}"


@triton.jit
def decoded(window, third, P: tl.constexpr, BITS: tl.constexpr, TYPE: tl.constexpr, NATIVE: tl.constexpr):
    """Return `lead + code * 2^place`: `TYPE`, or float32 without `NATIVE`; lead is 128 or 1024."""
    place: tl.constexpr = place_of(P, BITS)
    shift: tl.constexpr = shift_of(P, BITS)
    mask: tl.constexpr = ((1 << BITS) - 1) << place
    one: tl.constexpr = 0x4300 if TYPE == tl.bfloat16 else 0x6400
    lead: tl.constexpr = 128.0 if TYPE == tl.bfloat16 else 1024.0
    if NATIVE:
        if BITS == 3:
            bits = tl.inline_asm_elementwise(
                decode_four(P, place, one), "=&r,=&r,r,r,r", [window, third], dtype=tl.int16, is_pure=True,
                pack=4,
            )  # fmt: skip
        else:
            bits = tl.inline_asm_elementwise(
                decode_two(shift, mask, one), "=r,r", [window], dtype=tl.int16, is_pure=True, pack=2
            )
        return bits.to(TYPE, bitcast=True)
    else:
        code = (window.to(tl.uint16, bitcast=True).to(tl.int32) >> shift) & mask
        if BITS == 3:
            high = (third.to(tl.uint8, bitcast=True).to(tl.int32) >> P) & 1
            code = (code & (3 << place)) | (high << (place + 2))
        return code.to(tl.float32) + lead


@triton.jit
def parted(x, COUNT: tl.constexpr):
    """Take a tensor apart along its last axis, of `COUNT`, in bit-reversed order."""
    if COUNT == 1:
        return (tl.reshape(x, x.shape[:-1]),)
    else:
        even, odd = tl.split(tl.reshape(x, x.shape[:-1] + (COUNT // 2, 2)))
        return parted(even, COUNT // 2) + parted(odd, COUNT // 2)


@triton.constexpr_function
def reversed_bits(position, count):
    """Where `parted` put a part."""
    result, size = 0, count
    while size > 1:
        result, position, size = result * 2 + position % 2, position // 2, size // 2
    return result


@triton.constexpr_function
def shrink_of(p, bits):
    """What inputs are multiplied by to meet a code that stands `place_of` bits up."""
    return 1.0 / (1 << place_of(p, bits))


@triton.jit
def each_slot(values, ROWS: tl.constexpr, SLOTS: tl.constexpr, PER: tl.constexpr):
    """Give every slot its group's value: [ROWS, SLOTS // PER] -> [ROWS, SLOTS]."""
    return tl.reshape(tl.broadcast_to(values[:, :, None], (ROWS, SLOTS // PER, PER)), (ROWS, SLOTS))


@triton.jit
def arrange_kernel(
    out, x, tokens, cols, slots,
    BITS: tl.constexpr, CODES: tl.constexpr, TOKENS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Sort the columns of x by code: `out[p, t, s] = x[t, CODES * s + p] * shrink_of(p)`.

    Args:
        out: [CODES, tokens rounded up to TOKENS, slots], of the type of x; zero where there is no token.
        x: [tokens, cols], contiguous.
    """
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    size = tl.num_programs(1) * TOKENS
    there = (slot < slots)[None, :]
    for p in tl.static_range(CODES):
        source = x + token[:, None] * cols + slot[None, :] * CODES + p
        values = tl.load(source, mask=(token < tokens)[:, None] & there, other=0.0).to(tl.float32)
        values = (values * shrink_of(p, BITS)).to(out.dtype.element_ty)
        tl.store(out + (p * size + token[:, None]) * slots + slot[None, :], values, mask=there)


@triton.jit
def gemv_kernel(
    out, x, packed, scale, offset, bias,
    tokens, outs, slots, row_words, groups,
    BITS: tl.constexpr, CODES: tl.constexpr, PER: tl.constexpr, STORED: tl.constexpr, OFFSET: tl.constexpr,
    BIAS: tl.constexpr, ALONE: tl.constexpr, NATIVE: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Few tokens times a weight on a uniform grid: `out = x @ ((code - offset) * scale).T + bias`.

    Args:
        out: [tokens, outs], bfloat16 or float16; blocks of tokens are the second axis of the grid.
        x: [tokens, cols] with `ALONE`, for one token; else as `arrange_kernel` leaves it.
        packed: int16 [outs, row_words]; of 3 bits both planes.
        scale: float16 [outs, groups].
        offset: uint8 [outs, groups], with `STORED`; otherwise `OFFSET`, an integer, is the offset of all.
        bias: float16 [outs], with `BIAS`.
        slots: cols // CODES.
        CODES: codes per slot.
        PER: slots that share a scale, a divisor of SLOTS; 0 for one scale per row.
        NATIVE: whether numbers of 16 bits are computed with; Triton's interpreter cannot.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    size = tl.num_programs(1) * TOKENS
    kind: tl.constexpr = x.dtype.element_ty
    # Without 16-bit arithmetic the one rounding of a weight comes last, and is the same.
    work: tl.constexpr = kind if NATIVE else tl.float32
    lead: tl.constexpr = 128.0 if kind == tl.bfloat16 else 1024.0
    here = row < outs
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for first in tl.range(0, slots, SLOTS, num_stages=STAGES):
        slot = first + tl.arange(0, SLOTS)
        there = slot < slots
        inside = here[:, None] & there[None, :]
        start = packed + row[:, None] * row_words
        window = tl.load(start + slot[None, :], mask=inside, other=0)
        third = window
        if BITS == 3:
            second = start.to(tl.pointer_type(tl.int8), bitcast=True) + 2 * slots
            third = tl.load(second + slot[None, :], mask=inside, other=0)
        if PER > 0:
            group = first // PER + tl.arange(0, SLOTS // PER)
            where = row[:, None] * groups + group[None, :]
            known = here[:, None] & (group < groups)[None, :]
            factor = tl.load(scale + where, mask=known, other=0.0).to(tl.float32).to(kind).to(work)
            factor = each_slot(factor, ROWS, SLOTS, PER)
            if STORED:
                zero = tl.load(offset + where, mask=known, other=0).to(tl.float32)
        elif STORED:
            zero = tl.load(offset + row, mask=here, other=0).to(tl.float32)[:, None]
        if ALONE:
            source = x + slot[:, None] * CODES + tl.arange(0, CODES)[None, :]
            parts = parted(tl.load(source, mask=there[:, None], other=0.0), CODES)
        for p in tl.static_range(CODES):
            if ALONE:
                part = parts[reversed_bits(p, CODES)].to(work)
                part = (part * tl.full((1,), shrink_of(p, BITS), tl.float32).to(work)).to(kind)
                right = tl.broadcast_to(part[:, None], (SLOTS, TOKENS))
            else:
                source = x + (p * size + token[None, :]) * slots + slot[:, None]
                right = tl.load(source, mask=there[:, None], other=0.0)
            left = decoded(window, third, p, BITS, kind, NATIVE)
            if STORED:
                taken = (zero * (1 << place_of(p, BITS)) + lead).to(work)
                left = left - (each_slot(taken, ROWS, SLOTS, PER) if PER > 0 else taken)
            else:
                taken = tl.full((1, 1), lead + OFFSET * (1 << place_of(p, BITS)), tl.float32)
                left = left - taken.to(work)
            if PER > 0:
                left = left * factor
            total = tl.dot(left.to(kind).to(work), right.to(work), total)
    if PER == 0:
        total *= tl.load(scale + row, mask=here, other=0.0).to(tl.float32)[:, None]
    if BIAS:
        total += tl.load(bias + row, mask=here, other=0.0).to(tl.float32)[:, None]
    target = out + token[None, :].to(tl.int64) * outs + row[:, None]
    tl.store(target, total.to(out.dtype.element_ty), mask=here[:, None] & (token < tokens)[None, :])
