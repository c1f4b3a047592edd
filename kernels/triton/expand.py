"""Expansion of packed weights into a scratch matrix that a GEMM or a convolution reads.

One pass over the codes, one write of the matrix. Group scales are applied here, once per weight, and so cost
the GEMM nothing; the packed codes stay what the layer holds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from harness.kernels.triton.codes import load_words, spread


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
    words = load_words(packed, row.to(tl.int64)[:, None] * row_words, word[None, :], inside, BITS, WHOLE)
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
