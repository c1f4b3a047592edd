"""Reading packed codes inside a kernel: eight codes of `bits` bits are one word, `bits` bytes of a row.

The bytes of a word lie together, save at 3 bits, where two are in the first plane and one in the second.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_planes(packed, row, row_words, word, mask):
    """Load words of eight codes of 3 bits, as `load_words` does: code `j` at bit `3 * j`.

    Two thirds of a row, rounded down, are its first plane at every number of columns. Where that ends within
    a word, what stands for the missing codes is of the other plane.
    """
    start = packed + row * row_words
    high = tl.load(start + (2 * row_words // 3 + word), mask=mask, other=0).to(tl.uint32)
    low = tl.load(start + 2 * word, mask=mask, other=0).to(tl.uint32)
    low |= tl.load(start + 2 * word + 1, mask=mask, other=0).to(tl.uint32) << 12
    # Halves of the fields are moved apart. A move by less than a field's width would leave bits behind: what
    # it adds is added instead.
    low += (low & 0x0F00F0) * 3
    low += low & 0x30C30C
    high = (high | high << 8) & 0x00F00F
    high = (high | high << 4) & 0x0C30C3
    high = (high | high << 2) & 0x249249
    return low | high << 2


@triton.jit
def load_words(packed, row, row_words, word, mask, BITS: tl.constexpr, WHOLE: tl.constexpr):
    """Load words of eight codes each.

    Args:
        packed: pointer to uint8, or with `WHOLE` to integers of `BITS` bytes (1, 2, 4 or 8).
        row: index of the row, int64 [rows, 1].
        row_words: elements of `packed` per row.
        word: index of the word in its row, int32 [1, words].
        mask: which words exist, [rows, words].
        BITS: width of a code, 1-8.
        WHOLE: whether a word is one load, which it is not at 3 bits; otherwise `BITS` loads of a byte.

    Returns:
        uint32 [rows, words] up to 4 bits, uint64 above; code `j` of a word at bit `j * BITS`.
    """
    wide: tl.constexpr = tl.uint32 if BITS <= 4 else tl.uint64
    if BITS == 3:
        return load_planes(packed, row, row_words, word, mask)
    elif WHOLE:
        value = tl.load(packed + row * row_words + word, mask=mask, other=0)
        if BITS == 1:
            return value.to(tl.uint8, bitcast=True).to(wide)
        elif BITS == 2:
            return value.to(tl.uint16, bitcast=True).to(wide)
        else:
            return value.to(wide, bitcast=True)
    else:
        first = packed + row * row_words + word * BITS
        words = tl.load(first, mask=mask, other=0).to(wide)
        for byte in tl.static_range(1, BITS):
            words |= tl.load(first + byte, mask=mask, other=0).to(wide) << (8 * byte)
        return words


@triton.jit
def spread(words, BITS: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Take words apart: [ROWS, WORDS] -> codes int32 [ROWS, WORDS * 8]."""
    shift = (tl.arange(0, 8) * BITS).to(words.dtype)
    codes = (words[:, :, None] >> shift[None, None, :]).to(tl.int32) & ((1 << BITS) - 1)
    return tl.reshape(codes, (ROWS, WORDS * 8))
