"""CSV: one line per cell, exact figures, empty for what is missing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from harness.reports.formats.layout import Document, Entry, Sheet, clean
from harness.reports.formats.spans import full_headings
from harness.reports.record import Record
from harness.reports.rows import columns, row, sort_records

_FORMULA_STARTS = ("=", "+", "-", "@")


def render(records: Iterable[Record]) -> str:
    """Return the rows as CSV (RFC 4180 quoting, newline endings) under a header line.

    `config` and `notes` are JSON objects. Text that a spreadsheet would run as a formula gets a leading `'`.
    """
    rows = [row(record) for record in sort_records(records)]
    extra = dict.fromkeys(name for flat in rows for name in flat if name not in columns())
    names = [*columns(), *extra]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_field(name) for name in names])
    writer.writerows([_field(flat.get(name)) for name in names] for flat in rows)
    return out.getvalue()


def render_document(document: Document) -> str:
    """Return the rows of all tables as CSV: exact figures in the unit of their heading.

    The column `table` holds the caption, with N and the protocol's hash. A column with intervals is followed
    by its ends, one with signs or bold entries by a column of those: `best`, or the sign.

    Raises:
        ValueError: the tables do not share their columns.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    sheets = document.sheets
    names = full_headings(sheets[0].columns)
    if any(
        [column.key for column in sheet.columns] != [c.key for c in sheets[0].columns] for sheet in sheets
    ):
        raise ValueError("tables with different columns do not go into one CSV file")
    extras = [_extras(sheets, index) for index in range(len(names))]
    titles = [
        title for name, extra in zip(names, extras, strict=True) for title in (name, *_titles(name, extra))
    ]
    writer.writerow(["table", *map(_field, titles)])
    for sheet in sheets:
        writer.writerows([_field(sheet.caption), *_line(entries, extras)] for entries in sheet.entries)
    return out.getvalue()


def _extras(sheets: Iterable[Sheet], index: int) -> tuple[bool, bool]:
    """Say whether a column has interval ends, and whether it has signs or bold entries."""
    entries = [line[index] for sheet in sheets for line in sheet.entries]
    return any(entry.ends for entry in entries), any(entry.mark or entry.strong for entry in entries)


def _titles(name: str, extra: tuple[bool, bool]) -> list[str]:
    ends, mark = extra
    return [f"{name} lo", f"{name} hi"] * ends + [f"{name} mark"] * mark


def _line(entries: Iterable[Entry], extras: Iterable[tuple[bool, bool]]) -> Iterator[Any]:
    """Yield the fields of one row."""
    for entry, (ends, mark) in zip(entries, extras, strict=True):
        yield _field(entry.value)
        if ends:
            yield from map(_field, entry.ends or (None, None))
        if mark:
            yield "best" if entry.strong else entry.mark


def _field(value: Any) -> Any:
    """Return a value as CSV writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True, allow_nan=False)
    if isinstance(value, str):
        text = clean(value)
        return f"'{text}" if text.lstrip().startswith(_FORMULA_STARTS) else text
    return value
