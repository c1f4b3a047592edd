"""From a table's description and records to the table as plain text, which every format prints alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from harness.reports.formats.layout import (
    MISSING,
    RECONSTRUCTION_MARK,
    SIMULATED_MARK,
    Column,
    Document,
    Entry,
    Sheet,
    bits_label,
    clean,
    method_label,
)
from harness.reports.record import Record, Result
from harness.reports.rows import REFERENCE, columns, mark_twins, row, sort_records
from harness.reports.significance import TIED_MARK, Standing, entrant, standings
from harness.reports.tables.figures import Figure, figure
from harness.reports.tables.notes import caption, footnotes
from harness.reports.tables.select import Flat, TableRow, check_prompts, matches, place, value_of
from harness.reports.tables.spec import ColumnSpec, TableSpec, check_figures, with_stored

_NOTE_LIMIT = 40
_WORDS = ("model", "abits", "dataset", "device", "execution", "state")


def build_table(spec: TableSpec, records: Iterable[Record]) -> Document:
    """Fill a table from records.

    Args:
        spec: the table.
        records: finished cells, of one run or several, in any order.

    Returns:
        One sheet for each value of `spec.split` (exactly one for a table with lines), with footnotes.

    Raises:
        ValueError: a figure is unknown; no cell belongs in the table; two cells lay claim to one entry; cells
            of different protocol hashes or prompts would share a column, or cells of different N a column of
            distribution figures.
    """
    listed = sort_records(records)
    samples = {record.identity.cell: record.result for record in listed}
    flats = [row(record) for record in listed]
    mark_twins(flats)
    check_figures(spec, {name for flat in flats for name in flat} - set(columns()))
    kept = [flat for flat in flats if matches(flat, spec.where)]
    shown = tuple(
        column
        for column in with_stored(spec.columns)
        if not column.optional or any(matches(flat, column.where) for flat in kept)
    )
    parts = place(spec, shown, kept)
    check_prompts(parts, samples)
    if not any(parts.values()):
        raise ValueError(f"table {spec.name!r:.60}: no cell of the records belongs in it")
    for index, column in enumerate(shown):
        _rank(spec, index, column, list(parts.values()), samples)
    sheets = tuple(_sheet(spec, shown, title, rows) for title, rows in parts.items())
    everything = [line for rows in parts.values() for line in rows]
    return Document(sheets, tuple(clean(note) for note in footnotes(spec, shown, everything)))


def _rank(
    spec: TableSpec,
    index: int,
    column: ColumnSpec,
    parts: Sequence[Sequence[TableRow]],
    samples: Mapping[str, Result],
) -> None:
    """Set the standings in one column, if it has a test; all its comparisons are corrected together."""
    known = figure(column.figure)
    if column.published or known.test is None or known.better is None:
        return
    groups: dict[str, list[TableRow]] = {}
    for number, part in enumerate(parts):
        for line in part:
            flat = line.chosen.get(index)
            if flat is not None and flat["method"] != REFERENCE and flat.get(column.figure) is not None:
                groups.setdefault(repr([number, *(flat[key] for key in spec.compare)]), []).append(line)
    entrants = [
        [entrant(column.figure, samples[line.chosen[index]["cell"]]) for line in group]
        for group in groups.values()
    ]
    for group, found in zip(groups.values(), standings(entrants, known.better, known.test), strict=True):
        for line, standing in zip(group, found, strict=True):
            line.standings[index] = standing


def _sheet(spec: TableSpec, shown: Sequence[ColumnSpec], title: str, rows: Sequence[TableRow]) -> Sheet:
    """Print the rows of one table."""
    made = []
    for index, column in enumerate(shown):
        heading = clean(column.heading if column.heading is not None else figure(column.figure).heading)
        key = column.figure if figure(column.figure).kind == "word" else f"{column.figure}-{index}"
        entry = partial(_entry, index, column)
        made.append(Column(key, heading, ("", heading), clean(column.span), entry))
    entries = tuple(tuple(column.entry({"row": line}) for column in made) for line in rows)
    return Sheet(
        title=clean(f"{spec.name}: {title}" if title else spec.name),
        model=title,
        columns=tuple(made),
        entries=_without_repeats(shown, entries),
        caption=clean(caption(spec, title, shown, rows)),
        rules=_rules(rows),
    )


def _without_repeats(
    shown: Sequence[ColumnSpec], entries: tuple[tuple[Entry, ...], ...]
) -> tuple[tuple[Entry, ...], ...]:
    """Leave the text of a leading column of models out where it repeats the row above; its value stays."""
    if shown[0].figure != "model":
        return entries
    above = [Entry(""), *(line[0] for line in entries)]
    return tuple(
        (Entry("", line[0].value), *line[1:]) if line[0].text == before.text else line
        for line, before in zip(entries, above, strict=False)
    )


def _rules(rows: Sequence[TableRow]) -> tuple[int, ...]:
    """Return the rows before which another model begins, and those that follow the reference."""

    def part(line: TableRow) -> tuple[str, bool]:
        if line.line is not None:
            return line.line.section, False
        return line.flats[0]["model"], line.flats[0]["method"] == REFERENCE

    return tuple(index for index in range(1, len(rows)) if part(rows[index]) != part(rows[index - 1]))


def _entry(index: int, column: ColumnSpec, wrapped: Mapping[str, Any]) -> Entry:
    """Print one entry of the row `wrapped["row"]`."""
    line: TableRow = wrapped["row"]
    known, flat = figure(column.figure), line.chosen.get(index)
    if column.published:
        published = line.line.published.get(column.published) if line.line is not None else None
        if published is None:
            return Entry("")
        return Entry(clean(published.text), published.value, mark=clean(published.mark))
    if known.kind == "word":
        return _word(column.figure, line, flat)
    return Entry("") if flat is None else _figure(column, known, flat, line.standings.get(index, "none"))


def _word(name: str, line: TableRow, flat: Flat | None) -> Entry:
    """Print an entry of a column of words: a paper's table says most of them itself."""
    said: dict[str, str] = {}
    if flat is not None:
        said = {"method": method_label(dict(flat)), "bits": bits_label(dict(flat))}
        said |= {key: clean(str(flat[key])) for key in _WORDS}
    if line.line is not None:
        paper = line.line
        said |= {"model": paper.section, "method": paper.label, "bits": paper.bits, "source": paper.source}
    text = clean(said.get(name, ""))
    mark = ""
    if name == "method" and flat is not None:
        mark = RECONSTRUCTION_MARK * flat["reconstruction"] + SIMULATED_MARK * (
            flat["execution"] == "simulated"
        )
    return Entry(text, text, failed=name == "state" and text not in {"ok", ""}, mark=mark)


def _figure(column: ColumnSpec, known: Figure, flat: Flat, standing: Standing) -> Entry:
    """Print a figure of the records; a missing one shows its reason, or the state of a cell that failed."""
    value = value_of(column, flat)
    if value is None:
        if flat["state"] != "ok" and known.kind in {"metric", "distribution"}:
            return Entry(clean(flat["state"]), failed=True)
        reason = MISSING if flat["method"] == REFERENCE else flat["notes"].get(column.figure, MISSING)
        return Entry(clean(reason)[:_NOTE_LIMIT])
    digits = known.digits if column.digits is None else column.digits
    text, ends = f"{value / known.scale:.{digits}f}", None
    lo, hi = flat.get(f"{column.figure}_lo"), flat.get(f"{column.figure}_hi")
    if column.interval and lo is not None and hi is not None:
        ends = lo / known.scale, hi / known.scale
        text += f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
    mark = TIED_MARK if standing == "tied" else ""
    return Entry(text, value / known.scale, strong=standing == "best", mark=mark, ends=ends)
