"""Markdown (GitHub flavour), aligned so that it also reads as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.reports.formats.layout import LEFT_ALIGNED, STRONG_NOTE, Entry, Sheet, lay_out
from harness.reports.record import Record

_SPECIAL = re.compile(r"([\\`*_{}\[\]|#!~$>&@]|<(?! ))")
_URL = re.compile(r"(https?|www)(?=[:.])", re.IGNORECASE)


def escape(text: str) -> str:
    """Return `text` such that Markdown shows it as it is: no markup, no link, no HTML, no end of a column."""
    return _URL.sub(r"\1\\", _SPECIAL.sub(r"\\\1", text))


def render(records: Iterable[Record]) -> str:
    """Return one headed table per model and the footnotes as a list."""
    document = lay_out(records)
    parts = [_sheet(sheet) for sheet in document.sheets]
    notes = [*document.notes, STRONG_NOTE] if document.sheets else document.notes
    parts.append("\n".join(f"- {escape(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _sheet(sheet: Sheet) -> str:
    """Return one table under its heading."""
    lines = [[escape(column.heading) for column in sheet.columns]]
    lines += [[_entry(entry) for entry in entries] for entries in sheet.entries]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rule = [
        "-" * width if column.key in LEFT_ALIGNED else "-" * (width - 1) + ":"
        for column, width in zip(sheet.columns, widths, strict=True)
    ]
    padded = [
        [
            cell.ljust(width) if column.key in LEFT_ALIGNED else cell.rjust(width)
            for cell, column, width in zip(cells, sheet.columns, widths, strict=True)
        ]
        for cells in lines
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (padded[0], rule, *padded[1:]))
    return f"### {escape(sheet.title)}\n\n{table}"


def _entry(entry: Entry) -> str:
    """Return one entry, escaped."""
    text = escape(entry.text)
    return f"**{text}**" if entry.strong or entry.failed else text
