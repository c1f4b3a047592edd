"""What the commands that print tables share: reading runs, choosing a format, writing and checking files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from harness.errors import UserError, unknown

if TYPE_CHECKING:
    from harness.reports.record import Record
    from harness.reports.tables import TableSpec

SAME, DIFFERS = 0, 1

Source = TypeVar("Source")


def chosen_format(fmt: str | None, valid: Sequence[str], file: Path | None) -> str:
    """Return the format asked for, or the one of the file's ending, or without either the first valid one.

    Raises:
        UserError: there is no such format, or the name's ending is of none.
    """
    from harness.reports.tables.check import SUFFIXES

    if fmt is None:
        if file is None or not file.suffix:
            return valid[0]
        implied = SUFFIXES.get(file.suffix.lower(), "")
        if implied not in valid:
            raise UserError(f"no format is known by {file.suffix}; give --format {'|'.join(valid)}")
        return implied
    if fmt not in valid:
        raise unknown("format", fmt, valid)
    return fmt


def read_runs(runs: Sequence[Path]) -> list[Record]:
    """Read the finished cells of several run folders or files of records.

    Raises:
        UserError: one is no run, holds no finished cell, is damaged, or shares a cell with another.
    """
    from harness.reports.record import read_records
    from harness.store import RunStore

    found: dict[str, Record] = {}
    for run in runs:
        if not run.is_file():
            RunStore(run).header()
        try:
            records = read_records(run)
        except ValueError as error:
            raise UserError(str(error)) from error
        if not records:
            raise UserError(f"{run} holds no finished cell yet")
        for record in records:
            if record.identity.cell in found:
                raise UserError(f"{run}: cell {record.identity.cell} was already read from another run")
            found[record.identity.cell] = record
    return list(found.values())


def print_table(
    load: Callable[[Source], TableSpec],
    source: Source,
    records: Collection[Record],
    fmt: str,
    output: Path | None,
    check: Path | None,
) -> int:
    """Load a table's description, fill it from records, and deliver it.

    Raises:
        UserError: the description is faulty, or the records do not make this table.
    """
    from harness.reports.tables import TABLE_FORMATS, render_table

    fmt = "markdown" if fmt == "table" else fmt
    if fmt not in TABLE_FORMATS:
        raise unknown("format of a table", fmt, TABLE_FORMATS)
    try:
        spec = load(source)
        text = render_table(spec, records, fmt)
    except ValueError as error:
        raise UserError(str(error)) from error
    return deliver(text, spec.name, output, check)


def deliver(text: str, name: str, output: Path | None, check: Path | None) -> int:
    """Print a table, write it to a file, or compare it with one.

    A file that encloses the table `name` in marker lines is a document: only that part of it is written or
    compared.

    Args:
        text: the table.
        name: what marker lines call it.
        output: the file to write, or None.
        check: the file to compare with, or None.

    Returns:
        0, or 1 when the file to compare with says something else; how is printed.

    Raises:
        UserError: both files are given, or one cannot be read or written, or its marker lines are faulty.
    """
    from harness.reports.tables.check import difference, replaced

    if output is not None and check is not None:
        raise UserError("--output and --check exclude each other")
    try:
        if check is not None:
            lines = difference(check, name, _read(check), text)
            print(lines or f"{check} says what the records say")
            return DIFFERS if lines else SAME
        if output is None:
            sys.stdout.write(text)
        else:
            held = _read(output) if output.is_file() else ""
            output.write_text(replaced(output, name, held, text), encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    return SAME


def _read(path: Path) -> str:
    """Read a file, every line ending as it is."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: {error.reason}") from error
