"""What the page shows, as JSON: columns, cells, groups, notes; per cell its prompts, layers and images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.reports.formats.layout import INFLUENCE_NOTE, bits_label, clean, lay_out, method_label
from harness.reports.page.columns import PageColumn, page_columns
from harness.reports.page.images import Gallery, embed, find_images
from harness.reports.page.layers import read_layers
from harness.reports.record import Record
from harness.reports.rows import REFERENCE, grouped, mark_twins, row
from harness.reports.significance import TIED_MARK
from harness.reports.validation import finite

LIMIT = 50_000_000
"""Bytes the page stays below as long as its figures do."""
_LEAST_ROOM = 500_000
_TEMPLATE_ROOM = 200_000
_KEPT_DIGITS = 7


@dataclass(frozen=True)
class Source:
    """What a page is made of beside the records.

    Attributes:
        run_folder: holds images and ledgers; None leaves both out.
        protocol: the run's protocol as run.json has it.
        captions: per prompt set, the texts of its first prompts in order; prompts beyond are numbered.
        better: per metric, `higher` or `lower`.
        limit: bytes the page should stay below; images shrink to fit.
    """

    run_folder: Path | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    better: Mapping[str, str] = field(default_factory=dict)
    limit: int = LIMIT


@dataclass(frozen=True)
class PageData:
    """The content of a page, JSON types throughout.

    Attributes:
        head: what every view needs: columns, groups, cells with their figures, environments, notes.
        details: per cell, in the order of `head["cells"]`, what is only read when the cell is looked at:
            `prompts` (metric → value for each prompt), `layers`, `images`.
    """

    head: dict[str, Any]
    details: list[dict[str, Any]]


def build(records: Iterable[Record], source: Source) -> PageData:
    """Collect the content of a page.

    Args:
        records: cells in any order.
        source: where the rest is.

    Raises:
        ValueError: an image or a ledger cannot be read; the line names its file.
    """
    groups = grouped(records)
    ordered = [record for group in groups.values() for record in group]
    flats = [row(record) for record in ordered]
    mark_twins(flats)
    columns = page_columns(flats, source.better)
    environments: dict[str, int] = {}
    number = {record.identity.cell: index for index, group in enumerate(groups.values()) for record in group}
    cells = [
        _cell(record, flat, columns, number[record.identity.cell], environments)
        for record, flat in zip(ordered, flats, strict=True)
    ]
    details: list[dict[str, Any]] = [
        {"prompts": _per_prompt(record), "layers": _layers(record, source), "images": []}
        for record in ordered
    ]
    head: dict[str, Any] = {
        "columns": [_column(column) for column in columns],
        "groups": [_group(key, members, source) for key, members in groups.items()],
        "cells": cells,
        "environments": [json.loads(text) for text in environments],
        "protocol": clean_all(finite(dict(source.protocol))),
        # The page ranks nothing: what is in view, and so what is best, is the reader's choice.
        "notes": [
            note for note in lay_out(ordered).notes if not note.startswith((TIED_MARK, INFLUENCE_NOTE))
        ],
    }
    gallery = _gallery(groups.values(), source, _size(head) + sum(map(_size, details)))
    for record, detail in zip(ordered, details, strict=True):
        detail["images"] = gallery.images.get(record.identity.cell, [])
    head["gallery"] = {name: value for name, value in asdict(gallery).items() if name != "images"}
    return PageData(head, details)


def clean_all(value: Any) -> Any:
    """Return JSON data with every string in it, keys included, as `clean` leaves it."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): clean_all(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [clean_all(inner) for inner in value]
    return value


def _column(column: PageColumn) -> dict[str, Any]:
    """Return a column as JSON; a metric's name is a record's, and so is what it is called."""
    return {**asdict(column), "label": clean(column.label)}


def _group(key: tuple[str, str, str], members: Sequence[Record], source: Source) -> dict[str, Any]:
    """Return what cells that can be compared have in common, and the texts of their prompts."""
    model, dataset, device = map(clean, key)
    prompts = max((record.result.n for record in members), default=0)
    texts = [clean(text) for text in source.captions.get(key[1], ())][:prompts]
    return {"model": model, "dataset": dataset, "device": device, "prompts": prompts, "captions": texts}


def _cell(
    record: Record,
    flat: Mapping[str, Any],
    columns: Sequence[PageColumn],
    group: int,
    environments: dict[str, int],
) -> dict[str, Any]:
    """Return what every view needs of a cell."""
    label = method_label(dict(flat))
    environment = json.dumps(clean_all(finite(record.measured.environment)), sort_keys=True)
    values = {name: _short(value) for name, value in flat.items() if not isinstance(value, dict)}
    intervals = [column.interval for column in columns if column.interval]
    return {
        "key": record.identity.cell,
        "group": group,
        "label": label,
        "bits": bits_label(dict(flat)),
        "series": f"{label}, A{record.identity.abits}",
        "reference": record.identity.method == REFERENCE,
        "reconstruction": record.identity.reconstruction,
        "values": [values.get(column.key) for column in columns],
        "ends": {
            lo[:-3]: [values[lo], values[hi]]
            for lo, hi in intervals
            if values.get(lo) is not None and values.get(hi) is not None
        },
        "notes": clean_all(flat["notes"]),
        "config": clean_all(finite(record.identity.config)),
        "message": None if record.result.message is None else lines(record.result.message),
        "log": None if record.measured.log_tail is None else lines(record.measured.log_tail),
        "environment": environments.setdefault(environment, len(environments)),
        "steps": [None if x is None else float(f"{x:.4g}") for x in record.measured.step_error or ()],
    }


def lines(text: str) -> str:
    """Return a text of several lines with each as `clean` leaves it; tabs become spaces."""
    return "\n".join(clean(line.expandtabs()) for line in text.splitlines())


def _short(value: Any) -> Any:
    """Return a figure with the digits a reader or a plot can use, and words as `clean` leaves them."""
    if isinstance(value, float):
        return float(f"{value:.{_KEPT_DIGITS}g}")
    return clean(value) if isinstance(value, str) else value


def _per_prompt(record: Record) -> dict[str, list[float | None]]:
    """Return the values of each metric for each prompt."""
    return {
        clean(name): [_short(finite(value)) for value in values]
        for name, values in record.result.per_prompt.items()
    }


def _layers(record: Record, source: Source) -> list[dict[str, Any]]:
    """Return the layers of a cell, where there is a run to read them from, with the kernels that ran."""
    if source.run_folder is None:
        return []
    roads = {clean(layer): clean(road) for layer, road in record.measured.roads.items()}
    layers = read_layers(source.run_folder, record.identity.cell)
    return [{**layer, "road": roads[layer["name"]]} if layer["name"] in roads else layer for layer in layers]


def _gallery(groups: Iterable[Sequence[Record]], source: Source, taken: int) -> Gallery:
    """Return the images, in what room the rest of the page leaves."""
    if source.run_folder is None:
        return embed({}, 0)
    keys = [[record.identity.cell for record in group] for group in groups]
    budget = max(_LEAST_ROOM, source.limit - taken - _TEMPLATE_ROOM)
    return embed(find_images(source.run_folder, keys), budget)


def script_json(value: Any) -> str:
    """Return JSON that can stand in a `<script>` element: nothing in it can end that or open another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _size(value: Any) -> int:
    """Return how many bytes a value takes in the page."""
    return len(script_json(value))
