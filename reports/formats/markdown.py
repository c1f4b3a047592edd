"""Markdown (GitHub flavour), aligned so that it also reads as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.reports.formats.layout import LEFT_ALIGNED, STRONG_NOTE, Document, Entry, Sheet, lay_out
from harness.reports.formats.spans import full_headings
from harness.reports.record import Record

_SPECIAL = re.compile(r"([\\`*_{}\[\]|#!~$>&@]|<(?! ))")
_URL = re.compile(r"(https?|www)(?=[:.])", re.IGNORECASE)


def escape(text: str) -> str:
    """Return `text` such that Markdown shows it as it is: no markup, no link, no HTML, no end of a column."""
    return _URL.sub(r"\1\\", _SPECIAL.sub(r"\\\1", text))


def render(records: Iterable[Record]) -> str:
    """Return one headed table per model and the footnotes as a list."""
    document = lay_out(records)
    parts = [f"### {escape(sheet.title)}\n\n{_sheet(sheet)}" for sheet in document.sheets]
    notes = [*document.notes, STRONG_NOTE] if document.sheets else document.notes
    return "\n\n".join([*parts, _list(notes)]) + "\n"


def render_document(document: Document) -> str:
    """Return each table under its caption, and the footnotes as a list."""
    parts = [f"{escape(sheet.caption)}\n\n{_sheet(sheet)}" for sheet in document.sheets]
    return "\n\n".join([*parts, _list(document.notes)]) + "\n"


def _list(notes: Iterable[str]) -> str:
    """Return the footnotes."""
    return "\n".join(f"- {escape(note)}" for note in notes)


def _sheet(sheet: Sheet) -> str:
    """Return one table."""
    lines = [[escape(heading) for heading in full_headings(sheet.columns)]]
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
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (padded[0], rule, *padded[1:]))


def _entry(entry: Entry) -> str:
    """Return one entry, escaped."""
    text = escape(entry.text)
    mark = f" {escape(entry.mark)}" if entry.mark else ""
    return (f"**{text}**" if entry.strong or entry.failed else text) + mark
