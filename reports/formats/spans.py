"""What neighbouring columns have in common, for formats that print it over their headings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from harness.reports.formats.layout import Column


def spans(columns: Iterable[Column]) -> Iterator[tuple[str, int]]:
    """Yield each run of columns with one span: its text and how many columns it covers."""
    for span, members in groupby(columns, key=lambda column: column.span):
        yield span, len(list(members))


def full_headings(columns: Sequence[Column]) -> list[str]:
    """Return headings in one line each, with their span before those that would not be unique without it."""
    names = [column.heading for column in columns]
    return [
        f"{column.span}: {column.heading}"
        if column.span and names.count(column.heading) > 1
        else column.heading
        for column in columns
    ]
