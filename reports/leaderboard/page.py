"""The leaderboard as one HTML file that needs no server and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from harness.reports.formats.layout import bits_label, clean, method_label
from harness.reports.leaderboard.chain import Board
from harness.reports.leaderboard.entry import Entry
from harness.reports.leaderboard.history import latest, series_of, step_line, steps
from harness.reports.leaderboard.tables import NO_TESTS, commit
from harness.reports.page.columns import PageColumn, page_columns
from harness.reports.page.data import clean_all, script_json
from harness.reports.page.rendering import assemble
from harness.reports.rows import REFERENCE, row, sort_records
from harness.reports.validation import finite

SCRIPTS = ("core", "table", "theme", "board")
TITLE = "Leaderboard of low-bit quantization"
_ADDED = (PageColumn("added", "Added"), PageColumn("commit", "Commit"), PageColumn("machine", "Machine"))
_HIDDEN = ("state", "cell", "protocol", "protocol_hash", "execution")
_DIGITS = 7
_NOTES = (
    "Figures of different protocols are never compared: each protocol has its own table.",
    "[lo, hi]: 95 % interval over the prompts; for times the quartiles. † reconstruction: built from "
    "the paper, not its authors' code. Commit: what made the row; +: with changes that were not committed.",
    NO_TESTS,
)


def render(boards: Sequence[Board]) -> str:
    """Return the page of a leaderboard.

    Whatever comes from rows reaches it as JSON and is put into it as text; nothing is loaded, and a policy
    allows only the page's own style and script.
    """
    entries = [entry for board in boards for entry in _ordered(board)]
    flats = [row(entry.record) for entry in entries]
    columns = [*(column for column in page_columns(flats) if column.key not in _HIDDEN), *_ADDED]
    newest = {id(entry) for board in boards for entry in latest(board)}
    numbers = [index for index, board in enumerate(boards) for _ in board.entries]
    head = {
        "columns": [{**asdict(column), "label": clean(column.label)} for column in columns],
        "boards": [_board(board) for board in boards],
        "groups": [],
        "cells": [
            {**_cell(entry, flat, columns), "board": number, "newest": id(entry) in newest}
            for entry, flat, number in zip(entries, flats, numbers, strict=True)
        ],
        "notes": list(_NOTES),
    }
    return assemble("board.html.jinja", SCRIPTS, title=TITLE, head=Markup(script_json(head)))


def _ordered(board: Board) -> list[Entry]:
    """Return a board's entries in the order of tables, those of one cell in the order they were added."""
    held = {id(entry.record): entry for entry in board.entries}
    return [held[id(record)] for record in sort_records(entry.record for entry in board.entries)]


def _board(board: Board) -> dict[str, Any]:
    return {"name": clean(board.name), "steps": [step_line(step) for step in steps(board)]}


def _cell(entry: Entry, flat: Mapping[str, Any], columns: Sequence[PageColumn]) -> dict[str, Any]:
    """Return what the page shows of a row."""
    identity = entry.record.identity
    values = {name: _short(value) for name, value in flat.items() if not isinstance(value, dict)}
    values |= {"added": entry.date[:10], "commit": commit(entry), "machine": clean(entry.machine)}
    intervals = [column.interval for column in columns if column.interval]
    return {
        "key": identity.cell,
        "label": method_label(dict(flat)),
        "bits": bits_label(dict(flat)),
        "series": str(series_of(entry)),
        "reference": identity.method == REFERENCE,
        "reconstruction": identity.reconstruction,
        "values": [values.get(column.key) for column in columns],
        "ends": {
            lo[:-3]: [values[lo], values[hi]]
            for lo, hi in intervals
            if values.get(lo) is not None and values.get(hi) is not None
        },
        "notes": {},
        "config": clean_all(finite(identity.config)),
        "made": _made(entry),
    }


def _made(entry: Entry) -> dict[str, str]:
    """Return what a row was made with, by what it is called."""
    record = entry.record
    environment = sorted(record.measured.environment.items())
    facts = {
        "cell": record.identity.cell,
        "added": entry.date,
        "commit": entry.commit or "not known",
        "weights": entry.weights,
        **{f"fingerprint · {key}": text for key, text in sorted(entry.fingerprint.items()) if text},
        **{f"environment · {key}": str(text) for key, text in environment},
        "first images": " ".join(digest[:12] for digest in entry.images),
    }
    return {clean(key): clean(text) for key, text in facts.items()}


def _short(value: Any) -> Any:
    """Return a figure with the digits a reader can use, and words in one line."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return clean(value) if isinstance(value, str) else value
