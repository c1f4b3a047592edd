"""Reads what each layer of a cell holds, `RUN/cells/KEY/checkpoint/ledger.json`, for the page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from harness.reports.formats.layout import clean
from harness.reports.validation import finite

_LARGEST = 64 * 2**20
"""Bytes beyond which a file is no ledger: one of 10,000 layers takes 4 MiB."""


def read_layers(run_folder: Path, key: str) -> list[dict[str, Any]]:
    """Return the layers of a cell in module order; none where the cell has no ledger.

    Each is `name`, `role`, `shape` (as text), `weights` (count), `w_bits`, `a_bits`, `mean_bits` (mean width
    of a code), `stored_bits` (bits per weight of all but the bias), `bytes` (per part) and `note` (the
    method's remarks: numbers, words or truth values by name).

    Args:
        run_folder: the run.
        key: the cell, the name of its folder; already checked.

    Raises:
        ValueError: the ledger is damaged or lies outside the run; one line naming the file.
    """
    path = run_folder / "cells" / key / "checkpoint" / "ledger.json"
    if not path.is_file():
        return []
    if not path.resolve().is_relative_to(run_folder.resolve()):
        raise ValueError(f"{path}: leads outside the run folder")
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large for a ledger")
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        if not isinstance(rows, list):
            raise ValueError("its rows are no list")
        return [_layer(row) for row in rows]
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a ledger: {error}") from error


def _layer(row: Any) -> dict[str, Any]:
    """Check one row of the ledger and return what the page shows of it."""
    shape = [_number(length) for length in row["shape"]]
    weights = math.prod(shape)
    if weights <= 0:
        raise ValueError(f"the shape {shape!r:.60} holds no weights")
    parts = {clean(str(part)): _number(count) for part, count in row["bytes"].items()}
    stored = sum(parts.values()) - parts.get("bias", 0)
    note = row.get("note", {})
    if not isinstance(note, dict):
        raise ValueError(f"the note {note!r:.60} is no object")
    return {
        "name": clean(str(row["name"])),
        "role": clean(str(row["role"])),
        "shape": "×".join(map(str, shape)),
        "weights": weights,
        **{name: _number(row[name]) for name in ("w_bits", "a_bits", "mean_bits")},
        "stored_bits": round(8 * stored / weights, 6),
        "bytes": parts,
        "note": {clean(str(name)): _remark(value) for name, value in note.items()},
    }


def _number(value: Any) -> float:
    """Return a finite number of at least 0, integers as such."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r:.60} is not a number of at least 0")
    return value


def _remark(value: Any) -> Any:
    """Return a method's remark as a number, a truth value or one line of text."""
    plain = finite(value)
    if plain is None or isinstance(plain, bool | int | float):
        return plain
    return clean(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))
