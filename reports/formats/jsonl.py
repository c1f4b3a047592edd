"""JSON lines: one whole record per line, to be committed and read back by `read_records`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from harness.reports.record import Record
from harness.reports.rows import sort_records


def render(records: Iterable[Record]) -> str:
    """Return the records with their figures for each prompt, in ASCII; logs are left out."""
    kept = [
        replace(record, measured=replace(record.measured, log_tail=None)) for record in sort_records(records)
    ]
    lines = (
        json.dumps(record.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        for record in kept
    )
    return "\n".join(lines) + "\n"
