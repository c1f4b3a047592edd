"""The contact sheet: the same prompts by every method and width, the reference first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, UnidentifiedImageError

from harness.reports.fonts import drawable, pillow_font
from harness.reports.formats.layout import bits_label, method_label
from harness.reports.record import Record
from harness.reports.rows import REFERENCE, mark_twins, row

PROMPTS = 8
_TILE = 128
_GAP = 4
_MARGIN = 16
_LABEL = 176
_SECTION = 12
_CAPTION_LINES = 9
_LINE = 15
_LARGEST_SIDE = 4096
_INK, _SOFT, _BAD, _PAPER, _EMPTY = "#1a1c1f", "#5b6470", "#b3261e", "#ffffff", "#eceef1"


def block_images(cell: Path) -> Iterator[tuple[str, Path]]:
    """Yield the images of a cell's finished blocks in the order of the prompts, as (`NNNN/MM.png`, path)."""
    for path in sorted((cell / "blocks").glob("*/*.png")):
        name = f"{path.parent.name}/{path.name}"
        if re.fullmatch(r"\d+/\d+\.png", name) and path.resolve().is_relative_to(cell.resolve()):
            yield name, path


def contact_sheet(
    run_folder: Path, records: Sequence[Record], captions: Sequence[str], title: str
) -> Image.Image | None:
    """Draw the sheet of one model: a row per cell, a column per prompt.

    Args:
        run_folder: where `cells/KEY/blocks/NNNN/MM.png` are.
        records: the cells, sorted as in tables. Rows stand reference first, then wide to narrow weights,
            then by effective bits, so that quality falls from top to bottom.
        captions: texts of the first prompts, in order; missing ones are numbered.
        title: what stands above the sheet.

    Returns:
        The sheet, RGB; or None when no cell has any image.

    Raises:
        ValueError: an image cannot be read; the line names its file.
    """
    ordered = sorted(records, key=_descending)  # stable: effective bits decide inside a width
    images = {record.identity.cell: dict(_first(run_folder, record)) for record in ordered}
    names = sorted({name for found in images.values() for name in found})[:PROMPTS]
    if not names:
        return None
    heads = _wrapped_captions(captions, len(names))
    top = _MARGIN + 30 + max(map(len, heads)) * _LINE + 6
    sections = len({_descending(record) for record in ordered})
    height = top + len(ordered) * (_TILE + _GAP) + (sections - 1) * _SECTION + _MARGIN
    sheet = Image.new("RGB", (2 * _MARGIN + _LABEL + len(names) * (_TILE + _GAP), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), drawable(title), _INK, pillow_font(17, bold=True))
    for index, lines in enumerate(heads):
        for number, line in enumerate(lines, start=-len(lines)):
            draw.text((_column(index), top - 6 + number * _LINE), line, _SOFT, pillow_font(12))
    flats = {record.identity.cell: row(record) for record in ordered}
    mark_twins(flats.values())
    y = top
    for previous, record in zip([None, *ordered], ordered, strict=False):
        if previous is not None and _descending(previous) != _descending(record):
            draw.line((_MARGIN, y + 3, sheet.width - _MARGIN, y + 3), "#c9ced6", 1)
            y += _SECTION
        _draw_label(draw, y, flats[record.identity.cell])
        for index, name in enumerate(names):
            _paste(sheet, draw, (_column(index), y), images[record.identity.cell].get(name))
        y += _TILE + _GAP
    return sheet


def _column(index: int) -> int:
    """Return where a column of images begins."""
    return _MARGIN + _LABEL + index * (_TILE + _GAP)


def _wrapped_captions(captions: Sequence[str], count: int) -> list[list[str]]:
    """Return the lines above each column; a prompt without a caption is numbered."""
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    texts = [*captions[:count], *(f"prompt {index + 1}" for index in range(len(captions), count))]
    return [_wrapped(measure, text, _TILE - 4, _CAPTION_LINES, 12) for text in texts]


