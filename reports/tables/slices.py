"""Figures of the parts of a prompt set: MJHQ's ten categories, PartiPrompts' twelve, those of a user's file.

Only metrics with a value per prompt have figures of a part. Parts are not ranked: with every method, width
and metric they are too many comparisons for the prompts they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from harness.reports.formats.layout import (
    MISSING,
    Column,
    Document,
    Entry,
    Sheet,
    bits_label,
    clean,
    method_label,
)
from harness.reports.record import Record
from harness.reports.rows import grouped, mark_twins, row
from harness.reports.statistics import Interval, t_interval, wilson_interval
from harness.reports.tables.figures import Figure, figure

SHARES = ("prompt_accuracy",)
"""Metrics whose value for a prompt is 0 or 1."""
EVERYTHING = "all"
_WORDS = (("dataset", "Slice"), ("method", "Method"), ("bits", "W/A"))


def slice_table(records: Iterable[Record]) -> Document:
    """Return one table for each model, prompt set and device: a row for each slice and cell, then for all.

    Args:
        records: finished cells, in any order. Those of prompt sets without slices, and those that failed, are
            left out.

    Raises:
        ValueError: no record has slices; a record's slices and values differ in number; or cells of different
            protocol hashes would share a table.
    """
    kept = [record for record in records if record.result.state == "ok" and record.result.slices]
    if not kept:
        raise ValueError(
            "no cell has slices: its prompt set has no categories, or the cell was run before records named "
            "them (run the same command again)"
        )
    sheets = [_sheet(key, group) for key, group in grouped(kept).items()]
    notes = [
        "[lo, hi]: 95 % interval over the prompts of the slice, Student's t; Wilson's for shares. Slices are "
        "not ranked.",
        f"{MISSING}: no value for the prompts of the slice.",
    ]
    return Document(tuple(sheets), tuple(notes))


def of_slice(record: Record, metric: str, name: str) -> Interval:
    """Return a metric's figure over the prompts of a slice, or over all of them, with its interval.

    Args:
        record: a finished cell.
        metric: one with a value per prompt.
        name: the slice, or `all`.
    """
    values = record.result.per_prompt.get(metric, [])
    chosen = [
        value
        for value, part in zip(values, record.result.slices, strict=False)
        if value is not None and name in (part, EVERYTHING)
    ]
    if metric in SHARES:
        return wilson_interval(sum(value > 0.5 for value in chosen), len(chosen))
    return t_interval(chosen)


def _sheet(key: tuple[str, str, str], group: Sequence[Record]) -> Sheet:
    """Return the table of one model, prompt set and device."""
    model, dataset, device = key
    metrics = list(dict.fromkeys(name for record in group for name in record.result.per_prompt))
    names = sorted({part for record in group for part in record.result.slices})
    protocols = sorted({f"{r.identity.protocol} ({r.identity.protocol_hash})" for r in group})
    for record in group:
        _check(record)
    if len(protocols) > 1:
        raise ValueError(f"rows of different protocols cannot share a table: {', '.join(protocols)}")
    flats = [row(record) for record in group]
    mark_twins(flats)
    lines = [
        {"slice": name, "record": record, "flat": flat}
        for name in [*names, EVERYTHING]
        for record, flat in zip(group, flats, strict=True)
    ]
    columns = (*_words(), *(_column(metric, figure(metric)) for metric in metrics))
    title = f"{model} on {dataset}, by slice" + (f" ({device})" if device != "cpu" else "")
    counts = ", ".join(map(str, sorted({record.result.n for record in group})))
    caption = f"{title}. N = {counts} prompts; protocol {protocols[0]}."
    rules = tuple(range(len(group), len(lines), len(group)))
    entries = tuple(tuple(column.entry(line) for column in columns) for line in lines)
    return Sheet(clean(title), clean(model), columns, entries, clean(caption), rules)


def _check(record: Record) -> None:
    result = record.result
    if any(len(values) != len(result.slices) for values in result.per_prompt.values()):
        raise ValueError(f"cell {record.identity.cell}: slices and values of prompts differ in number")


def _words() -> list[Column]:
    made = [Column(key, heading, ("", heading), "", partial(_word, key)) for key, heading in _WORDS]
    return [*made, Column("n", "N", ("", "N"), "", _count)]


def _word(key: str, line: dict[str, Any]) -> Entry:
    said = {"dataset": line["slice"], "method": method_label(line["flat"]), "bits": bits_label(line["flat"])}
    text = clean(said[key])
    return Entry(text, text)


def _count(line: dict[str, Any]) -> Entry:
    slices = line["record"].result.slices
    n = len(slices) if line["slice"] == EVERYTHING else slices.count(line["slice"])
    return Entry(str(n), n)


def _column(metric: str, known: Figure) -> Column:
    heading = clean(known.heading)
    return Column(metric, heading, ("", heading), "", partial(_entry, metric, known.digits))


def _entry(metric: str, digits: int, line: dict[str, Any]) -> Entry:
    value, lo, hi = of_slice(line["record"], metric, line["slice"])
    if value is None:
        return Entry(MISSING)
    if lo is None or hi is None:
        return Entry(f"{value:.{digits}f}", value)
    return Entry(f"{value:.{digits}f} [{lo:.{digits}f}, {hi:.{digits}f}]", value, ends=(lo, hi))
