"""JSON: a list of flat rows, exact figures, null for what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable

from harness.reports.record import Record
from harness.reports.rows import row, sort_records


def render(records: Iterable[Record]) -> str:
    """Return the rows as a JSON array in ASCII; NaN and infinities cannot occur in it."""
    return json.dumps([row(record) for record in sort_records(records)], indent=2, allow_nan=False) + "\n"
