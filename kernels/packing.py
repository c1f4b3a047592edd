"""Dense bit packing of codes: 1 to 8 bits, each row padded with zero bits to whole bytes.

A row is one little-endian bit stream at every width but 3: code `j` occupies bits `j*bits` to
`(j+1)*bits - 1` of it, bit 0 being the lowest bit of byte 0. Eight codes take exactly `bits` bytes.

Rows of 3 bits are two such streams, one after the other: `ceil(cols/4)` bytes with the low two bits of every
code, then `ceil(cols/8)` bytes with the third bits. Eight codes still take three bytes, not four, and both
planes are read in loads of any size without a code that lies across two of them.

Eight codes fit one 64-bit word, so both directions of a stream work on whole words. Unpacking spreads a word
in three steps that halve the fields (8 codes -> 2x4 -> 4x2 -> 8x1), packing takes them back: about ten
bitwise passes over memory of the size of the codes, with no index tensor and no table, on any device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CODES_PER_WORD = 8
MAX_BITS = 8


def packed_columns(bits: int, cols: int) -> int:
    """Return how many bytes a row of `cols` codes takes."""
    if bits == 3:
        return packed_columns(2, cols) + packed_columns(1, cols)
    return -(-bits * cols // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into dense rows.

    Args:
        codes: uint8 [rows, cols], every value below `2**bits`.
        bits: width of a code, 1-8.

    Returns:
        uint8 [rows, packed_columns(bits, cols)], contiguous.

    Raises:
        ValueError: the width is not 1-8, or a code does not fit it.
        TypeError: the codes are not a uint8 matrix.
    """
    _check_matrix(codes, bits)
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"a code of {int(codes.max())} does not fit {bits} bits")
    if bits == MAX_BITS:
        return codes.clone(memory_format=torch.contiguous_format)
    if bits == 3:
        return torch.cat([_pack_stream(codes & 3, 2), _pack_stream(codes >> 2, 1)], dim=1)
    return _pack_stream(codes, bits)


def unpack_codes(packed: Tensor, bits: int, cols: int) -> Tensor:
    """Undo `pack_codes`.

    Args:
        packed: uint8 [rows, packed_columns(bits, cols)].
        bits: width of a code, 1-8.
        cols: number of codes per row.

    Returns:
        uint8 [rows, cols]. At 8 bits this is `packed` itself, not a copy.

    Raises:
        ValueError: the width is not 1-8, or the row length does not belong to `cols`.
        TypeError: `packed` is not a uint8 matrix.
    """
    _check_matrix(packed, bits)
    row_bytes = packed.shape[1]
    if row_bytes != packed_columns(bits, cols):
        raise ValueError(f"{row_bytes} bytes per row cannot hold {cols} codes of {bits} bits")
    if bits == MAX_BITS:
        return packed
    if bits == 3:
        low = packed_columns(2, cols)
        return _join_planes(packed[:, :low], packed[:, low:], cols)
    return _unpack_stream(packed, bits, cols)


def _pack_stream(codes: Tensor, bits: int) -> Tensor:
    rows, cols = codes.shape
    padded = F.pad(codes, (0, -cols % CODES_PER_WORD)).contiguous()
    words = _gather(padded.view(-1).view(torch.int64), bits)
    stream = words.unsqueeze(-1).view(torch.uint8)[:, :bits].reshape(rows, -1)
    return stream[:, : packed_columns(bits, cols)].contiguous()


def _unpack_stream(packed: Tensor, bits: int, cols: int) -> Tensor:
    rows, row_bytes = packed.shape
    words_per_row = -(-cols // CODES_PER_WORD)
    if row_bytes != words_per_row * bits:
        packed = F.pad(packed, (0, words_per_row * bits - row_bytes))
    stream = packed.reshape(rows * words_per_row, bits)
    padded = torch.zeros(rows * words_per_row, CODES_PER_WORD, dtype=torch.uint8, device=packed.device)
    # Column by column: the inner loop of a strided copy is then the long axis, not the 1-7 bytes of a word.
    for position in range(bits):
        padded[:, position] = stream[:, position]
    # In one dimension: inductor may give a last dimension of one element any stride, which no view takes.
    codes = _spread(padded.view(torch.int64).flatten(), bits).view(torch.uint8)
    codes = codes.view(rows, words_per_row * CODES_PER_WORD)
    return codes if words_per_row * CODES_PER_WORD == cols else codes[:, :cols].contiguous()


def _join_planes(low: Tensor, high: Tensor, cols: int) -> Tensor:
    """Put planes of two bits and of one together: uint8 [rows, cols], four codes a 32-bit word."""
    rows, row_words = low.shape
    thirds = torch.stack([high & 15, high >> 4], dim=-1).flatten(1)[:, :row_words].to(torch.int32)
    # Four copies, 7 bits apart, never overlap: bit `j` of copy `j` is 8 * j bits up, there moved to bit 2.
    thirds.mul_(0x0204081 << 2).bitwise_and_(0x04040404)
    words = low.to(torch.int32)
    words.bitwise_or_(words << 12).bitwise_and_(0x000F000F)
    words.bitwise_or_(words << 6).bitwise_and_(0x03030303)
    codes = words.bitwise_or_(thirds).flatten().view(torch.uint8).view(rows, 4 * row_words)
    return codes if 4 * row_words == cols else codes[:, :cols].contiguous()


def _spread(words: Tensor, bits: int) -> Tensor:
    """Move the eight `bits`-wide fields at the bottom of each 64-bit word to its eight bytes, in place."""
    for lane in (32, 16, 8):
        field = bits * lane // 8
        low = _repeated_mask(field, 2 * lane)
        high = (words << (lane - field)).bitwise_and_(_signed(low << lane))
        words.bitwise_and_(_signed(low)).bitwise_or_(high)
    return words


def _gather(words: Tensor, bits: int) -> Tensor:
    """Undo `_spread`, on a copy."""
    for lane in (8, 16, 32):
        field = bits * lane // 8
        low = _repeated_mask(field, 2 * lane)
        high = (words >> (lane - field)).bitwise_and_(_signed(low << field))
        words = (words & _signed(low)).bitwise_or_(high)
    return words


def _repeated_mask(width: int, every: int) -> int:
    """Return a 64-bit pattern with `width` ones at the bottom of each `every` bits."""
    return sum(((1 << width) - 1) << start for start in range(0, 64, every))


def _signed(pattern: int) -> int:
    """Return the 64-bit pattern as the int64 with the same bits."""
    return pattern - (1 << 64) if pattern >> 63 else pattern


def _check_matrix(codes: Tensor, bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"codes have 1 to {MAX_BITS} bits, not {bits}")
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise TypeError(f"expected a uint8 matrix, got {codes.dtype} of shape {tuple(codes.shape)}")
