"""The table on the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from harness.reports.formats.layout import LEFT_ALIGNED, STRONG_NOTE, Entry, Sheet, lay_out
from harness.reports.record import Record
from harness.reports.rows import REFERENCE

WIDTH = 160
"""Columns of characters assumed when the table does not go to a terminal."""

_GIVEN_UP_FIRST = (
    "kid", "quantize_s", "fid", "lpips", "lpips_scene", "ssim", "peak_bytes", "weight_bytes", "step_ms",
)  # fmt: skip
_LONGEST_METHOD = 32
_PLAIN = str.maketrans({"↑": "", "↓": "", "×": "x", "–": "-", "†": "+", "‡": "#", "…": "...", "·": "-"})


def render(records: Iterable[Record]) -> str:
    """Return the table as plain text, `WIDTH` characters wide at most."""
    out = io.StringIO()
    render_terminal(records, Console(file=out, width=WIDTH, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def render_terminal(records: Iterable[Record], console: Console) -> None:
    """Print one table per model and the footnotes, fitted to the console's width.

    On a narrow console whole columns give way, least important first, and a footnote names them.
    """
    document = lay_out(records)
    hidden: dict[str, None] = {}
    for sheet in document.sheets:
        widths = _widths(sheet, console)
        keys = _fitting_columns(sheet, console, widths)
        hidden |= dict.fromkeys(column.heading for column in sheet.columns if column.key not in keys)
        console.print(_text(sheet.title, console, "bold"))
        table = _table(sheet, keys, console, widths)
        _fill(table, sheet, keys, console)
        console.print(table)
        console.print()
    notes = list(document.notes)
    if document.sheets and console.color_system is not None:
        notes.append(STRONG_NOTE)
    if hidden:
        notes.append(f"Left out at this width: {', '.join(hidden)}.")
    for note in notes:
        console.print(_text(note, console, "dim"), soft_wrap=False)


def _widths(sheet: Sheet, console: Console) -> dict[str, int]:
    """Return the characters each column needs; rich would measure every entry each time it is asked."""
    found = {}
    for index, column in enumerate(sheet.columns):
        texts = {*column.stacked, *(entries[index].text for entries in sheet.entries)}
        found[column.key] = max(_text(text, console).cell_len for text in texts)
    found["method"] = min(found.get("method", 0), _LONGEST_METHOD)
    return found


def _fitting_columns(sheet: Sheet, console: Console, widths: Mapping[str, int]) -> list[str]:
    """Return the keys of the columns that fit side by side."""
    keys = [column.key for column in sheet.columns]
    unlimited = console.options.update(max_width=10_000)
    for victim in _GIVEN_UP_FIRST:
        table = _table(sheet, keys, console, widths, measured=True)
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            break
        keys = [key for key in keys if key != victim]
    return keys


def _table(
    sheet: Sheet, keys: Sequence[str], console: Console, widths: Mapping[str, int], *, measured: bool = False
) -> Table:
    """Build the empty table of the columns `keys`; names of methods wrap unless it is to be `measured`."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    for column in sheet.columns:
        if column.key not in keys:
            continue
        table.add_column(
            _text("\n".join(column.stacked).strip("\n"), console),
            justify="left" if column.key in LEFT_ALIGNED else "right",
            vertical="bottom",
            overflow="fold",
            no_wrap=column.key != "method",
            width=widths[column.key] if measured or column.key != "method" else None,
            max_width=_LONGEST_METHOD if column.key == "method" else None,
        )
    return table


def _fill(table: Table, sheet: Sheet, keys: Sequence[str], console: Console) -> None:
    """Add the rows of a sheet."""
    shown = [index for index, column in enumerate(sheet.columns) if column.key in keys]
    for entries in sheet.entries:
        reference = entries[0].value == REFERENCE
        style = "italic" if reference else None
        table.add_row(
            *(_entry(entries[index], console) for index in shown), style=style, end_section=reference
        )


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
