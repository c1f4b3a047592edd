"""Reading dense bit streams inside a kernel: eight codes of `bits` bits are one word of `bits` bytes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_words(packed, row_offset, word, mask, BITS: tl.constexpr, WHOLE: tl.constexpr):
    """Load words of eight codes each.

    Args:
        packed: pointer to uint8, or with `WHOLE` to integers of `BITS` bytes (1, 2, 4 or 8).
        row_offset: first element of each row, int64 [rows, 1].
        word: index of the word in its row, int32 [1, words].
        mask: which words exist, [rows, words].
        BITS: width of a code, 1-8.
        WHOLE: whether a word is one load; otherwise `BITS` loads of a byte.

    Returns:
        uint32 [rows, words] up to 4 bits, uint64 above; code `j` of a word at bit `j * BITS`.
    """
    wide: tl.constexpr = tl.uint32 if BITS <= 4 else tl.uint64
    if WHOLE:
        value = tl.load(packed + row_offset + word, mask=mask, other=0)
        if BITS == 1:
            return value.to(tl.uint8, bitcast=True).to(wide)
        elif BITS == 2:
            return value.to(tl.uint16, bitcast=True).to(wide)
        else:
            return value.to(wide, bitcast=True)
    else:
        first = packed + row_offset + word * BITS
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
