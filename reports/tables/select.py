"""Which cells stand in a table, in which row and column, and what may not stand together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.reports.formats.layout import clean
from harness.reports.record import Result, same_prompts
from harness.reports.rows import IDENTITY
from harness.reports.significance import Standing
from harness.reports.tables.figures import figure
from harness.reports.tables.spec import ColumnSpec, Line, TableSpec, Where

Flat = Mapping[str, Any]
"""A cell as `harness.reports.rows.row` flattens it."""


@dataclass
class TableRow:
    """One row before it is printed.

    Attributes:
        line: what a paper's table says of it; None for a row that only the records have.
        flats: the cells it can show.
        chosen: the cell of each column, by the column's number; columns without one are blank.
        standings: how a column's figure stands among those it is ranked with, by the column's number.
    """

    line: Line | None
    flats: list[Flat]
    chosen: dict[int, Flat] = field(default_factory=dict)
    standings: dict[int, Standing] = field(default_factory=dict)


def value_of(column: ColumnSpec, flat: Flat) -> float | None:
    """Return the value of a column's figure, in the records' unit."""
    if column.figure == "step_ratio":
        step, reference = flat["step_ms"], flat["step_ms_ref"]
        return step / reference if step is not None and reference else None
    value: float | None = flat.get(column.figure)
    return value


def matches(flat: Flat, where: Where) -> bool:
    """Say whether a cell meets all conditions.

    Names of models and prompt sets are compared by letters and digits only: `FLUX.1-dev` is `flux1_dev`.
    """
    for key, wanted in where.items():
        choices = wanted if isinstance(wanted, list | tuple) else [wanted]
        loose = key in {"model", "dataset"}
        value = _plain(flat[key]) if loose else flat[key]
        if not any(value == (_plain(choice) if loose else choice) for choice in choices):
            return False
    return True


def _plain(name: object) -> str:
    return "".join(char for char in str(name).casefold() if char.isalnum())


def place(spec: TableSpec, shown: Sequence[ColumnSpec], flats: Sequence[Flat]) -> dict[str, list[TableRow]]:
    """Return the rows of each sheet by its title, every column's cell chosen.

    Args:
        spec: the table. If it has lines, they come first and what fills none of them follows, all in one
            sheet.
        shown: its columns.
        flats: the cells that belong in the table, in the order of tables.

    Raises:
        ValueError: two cells lay claim to one entry; cells of different protocol hashes would share a column,
            or cells of different N a column of distribution figures.
    """
    parts = _split(spec, flats)
    for rows in parts.values():
        for index, column in enumerate(shown):
            for line in rows:
                _choose(line, index, column)
            _check_column(column, [line.chosen[index] for line in rows if index in line.chosen])
    return parts


def _split(spec: TableSpec, flats: Sequence[Flat]) -> dict[str, list[TableRow]]:
    """Return the rows of each sheet, nothing chosen yet."""
    if spec.lines:
        lines = [
            TableRow(line, [flat for flat in flats if line.where and matches(flat, line.where)])
            for line in spec.lines
        ]
        taken = {flat["cell"] for line in lines for flat in line.flats}
        rest = [flat for flat in flats if flat["cell"] not in taken]
        return {"": [*lines, *_rows(spec, rest)]}
    parts: dict[str, list[Flat]] = {}
    for flat in flats:
        parts.setdefault(clean(" · ".join(str(flat[name]) for name in spec.split)), []).append(flat)
    return {title: _rows(spec, part) for title, part in parts.items()}


def _rows(spec: TableSpec, flats: Sequence[Flat]) -> list[TableRow]:
    """Return the rows of cells, told apart by `spec.rows` and, for twins, by their key."""
    rows: dict[str, TableRow] = {}
    for flat in flats:
        key = repr([*(flat[name] for name in spec.rows), flat.get("twin")])
        rows.setdefault(key, TableRow(None, [])).flats.append(flat)
    return list(rows.values())


def _choose(line: TableRow, index: int, column: ColumnSpec) -> None:
    """Find the cell of one entry: the only one, unless what is shown is the same for all that qualify."""
    found = [flat for flat in line.flats if matches(flat, column.where)]
    kind = figure(column.figure).kind
    shared = kind == "word" or (kind == "stored" and len({value_of(column, flat) for flat in found}) == 1)
    if len(found) > 1 and not shared:
        raise _ambiguous(column, found[0], found[1])
    if found:
        line.chosen[index] = found[0]


def _ambiguous(column: ColumnSpec, first: Flat, second: Flat) -> ValueError:
    """Build the error for an entry that several cells lay claim to."""
    names = [name for name in IDENTITY if name not in {"cell", "config"} and first[name] != second[name]]
    differ = f"they differ in {', '.join(names)}" if names else "they have the same settings"
    return ValueError(
        f"column {column.figure!r:.60}: cells {first['cell']} and {second['cell']} lay claim to one "
        f"entry; {differ}; "
        "tell them apart by `rows` or `where`"
    )


def check_prompts(parts: Mapping[str, Sequence[TableRow]], results: Mapping[str, Result]) -> None:
    """Refuse a sheet whose cells saw different prompts under one name, as far as their records tell.

    Args:
        parts: rows of each sheet, cells chosen.
        results: by cell.

    Raises:
        ValueError: two cells of one prompt set were made from other prompts.
    """
    for rows in parts.values():
        first: dict[str, Flat] = {}
        for flat in (flat for line in rows for flat in line.chosen.values()):
            known = results[flat["cell"]]
            held = first.setdefault(flat["dataset"], flat) if known.prompts else None
            if held is None:
                continue
            if same_prompts(known, results[held["cell"]]) is False:
                raise ValueError(
                    f"cells {held['cell']} and {flat['cell']} cannot share a table: both name the prompt set "
                    f"{flat['dataset']!r:.60}, but were made from different prompts"
                )


def _check_column(column: ColumnSpec, flats: Sequence[Flat]) -> None:
    """Refuse a column whose figures were formed under different protocols, or of unequal N."""
    kind = figure(column.figure).kind
    if kind in {"word", "stored"} or column.published:
        return
    protocols = {flat["protocol_hash"]: f"{flat['protocol']} ({flat['protocol_hash']})" for flat in flats}
    if len(protocols) > 1:
        raise ValueError(
            f"column {column.figure!r:.60}: rows of different protocols cannot share a column: "
            f"{', '.join(sorted(protocols.values()))}"
        )
    counts = {flat["n"] for flat in flats if flat.get(column.figure) is not None}
    if kind == "distribution" and len(counts) > 1:
        listed = ", ".join(map(str, sorted(counts)))
        raise ValueError(
            f"column {column.figure!r:.60}: rows of different N ({listed}) cannot share a column: the figure "
            "depends on N"
        )
