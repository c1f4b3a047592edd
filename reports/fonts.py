"""The font of pictures: DejaVu Sans as matplotlib ships it, so that pictures are alike everywhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from harness.reports.formats.layout import clean

_UNKNOWN = "□"


def font_path(*, bold: bool = False) -> Path:
    """Return the path of the font file."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name


@cache
def pillow_font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font at `size` pixels for Pillow."""
    return ImageFont.truetype(str(font_path(bold=bold)), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _known() -> frozenset[int]:
    """Return the code points the font has glyphs for."""
    return frozenset(FT2Font(str(font_path())).get_charmap())


def drawable(text: str) -> str:
    """Return `text` in one line of characters the font can draw; others become boxes, without a warning."""
    return "".join(char if ord(char) in _known() else _UNKNOWN for char in clean(text))


def literal(text: str) -> str:
    """Return drawable `text` for matplotlib, which otherwise reads formulas between dollar signs."""
    return drawable(text).replace("\\", "∖").replace("$", r"\$")
