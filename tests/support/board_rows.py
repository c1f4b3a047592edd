"""Rows of a leaderboard, made of made-up records, for every test that needs some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.reports.leaderboard import FIRST, LINES, SEAL, Board, Entry, board_name, extended, shorten
from harness.reports.record import Record

SHA = "ab" * 32
COMMITS = [f"{number:040x}" for number in range(1, 200)]
ENVIRONMENT = {"cpu": "a processor", "gpu": None, "system": "Linux"}


def entry(record: Record, **changes: Any) -> Entry:
    """Return a row of a record; `changes` replace its own fields."""
    measured = replace(record.measured, environment=ENVIRONMENT | record.measured.environment)
    count = min(8, record.result.n)
    given = Entry(
        previous=FIRST,
        date="2025-01-31T23:59:59Z",
        commit=COMMITS[0],
        dirty=False,
        weights=SHA,
        fingerprint={"generating": SHA, "method": SHA, "torch": "2.9.0", "diffusers": "0.36.0"},
        block=16,
        images=[f"{number:064x}" for number in range(count)],
        first={"psnr": [20.0 + number for number in range(count)]},
        per_prompt={"psnr": SHA},
        record=shorten(replace(record, measured=measured)),
    )
    return replace(given, **changes)


def board(entries: Iterable[Entry]) -> Board:
    """Return the board of rows of one protocol."""
    rows = list(entries)
    return extended(Board(board_name(rows[0]), (), b""), rows)


def write(folder: Path, held: Board) -> Path:
    """Write a board into a folder and return the file of its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{held.name}{LINES}"
    path.write_bytes(held.lines)
    (folder / f"{held.name}{SEAL}").write_bytes(held.seal)
    return path


def series(record: Record, figures: Sequence[dict[str, Any]]) -> list[Entry]:
    """Return rows of one cell, one commit after the other; each of `figures` changes a row's record.

    `metrics` are merged; a `weights`, `images`, `fingerprint`, `commit` or `dirty` is the row's own.
    """
    rows = []
    for number, changes in enumerate(figures):
        own = {key: changes[key] for key in changes if key in Entry.__dataclass_fields__ and key != "record"}
        identity = replace(record.identity, cell=f"{record.identity.cell[:8]}{number:08x}")
        result = replace(record.result, **{k: v for k, v in changes.items() if hasattr(record.result, k)})
        measured = replace(
            record.measured, **{k: v for k, v in changes.items() if hasattr(record.measured, k)}
        )
        made = Record(identity, result, measured)
        day = f"2025-{1 + number // 28:02d}-{1 + number % 28:02d}T00:00:00Z"
        rows.append(entry(made, **{"commit": COMMITS[number], "date": day, **own}))
    return rows
