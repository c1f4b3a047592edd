"""Expansion of packed weights into a scratch matrix that a GEMM or a convolution reads.

One pass over the codes, one write of the matrix. Group scales are applied here, once per weight, and so cost
the GEMM nothing; the packed codes stay what the layer holds.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from harness.kernels.triton.codes import load_words, spread
from harness.kernels.triton.quantize import halves, power_of_two_above


@triton.jit
def repeated(x, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Give each of a word's eight codes its value: [ROWS, WORDS] -> [ROWS, WORDS * 8]."""
    return tl.reshape(tl.broadcast_to(x[:, :, None], (ROWS, WORDS, 8)), (ROWS, WORDS * 8))


@triton.jit
def expand_kernel(
    out, packed, scale, offset, table, rows_of,
    rows, cols, row_words, group, scale_row_stride, fixed_offset, multiplier,
    BITS: tl.constexpr, WHOLE: tl.constexpr, TABLE: tl.constexpr, OFFSET: tl.constexpr, FLAT: tl.constexpr,
    SCALED: tl.constexpr, EXPONENT: tl.constexpr, WORDWISE: tl.constexpr, SCATTER: tl.constexpr,
    ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Write `(multiplier * code - offset) * scale`, or `table[code] * scale`, in the type of `out`.

    Args:
        out: [all rows, cols], contiguous; int8 (products, exact) or a float type.
        packed: rows of words, see `load_words`.
        scale: one per (row, group), read with `SCALED`: a float, an integer, or with `EXPONENT` the exponent
            of a power of two.
        offset: alike, read with `OFFSET == "stored"`.
        table: `TABLE == "shared"`: float [2**BITS]; `"rows"`: float [rows, 2**BITS].
        rows_of: int64 [rows], where each row goes in `out`, read with `SCATTER`.
        rows: rows of codes.
        cols: codes per row.
        row_words: elements of `packed` per row.
        group: columns that share a scale; with `FLAT`, run of the row-major flattened matrix.
        scale_row_stride: scales per row.
        fixed_offset: the offset with `OFFSET == "fixed"`.
        WORDWISE: whether no group ends inside a word (and `FLAT` is off).
        multiplier: 2 for half-integer offsets (`fixed_offset` is doubled, too), else 1.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    words_per_row = (cols + 7) // 8
    inside = (row < rows)[:, None] & (word < words_per_row)[None, :]
    words = load_words(packed, row.to(tl.int64)[:, None], row_words, word[None, :], inside, BITS, WHOLE)
    codes = spread(words, BITS, ROWS, WORDS)
    col = tl.program_id(1) * WORDS * 8 + tl.arange(0, WORDS * 8)
    valid = (row < rows)[:, None] & (col < cols)[None, :]
    if WORDWISE:
        # All eight codes of a word share a group: one load for them.
        where = row.to(tl.int64)[:, None] * scale_row_stride + (word * 8 // group)[None, :]
        present = inside
    elif FLAT:
        present = valid
        where = (row.to(tl.int64)[:, None] * cols + col[None, :]) // group
    else:
        present = valid
        where = row.to(tl.int64)[:, None] * scale_row_stride + (col // group)[None, :]
    if TABLE == "shared":
        values = tl.load(table + codes)
    elif TABLE == "rows":
        values = tl.load(table + row[:, None] * (1 << BITS) + codes, mask=valid, other=0)
    else:
        values = codes * multiplier
        if OFFSET == "stored":
            zero = tl.load(offset + where, mask=present, other=0)
            if WORDWISE:
                zero = repeated(zero, ROWS, WORDS)
            # An integer zero point keeps integers; a float one makes the difference float.
            values = values - (zero.to(tl.int32) if zero.dtype.is_int() else zero.to(tl.float32))
        else:
            values = values - fixed_offset
    if SCALED:
        factor = tl.load(scale + where, mask=present, other=0)
        if WORDWISE:
            factor = repeated(factor, ROWS, WORDS)
        if EXPONENT:
            power = ((factor.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
            values = values.to(tl.float32) * power
        elif factor.dtype.is_int():
            values = values * factor.to(tl.int32)
        else:
            values = values.to(tl.float32) * factor.to(tl.float32)
    if not out.dtype.element_ty.is_int():
        values = values.to(tl.float32)
    target = row.to(tl.int64)
    if SCATTER:
        target = tl.load(rows_of + row, mask=row < rows, other=0)
    tl.store(out + target[:, None] * cols + col[None, :], values.to(out.dtype.element_ty), mask=valid)


@triton.jit
def loaded(
    packed, exponent, offset, row, there, begin, end, row_words, groups,
    BITS: tl.constexpr, WHOLE: tl.constexpr, GROUP: tl.constexpr, STORED: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Load WORDS words of rows, exponents of their groups, and offsets where they are stored."""
    word = begin + tl.arange(0, WORDS)
    inside = there[:, None] & (word < end)[None, :]
    words = load_words(packed, row.to(tl.int64)[:, None], row_words, word[None, :], inside, BITS, WHOLE)
    group = begin * 8 // GROUP + tl.arange(0, WORDS * 8 // GROUP)
    where = row.to(tl.int64)[:, None] * groups + group[None, :]
    present = there[:, None] & (group * GROUP < end * 8)[None, :]
    power = tl.load(exponent + where, mask=present, other=0)
    zero = power
    if STORED:
        zero = tl.load(offset + where, mask=present, other=0)
    return words, power, zero


@triton.jit
def units_kernel(
    out, col_scale, bias_out, up_out, packed, exponent, offset, row_scale, bias, up, gains,
    rows, cols, span, row_words, groups, out_stride, fixed_offset, rank, worth, bits_of_one,
    BITS: tl.constexpr, WHOLE: tl.constexpr, GROUP: tl.constexpr, STORED: tl.constexpr,
    MULTIPLIER: tl.constexpr, BIAS: tl.constexpr, BRANCH: tl.constexpr, RANK: tl.constexpr,
    OVERLAP: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Write `(MULTIPLIER * code - offset) * 2^exponent` as float8, and all else a float8 product reads.

    Args:
        out: float8_e4m3fn [rows, out_stride], of which `cols` are written, and 4 * RANK more with
            `BRANCH == "append"`: the up-projection in units of `col_scale`, over the directions' gains, as
            halves [high, high, low, low]: beside those of `scaled_kernel` all four products of two halves.
        col_scale: float32 [rows]: `worth * row_scale`, and with "append" at least what lets the branch fit.
            Where that is more the units are as much smaller, which is exact unless the row holds exponents
            so low that nothing is left below them; the row is then nearly all branch.
        bias_out: [rows], `bias` in another type; with `BIAS`.
        up_out: [rows, RANK], `up` in another type, zero from `rank` on; with `BRANCH == "copy"`.
        packed: rows of words, see `load_words`.
        exponent: int8 [rows, groups].
        offset: alike, an integer each, read with `STORED`; else it is `fixed_offset`.
        row_scale: float [rows].
        up: float16 [rows, rank]; with `BRANCH` other than "none".
        gains: float32 [RANK], see `gain_of`; with "append".
        span: words of a row that a program expands, a multiple of WORDS.
        bits_of_one: those of 1.0: an argument, since an instruction holds one constant and the mask is it.
        GROUP: columns that share an exponent, a power of two from 8 to WORDS * 8.
        OVERLAP: whether this kernel may begin before what it reads gains from ends.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    value = tl.load(row_scale + row, mask=there, other=0.0).to(tl.float32) * worth
    shrink = tl.full((ROWS,), 1.0, tl.float32)
    direction = tl.arange(0, RANK)
    if BRANCH == "append":
        held = there[:, None] & (direction < rank)[None, :]
        factor = tl.load(up + row[:, None] * rank + direction[None, :], mask=held, other=0.0).to(tl.float32)
    first = tl.program_id(1) * span
    end = tl.minimum(first + span, (cols + 7) // 8)
    words, power, zero = loaded(
        packed, exponent, offset, row, there, first, end, row_words, groups, BITS, WHOLE, GROUP, STORED, WORDS
    )  # fmt: skip
    if OVERLAP:
        gdc_wait()
    if BRANCH == "append":
        factor *= tl.math.div_rn(1.0, tl.load(gains + direction))[None, :]
        need = tl.max(tl.abs(factor), axis=1) * (1.0 / 440.0)
        nothing = value == 0.0
        ratio = tl.math.div_rn(need, tl.where(nothing, 1.0, value))
        grow = power_of_two_above(tl.maximum(ratio, tl.where(nothing, 1e-30, 1.0)))
        value = tl.where(nothing, 1.0, value) * grow
        shrink = tl.where(nothing, 0.0, 1.0 / grow)
    kind: tl.constexpr = out.dtype.element_ty
    start = out + row.to(tl.int64) * out_stride
    for begin in range(first, end, WORDS):
        step = ((power.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True) * shrink[:, None]
        if STORED:
            offsets = zero.to(tl.float32)
        else:
            offsets = tl.zeros(step.shape, tl.float32) + fixed_offset
        # A code in the mantissa of a number from 1 to 2 is a float without a conversion: 1 + code / 256. What
        # follows is exact: small integers times powers of two.
        shift = (tl.arange(0, 8) * BITS).to(tl.uint64)
        codes = ((words.to(tl.uint64) << 15)[:, :, None] >> shift[None, None, :]).to(tl.int32)
        raised = ((codes & (((1 << BITS) - 1) << 15)) | bits_of_one).to(tl.float32, bitcast=True)
        raised = tl.reshape(raised, (ROWS, WORDS * 8 // GROUP, GROUP))
        units = tl.fma(
            raised,
            tl.broadcast_to((step * (256.0 * MULTIPLIER))[:, :, None], raised.shape),
            tl.broadcast_to((-(offsets + 256.0 * MULTIPLIER) * step)[:, :, None], raised.shape),
        )
        col = begin * 8 + tl.arange(0, WORDS * 8)
        target = start[:, None] + col[None, :]
        tl.store(
            target, tl.reshape(units.to(kind), (ROWS, WORDS * 8)), mask=there[:, None] & (col < cols)[None, :]
        )
        words, power, zero = loaded(
            packed, exponent, offset, row, there, begin + WORDS, end, row_words, groups, BITS, WHOLE, GROUP,
            STORED, WORDS,
        )  # fmt: skip
    if tl.program_id(1) == 0:
        tl.store(col_scale + row, value, mask=there)
        if BIAS:
            tl.store(
                bias_out + row, tl.load(bias + row, mask=there).to(bias_out.dtype.element_ty), mask=there
            )
        if BRANCH == "copy":
            held = there[:, None] & (direction < rank)[None, :]
            whole = tl.load(up + row[:, None] * rank + direction[None, :], mask=held, other=0.0)
            target = up_out + row[:, None] * RANK + direction[None, :]
            tl.store(target, whole.to(up_out.dtype.element_ty), mask=there[:, None])
        if BRANCH == "append":
            high, low = halves(tl.math.div_rn(factor, tl.broadcast_to(value[:, None], factor.shape)))
            target = start[:, None] + cols + direction[None, :]
            tl.store(target, high.to(kind), mask=there[:, None])
            tl.store(target + RANK, high.to(kind), mask=there[:, None])
            tl.store(target + 2 * RANK, low.to(kind), mask=there[:, None])
            tl.store(target + 3 * RANK, low.to(kind), mask=there[:, None])
