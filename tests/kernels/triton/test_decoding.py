"""What runs on a device alone, carried out by hand: the instructions that decode codes in registers."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from harness.kernels.triton import gemv, several, single, token

ONE = {"bfloat16": 0x4300, "float16": 0x6400}
"""Bits of 128 and of 1024, in whose mantissas the lowest bit is worth one."""


def logic(a: int, b: int, c: int, table: int) -> int:
    """`lop3`: bit i of the table is the result where the bits of a, b and c spell i."""
    found = 0
    for row in range(8):
        if table >> row & 1:
            found |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return found


def permuted(a: int, b: int, selector: int) -> int:
    """`prmt`: four bytes of the eight of two registers."""
    held = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    return int.from_bytes(bytes(held[selector >> 4 * i & 7] for i in range(4)), "little")


OPERATIONS: dict[str, Any] = {
    "prmt.b32": permuted,
    "lop3.b32": logic,
    "shl.b32": lambda a, by: a << by,
    "shr.b32": lambda a, by: a >> by,
    "mul.lo.u32": lambda a, b: a * b,
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
}


def carry_out(text: str, registers: dict[str, int]) -> dict[str, int]:
    """Run instructions on registers of 32 bits."""
    for line in re.sub(r"[{}]", "", text).split(";"):
        name, _, operands = line.strip().partition(" ")
        if name and name != ".reg":
            target, *given = [operand.strip() for operand in operands.split(",")]
            values = [registers[each] if each in registers else int(each, 0) for each in given]
            registers[target] = OPERATIONS[name](*values) & 0xFFFFFFFF
    return registers


@pytest.mark.parametrize("kind", ONE)
@pytest.mark.parametrize("p", range(8))
def test_codes_of_three_bits(p: int, kind: str) -> None:
    draw, place = random.Random(p), gemv.place_of(p, 3)
    for _ in range(50):
        low, high = [draw.getrandbits(16) for _ in range(4)], [draw.getrandbits(8) for _ in range(4)]
        given = {"$2": low[0] | low[1] << 16, "$3": low[2] | low[3] << 16}
        given["$4"] = int.from_bytes(bytes(high), "little")
        found = carry_out(gemv.decode_four(p, place, ONE[kind]), given)
        for slot in range(4):
            code = (low[slot] >> 2 * p & 3) + 4 * (high[slot] >> p & 1)
            number = found[f"${slot // 2}"] >> 16 * (slot % 2) & 0xFFFF
            assert number == ONE[kind] + (code << place)
            assert code << place < 128  # stands within the seven bits of bfloat16's mantissa


@pytest.mark.parametrize("kind", ONE)
@pytest.mark.parametrize(("bits", "p"), [(bits, p) for bits in (2, 4) for p in range(16 // bits)])
def test_codes_of_other_widths(bits: int, p: int, kind: str) -> None:
    draw, place, shift = random.Random(p), gemv.place_of(p, bits), gemv.shift_of(p, bits)
    mask = (2**bits - 1) << place
    for _ in range(50):
        words = [draw.getrandbits(16) for _ in range(2)]
        found = carry_out(gemv.decode_two(shift, mask, ONE[kind]), {"$1": words[0] | words[1] << 16})
        for slot in range(2):
            code = words[slot] >> bits * p & (2**bits - 1)
            assert found["$0"] >> 16 * slot & 0xFFFF == ONE[kind] + (code << place)
            assert code << place < 128


@pytest.mark.parametrize(
    ("bits", "p"), [(bits, p) for bits in (2, 3, 4) for p in range(4 if bits == 4 else 8)]
)
def test_codes_that_stand(bits: int, p: int) -> None:
    draw, at, wide = random.Random(p), several.stands_at(p, bits), 4 if bits == 4 else 2
    for _ in range(50):
        words, high = [draw.getrandbits(16) for _ in range(2)], [draw.getrandbits(8) for _ in range(2)]
        third = high[0] | high[1] << 8
        given = {"$1": words[0] | words[1] << 16, "$2": third | third << 16}
        found = carry_out(several.stand_asm(p, bits), given)
        for slot in range(2):
            code = words[slot] >> wide * p & (2**wide - 1)
            if bits == 3:
                code += 4 * (high[slot] >> p & 1)
            assert found["$0"] >> 16 * slot & 0xFFFF == code << at
            assert code << at < 256  # a byte alone: linear up to the lowest bit of bfloat16's exponent


def test_nibbles_of_three_bits() -> None:
    draw = random.Random(0)
    for _ in range(50):
        codes = [draw.getrandbits(3) for _ in range(32)]
        low = sum((code & 3) << 2 * column for column, code in enumerate(codes))
        high = sum((code >> 2) << column for column, code in enumerate(codes))
        given = {"$4": low & 0xFFFFFFFF, "$5": low >> 32, "$6": high}
        found = carry_out(single.nibbles_asm(), given)
        met = []
        for index in range(8):
            for byte in range(4):
                column = token.column_of(index, byte, 3)
                in_byte = found[f"${index // 2}"] & single.mask_of(index % 2, 3)
                assert in_byte >> 8 * byte + 4 * (index % 2) & 0xF == codes[column]
                met.append(column)
        assert sorted(met) == list(range(32))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_standing_codes_are_numbers(bits: int) -> None:
    for p in range(4 if bits == 4 else 8):
        at = several.stands_at(p, bits)
        for code in range(2**bits):
            worth = torch.tensor(code << at, dtype=torch.int16).view(torch.bfloat16).double().item()
            assert worth * 2.0 ** (several.LIFT.value - at) == code * 2.0**-several.LOWERED.value
