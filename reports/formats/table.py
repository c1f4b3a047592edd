"""The table on the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from harness.reports.formats.layout import LEFT_ALIGNED, STRONG_NOTE, Document, Entry, Sheet, lay_out
from harness.reports.record import Record
from harness.reports.rows import REFERENCE

Drawing = Callable[[Sheet, Sequence[str], Console], Text | Table]
WIDTH = 160
"""Columns of characters assumed when the table does not go to a terminal."""

_GIVEN_UP_FIRST = (
    "kid", "quantize_s", "fid", "lpips", "lpips_scene", "ssim", "peak_bytes", "weight_bytes", "step_ms",
)  # fmt: skip
_LONGEST_METHOD = 32
_GAP = "  "
_PLAIN = str.maketrans({"↑": "", "↓": "", "×": "x", "–": "-", "†": "+", "‡": "#", "…": "...", "·": "-"})


def render(records: Iterable[Record]) -> str:
    """Return the table as plain text, `WIDTH` characters wide at most."""
    return render_document(lay_out(records))


def render_document(document: Document) -> str:
    """Return tables and footnotes as plain text, `WIDTH` characters wide at most."""
    out = io.StringIO()
    print_document(document, Console(file=out, width=WIDTH, color_system=None, force_terminal=False), _plain)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def render_terminal(records: Iterable[Record], console: Console) -> None:
    """Print one table per model and the footnotes, fitted to the console's width.

    On a narrow console whole columns give way, least important first, and a footnote names them.
    """
    document = lay_out(records)
    if document.sheets and console.color_system is not None:
        document = replace(document, notes=(*document.notes, STRONG_NOTE))
    print_document(document, console)


def print_document(document: Document, console: Console, table: Drawing | None = None) -> None:
    """Print tables and footnotes as `render_terminal` does, tables by `table` if it is given."""
    draw = table or _table
    hidden: dict[str, None] = {}
    for sheet in document.sheets:
        keys = _fitting_columns(sheet, console)
        hidden |= dict.fromkeys(column.heading for column in sheet.columns if column.key not in keys)
        console.print(_text(sheet.title, console, "bold"))
        console.print(draw(sheet, keys, console))
        console.print()
    notes = list(document.notes)
    if hidden:
        notes.append(f"Left out at this width: {', '.join(hidden)}.")
    for note in notes:
        console.print(_text(note, console, "dim"), soft_wrap=False)


def _fitting_columns(sheet: Sheet, console: Console) -> list[str]:
    """Return the keys of the columns that fit side by side."""
    keys = [column.key for column in sheet.columns]
    unlimited = console.options.update(max_width=10_000)
    widest = _widest(sheet, console)
    for victim in _GIVEN_UP_FIRST:
        if Measurement.get(console, unlimited, _table(widest, keys, console)).maximum <= console.width:
            break
        keys = [key for key in keys if key != victim]
    return keys


def _widest(sheet: Sheet, console: Console) -> Sheet:
    """Return the sheet with one row, of each column's widest entry: as wide, and measured in no time."""
    columns = zip(*sheet.entries, strict=True)
    widest = tuple(max(entries, key=lambda entry: _entry(entry, console).cell_len) for entries in columns)
    return replace(sheet, entries=(widest,) if widest else ())


def _table(sheet: Sheet, keys: Sequence[str], console: Console) -> Table:
    """Build the table of the columns `keys`."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    shown = [index for index, column in enumerate(sheet.columns) if column.key in keys]
    rows = [[_entry(entries[index], console) for index in shown] for entries in sheet.entries]
    for place, column in enumerate(sheet.columns[index] for index in shown):
        heading = _text("\n".join(column.stacked).strip("\n"), console)
        flexible = column.key == "method"
        widths = (text.cell_len for text in (*heading.split(), *(row[place] for row in rows)))
        table.add_column(
            heading,
            justify="left" if column.key in LEFT_ALIGNED else "right",
            vertical="bottom",
            overflow="fold",
            no_wrap=not flexible,
            max_width=_LONGEST_METHOD if flexible else None,
            width=None if flexible else max(widths),  # told, or every entry would be rendered to measure it
        )
    for entries, row in zip(sheet.entries, rows, strict=True):
        reference = entries[0].value == REFERENCE
        table.add_row(*row, style="italic" if reference else None, end_section=reference)
    return table


def _plain(sheet: Sheet, keys: Sequence[str], console: Console) -> Text | Table:
    """Return what `_table` looks like without styles; thousands of rows take a tenth of the time.

    A table with something to wrap is left to `_table`.
    """
    places = [index for index, column in enumerate(sheet.columns) if column.key in keys]
    columns = [sheet.columns[index] for index in places]
    heads = [[_text(line, console).plain for line in column.stacked] for column in columns]
    rows = [[_text(entries[index].text, console).plain for index in places] for entries in sheet.entries]
    lines = [list(line) for line in zip(*heads, strict=True)]
    lines = [line for line in lines if any(line)] + rows
    widths = [max(map(cell_len, texts)) for texts in zip(*lines, strict=True)]
    total = sum(widths) + len(_GAP) * (len(widths) - 1)
    method = [width for column, width in zip(columns, widths, strict=True) if column.key == "method"]
    if total > console.width or any(width > _LONGEST_METHOD for width in method):
        return _table(sheet, keys, console)
    left = [column.key in LEFT_ALIGNED for column in columns]
    drawn = [_GAP.join(map(_padded, line, widths, left)) for line in lines]
    start = len(drawn) - len(rows)
    out = [*drawn[:start], "─" * total]
    for line, entries in zip(drawn[start:], sheet.entries, strict=True):
        out += [line, ""] if entries[0].value == REFERENCE and len(rows) > 1 else [line]
    return Text("\n".join(out), no_wrap=True, overflow="ignore")


def _padded(text: str, width: int, left: bool) -> str:
    space = " " * (width - cell_len(text))
    return text + space if left else space + text


def _entry(entry: Entry, console: Console) -> Text:
    """Return one entry with its emphasis."""
    style = "bold red" if entry.failed else "bold" if entry.strong else ""
    return _text(entry.text, console, style)


def _text(text: str, console: Console, style: str = "") -> Text:
    """Return `text` as it is (no markup is read from it), in characters the console can write."""
    encoding = console.encoding
    if not encoding.startswith("utf"):
        text = text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return Text(text, style=style)
