"""The `--bits` argument: `2,3,4` or `w4a4,w3a6`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import UserError

VALID = (*range(1, 9), 16)
DEFAULT_ACT_BITS = 8
_PAIR = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Bits:
    """Weight and activation bits, 1-8 or 16 (left alone). Prints as `W4A8`."""

    weight: int
    act: int

    def __str__(self) -> str:
        return f"W{self.weight}A{self.act}"


def parse_bits(text: str, act_bits: int | None = None) -> tuple[Bits, ...]:
    """Read `--bits` and `--act-bits`; the order is kept, repetitions are dropped.

    Args:
        text: comma-separated weight widths, or `wXaY` pairs.
        act_bits: what `--act-bits` said, or None when it was not given.

    Raises:
        UserError: a width is not a number, not in 1-8 or 16; or a pair stands beside `--act-bits`.
    """
    found: list[Bits] = []
    for part in (piece.strip() for piece in text.split(",")):
        pair = _PAIR.fullmatch(part)
        if pair:
            if act_bits is not None:
                raise UserError(f"--act-bits and {part!r} both set the activation bits; give one of them")
            found.append(Bits(_width(pair[1], part), _width(pair[2], part)))
        else:
            act = DEFAULT_ACT_BITS if act_bits is None else _width(str(act_bits), f"--act-bits {act_bits}")
            found.append(Bits(_width(part, part), act))
    return tuple(dict.fromkeys(found))


def _width(digits: str, shown: str) -> int:
    if not digits:
        raise UserError("bits are missing; valid: 1-8 or 16, as in 2,3,4 or w4a4")
    if not re.fullmatch(r"\d{1,3}", digits, re.ASCII):
        raise UserError(f"bits {shown!r} is not a number; valid: 1-8 or 16, as in 2,3,4 or w4a4")
    width = int(digits)
    if width not in VALID:
        raise UserError(f"bits {shown!r} is not a width; valid: 1-8 or 16, as in 2,3,4 or w4a4")
    return width
