"""What is timed: the shapes of linear layers, and the formats of weights and inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import UserError, unknown

RANK = 32
"""Of the low-rank branch beside 4-bit weights and inputs (SVDQuant's)."""
GROUP = 64


@dataclass(frozen=True)
class Shape:
    """A linear layer.

    Attributes:
        name: what tables call it.
        k: input features.
        n: output features.
    """

    name: str
    k: int
    n: int


FLUX = (
    Shape("qkv", 3072, 9216),
    Shape("out", 3072, 3072),
    Shape("ffn up", 3072, 12288),
    Shape("ffn down", 12288, 3072),
    Shape("single out", 15360, 3072),
)
"""The linear layers of FLUX.1's blocks, which see 4,096 image and 512 text tokens at 1024²."""
MODULATION = (Shape("modulation", 3072, 18432),)
"""FLUX.1's AdaLN linear (six vectors of 3,072), which sees one row per image."""
SETS = {"flux": FLUX, "modulation": MODULATION}
FLUX_ROWS = 4608
FEW_ROWS = (1, 16)

_FORMAT = re.compile(r"w([1-8])a([1-8]|16)", re.ASCII)
_SHAPE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})", re.ASCII)
FORMATS = ("w4a4", "w4a8", "w3a8", "w2a8", "w4a16", "w3a16", "w2a16")


@dataclass(frozen=True)
class NumberFormat:
    """Widths of a packed layer's numbers.

    Attributes:
        w_bits: of a weight.
        a_bits: of an input, 16 for none.
    """

    w_bits: int
    a_bits: int

    @property
    def name(self) -> str:
        """As the command line spells it: `w4a4`."""
        return f"w{self.w_bits}a{self.a_bits}"

    @property
    def weight_only(self) -> bool:
        """Whether inputs stay in 16 bits."""
        return self.a_bits > 8

    @property
    def rank(self) -> int:
        """Rank of the branch that is timed with it: SVDQuant's where inputs have 4 bits, else none."""
        return RANK if self.a_bits <= 4 else 0


def parse_formats(text: str) -> tuple[NumberFormat, ...]:
    """Read formats separated by commas; raises UserError for one that makes no sense."""
    found = []
    for part in _parts(text):
        match = _FORMAT.fullmatch(part)
        if match is None:
            raise unknown("format", part, FORMATS)
        found.append(NumberFormat(int(match[1]), int(match[2])))
    if not found:
        raise UserError("--formats names no format")
    return tuple(dict.fromkeys(found))


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Read shapes separated by commas: a set's name, or IN x OUT as `3072x9216`.

    Raises:
        UserError: neither.
    """
    found: list[Shape] = []
    for part in _parts(text):
        match = _SHAPE.fullmatch(part)
        if match is not None:
            found.append(Shape(part, int(match[1]), int(match[2])))
        elif part in SETS:
            found += SETS[part]
        else:
            raise unknown("shape", part, (*SETS, "3072x9216"))
    if not found:
        raise UserError("--shapes names no shape")
    return tuple(dict.fromkeys(found))


def _parts(text: str) -> list[str]:
    return [part.strip().lower() for part in text.split(",") if part.strip()]
