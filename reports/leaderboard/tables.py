"""The newest row of every cell as tables, one document for each protocol; or all rows, as plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.reports.formats.layout import Column, Document, Sheet, lay_out
from harness.reports.formats.layout import Entry as TableEntry
from harness.reports.formats.markdown import escape
from harness.reports.formats.markdown import render_document as markdown_document
from harness.reports.formats.table import render_document as plain_document
from harness.reports.leaderboard.chain import Board
from harness.reports.leaderboard.entry import Entry
from harness.reports.leaderboard.history import latest, step_line, steps
from harness.reports.rows import grouped, row

FORMATS = ("table", "markdown", "json")
_GIVEN_UP = ("state", "quantize_s", "kid", "fid")
"""Columns that would say nothing here, or too little for their room."""
NO_TESTS = (
    "Rows keep no values per prompt, so no difference is tested here: `harness report` of a run does that."
)


def render(boards: Sequence[Board], fmt: str) -> str:
    """Return the boards in one of `FORMATS`.

    Raises:
        ValueError: there is no such format.
    """
    if fmt == "json":
        return json.dumps([_flat(e) for board in boards for e in board.entries], indent=1) + "\n"
    if fmt == "markdown":
        parts = [f"## {escape(board.name)}\n\n{markdown_document(document(board))}" for board in boards]
    elif fmt == "table":
        parts = [f"{heading(board)}\n\n{plain_document(document(board))}" for board in boards]
    else:
        raise ValueError(f"unknown format {fmt!r:.40}; valid: {', '.join(FORMATS)}")
    return "\n".join(parts) or "The leaderboard has no rows yet.\n"


def heading(board: Board) -> str:
    """Return what stands over the tables of a board."""
    return f"Protocol {board.name}: {len(latest(board))} cells, {len(board.entries)} rows"


def document(board: Board) -> Document:
    """Return the tables and footnotes of one protocol: the newest row of every cell, and steps."""
    entries = latest(board)
    by_cell = {entry.record.identity.cell: entry for entry in entries}
    records = [entry.record for entry in entries]
    laid_out = lay_out(records)
    sheets = [
        _dated(sheet, [by_cell[record.identity.cell] for record in group])
        for sheet, group in zip(laid_out.sheets, grouped(records).values(), strict=True)
    ]
    found = [f"Step: {step_line(step)}." for step in steps(board)]
    return Document(tuple(sheets), (*laid_out.notes, NO_TESTS, *found))


def _dated(sheet: Sheet, entries: Sequence[Entry]) -> Sheet:
    """Return a sheet with when each row was added and what made it in the place of its state."""
    kept = [index for index, column in enumerate(sheet.columns) if column.key not in _GIVEN_UP]
    more = [_column("added", "Added"), _column("commit", "Commit")]
    rows = [
        (*(cells[index] for index in kept), TableEntry(entry.date[:10]), TableEntry(commit(entry)))
        for cells, entry in zip(sheet.entries, entries, strict=True)
    ]
    return replace(sheet, columns=(*(sheet.columns[index] for index in kept), *more), entries=tuple(rows))


def _column(key: str, name: str) -> Column:
    return Column(key, name, ("", name), "", lambda flat: TableEntry(""))


def commit(entry: Entry) -> str:
    """Return the short name of the commit that made a row; `+`: with changes that were not committed."""
    return "–" if entry.commit is None else entry.commit[:10] + "+" * entry.dirty


def _flat(entry: Entry) -> dict[str, Any]:
    """Return a row with the columns of docs/reports.md, and those of the leaderboard."""
    facts = {name: getattr(entry, name) for name in ("date", "commit", "dirty", "weights", "fingerprint")}
    return {**row(entry.record), **facts, "machine": entry.machine, "images": entry.images}
