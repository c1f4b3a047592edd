"""The two sides of a gate: reading records from a run or a file, and finding each cell on both."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness.reports.record import Record, read_records


class Name(NamedTuple):
    """What a cell is called on both sides; keys differ with every change of the code."""

    model: str
    method: str
    variant: str
    dataset: str
    wbits: int
    abits: int

    def __str__(self) -> str:
        """Return what reports call it."""
        variant = "" if self.variant == "default" else f" [{self.variant}]"
        bits = "" if self.method == "reference" else f" W{self.wbits}A{self.abits}"
        return f"{self.model} {self.method}{variant}{bits} on {self.dataset}"


def name_of(record: Record) -> Name:
    """Return the name of a record's cell."""
    return Name(*(getattr(record.identity, field) for field in Name._fields))


def read_side(path: Path) -> list[Record]:
    """Read records from a run folder, a folder with `cells/KEY/record.json`, or a file.

    A file holds one record per line (`.jsonl`), or a JSON list of records.

    Raises:
        ValueError: nothing is there, or a record is damaged; one line naming the file.
    """
    if path.is_dir():
        return read_records(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error
    try:
        if text.lstrip().startswith("["):
            return [Record.from_json(entry) for entry in json.loads(text)]
        lines = [line for line in text.splitlines() if line.strip()]
        return [Record.from_json(json.loads(line)) for line in lines]
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} holds no records: {error}") from error


def write_side(path: Path, records: Iterable[Record]) -> None:
    """Write records to a file that `read_side` reads, one per line, without logs.

    Raises:
        OSError: the file cannot be written.
    """
    bare = [replace(record, measured=replace(record.measured, log_tail=None)) for record in records]
    lines = [json.dumps(record.to_json(), allow_nan=False, ensure_ascii=False) for record in bare]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def by_name(records: Iterable[Record], where: str, keys: Iterable[str] = ()) -> dict[Name, Record]:
    """Return records by the name of their cell.

    Args:
        records: of one side.
        where: how messages call that side.
        keys: of cells that are meant where several go by one name.

    Raises:
        ValueError: two cells go by one name and `keys` does not tell which is meant.
    """
    meant = frozenset(keys)
    found: dict[Name, Record] = {}
    for record in records:
        name = name_of(record)
        held = found.get(name)
        if held is None or record.identity.cell in meant:
            found[name] = record
        elif held.identity.cell not in meant:
            raise ValueError(
                f"{where} holds two cells called {name}, made by different code; use a fresh run"
            )
    return found