def _descending(record: Record) -> tuple[bool, int]:
    """Return the key of a section: the reference, then nominal weight bits from wide to narrow."""
    return record.identity.method != REFERENCE, -record.identity.wbits


def _first(run_folder: Path, record: Record) -> Iterator[tuple[str, Path]]:
    """Yield the first images of a record's cell; the key is checked, since it becomes a path."""
    key = record.identity.cell
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", key):
        raise ValueError(f"cell key {key!r:.60} cannot be the name of a folder")
    return islice(block_images(run_folder / "cells" / key), PROMPTS)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, width: int, lines: int, size: int) -> list[str]:
    """Break `text` at spaces (inside words where it must) into at most `lines` lines of `width` pixels."""
    font = pillow_font(size)
    done, line = [], ""
    for word in drawable(text).split():
        rest = f"{line} {word}" if line else word
        if line and draw.textlength(rest, font) > width:
            done.append(line)
            rest = word
        while draw.textlength(rest, font) > width:
            cut = next(
                end for end in range(len(rest) - 1, 0, -1) if draw.textlength(rest[:end], font) <= width
            )
            done.append(rest[:cut])
            rest = rest[cut:]
        line = rest
    done.append(line)
    if len(done) > lines:
        last = done[lines - 1]
        while last and draw.textlength(last + "…", font) > width:
            last = last[:-1]
        done = [*done[: lines - 1], last + "…"]
    return done


def _draw_label(draw: ImageDraw.ImageDraw, y: int, flat: dict[str, Any]) -> None:
    """Write what a row is and how good it is beside its images."""
    lines = [(line, _INK, True) for line in _wrapped(draw, method_label(flat), _LABEL - 24, 2, 14)]
    bits = bits_label(flat)
    if flat["effective_bits"] is not None and flat["method"] != REFERENCE:
        bits += f" · {flat['effective_bits']:.2f} eff. bits"
    lines.append((bits, _INK, False))
    if flat["psnr"] is not None:
        lines.append((f"PSNR {flat['psnr']:.1f} dB", _SOFT, False))
    if flat["prompt_accuracy"] is not None:
        lines.append((f"accuracy {flat['prompt_accuracy']:.3f}", _SOFT, False))
    if flat["state"] != "ok":
        lines.append((flat["state"], _BAD, True))
    start = y + (_TILE - 18 * len(lines)) // 2
    for number, (line, colour, bold) in enumerate(lines):
        draw.text((_MARGIN, start + 18 * number), line, colour, pillow_font(13, bold=bold))


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], path: Path | None) -> None:
    """Put an image, or an empty tile, at `place`."""
    if path is not None:
        sheet.paste(_tile(path), place)
        return
    x, y = place
    draw.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), _EMPTY)
    draw.text((x + _TILE // 2, y + _TILE // 2), "no image", _SOFT, pillow_font(12), anchor="mm")


@contextmanager
def open_png(path: Path) -> Iterator[Image.Image]:
    """Open an image of a run, which is data: only as PNG, and not when it is suspiciously large.

    Raises:
        ValueError: it cannot be read, here or while it is used; the line names the file.
    """
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            if max(opened.size) > _LARGEST_SIDE:
                raise ValueError(f"{path}: {opened.size[0]} x {opened.size[1]} pixels are too many")
            yield opened
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable PNG") from error


def _tile(path: Path) -> Image.Image:
    """Read an image and bring it to the size of a tile: whole multiples nearest, anything else filtered."""
    with open_png(path) as opened:
        image = opened.convert("RGB")
    if image.width == image.height and _TILE % image.width == 0:
        return image.resize((_TILE, _TILE), Image.Resampling.NEAREST)
    image.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (_TILE, _TILE), _EMPTY)
    tile.paste(image, ((_TILE - image.width) // 2, (_TILE - image.height) // 2))
    return tile
