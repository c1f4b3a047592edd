"""CSV: one line per cell, exact figures, empty for what is missing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from harness.reports.formats.layout import clean
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
