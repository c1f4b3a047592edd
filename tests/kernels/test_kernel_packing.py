"""Dense packing: the layouts written out by hand, and round trips at every width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.kernels.packing import pack_codes, packed_columns, unpack_codes


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, int]:
    bits = draw(st.integers(1, 8))
    rows, cols = draw(st.integers(1, 5)), draw(st.integers(1, 41))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, cols), generator=generator, dtype=torch.uint8), bits


def bit_stream(row: list[int], bits: int) -> bytes:
    """The layout by its definition: code j occupies bits j*bits.. of one little-endian number."""
    number = sum(code << (bits * j) for j, code in enumerate(row))
    return number.to_bytes(-(-bits * len(row) // 8), "little")


def row_bytes(row: list[int], bits: int) -> bytes:
    """A row of 3 bits is the stream of its low two bits and that of its third, any other is one stream."""
    if bits == 3:
        return bit_stream([code % 4 for code in row], 2) + bit_stream([code // 4 for code in row], 1)
    return bit_stream(row, bits)


@given(matrices())
def test_layout_is_little_endian_streams_per_row(case: tuple[Tensor, int]) -> None:
    codes, bits = case
    packed = pack_codes(codes, bits)
    assert [bytes(row) for row in packed.tolist()] == [row_bytes(row, bits) for row in codes.tolist()]
    assert packed.shape[1] == packed_columns(bits, codes.shape[1])


@given(matrices())
def test_round_trip(case: tuple[Tensor, int]) -> None:
    codes, bits = case
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, codes.shape[1]), codes)


@given(matrices())
def test_round_trip_of_other_memory_layouts(case: tuple[Tensor, int]) -> None:
    codes, bits = case
    transposed = codes.t().contiguous().t()
    packed = pack_codes(transposed, bits)
    wider = torch.zeros(packed.shape[0], packed.shape[1] + 3, dtype=torch.uint8)
    wider[:, 1:-2] = packed
    assert torch.equal(unpack_codes(wider[:, 1:-2], bits, codes.shape[1]), codes)


def test_three_bits_are_a_plane_of_two_and_a_plane_of_one() -> None:
    codes = torch.arange(8, dtype=torch.uint8).view(1, 8)
    # Low bits 0 1 2 3 twice, four codes a byte from its lowest bits; the third bit is set from code 4 on.
    assert pack_codes(codes, 3).tolist() == [[0b11_10_01_00, 0b11_10_01_00, 0b1111_0000]]
    # Nine codes of 5: both planes are padded to whole bytes.
    nine = torch.full((1, 9), 5, dtype=torch.uint8)
    assert pack_codes(nine, 3).tolist() == [[0b01_01_01_01, 0b01_01_01_01, 0b01, 0b1111_1111, 0b1]]
    assert packed_columns(3, 1000) == 375


def test_two_thirds_of_a_row_of_three_bits_are_its_first_plane() -> None:
    """What kernels find the second plane by, at every number of columns."""
    for cols in range(1, 200):
        assert packed_columns(3, cols) * 2 // 3 == packed_columns(2, cols) == -(-cols // 4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_pair_of_neighbours(bits: int) -> None:
    values = torch.arange(2**bits)
    codes = torch.cartesian_prod(values, values).to(torch.uint8)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, 2), codes)


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_padding_bits_are_zero(bits: int) -> None:
    codes = torch.full((2, 5), 2**bits - 1, dtype=torch.uint8)
    used = 5 * bits % 8
    last = 5 if bits == 3 else used  # of 3 bits the second plane comes last
    assert int(pack_codes(codes, bits)[0, -1]) == (1 << last) - 1


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_refuses_other_widths(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        pack_codes(torch.zeros(1, 1, dtype=torch.uint8), bits)


def test_refuses_a_code_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="4 does not fit 2 bits"):
        pack_codes(torch.tensor([[1, 4]], dtype=torch.uint8), 2)


@pytest.mark.parametrize("codes", [torch.zeros(2, 2), torch.zeros(4, dtype=torch.uint8)])
def test_refuses_what_is_no_uint8_matrix(codes: Tensor) -> None:
    with pytest.raises(TypeError, match="uint8 matrix"):
        pack_codes(codes, 4)


def test_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="cannot hold 9 codes"):
        unpack_codes(torch.zeros(1, 3, dtype=torch.uint8), 3, 9)
