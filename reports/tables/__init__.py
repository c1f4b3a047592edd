"""Tables from a description and records: every format, and only claims that the records support."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from harness.reports.formats.layout import Document
from harness.reports.record import Record
from harness.reports.tables.build import build_table
from harness.reports.tables.spec import TableSpec, load_spec, parse_spec, unknown_name

TABLE_FORMATS = {"markdown": "markdown", "latex": "latex", "csv": "csv", "html": "fragment", "typst": "typst"}
"""Format -> the module of `harness.reports.formats` whose `render_document` prints it."""

__all__ = [
    "TABLE_FORMATS",
    "TableSpec",
    "build_table",
    "load_spec",
    "parse_spec",
    "render_built",
    "render_table",
]


def render_table(spec: TableSpec, records: Iterable[Record], fmt: str) -> str:
    """Return a table as text, ending in a newline.

    Args:
        spec: the table.
        records: finished cells in any order.
        fmt: one of `TABLE_FORMATS`; `html` is a fragment to be set into a page.

    Raises:
        ValueError: there is no such format, or the table cannot be made of these records (`build_table`).
    """
    _check_format(fmt)
    return render_built(build_table(spec, records), fmt)


def render_built(document: Document, fmt: str) -> str:
    """Return a table that is already built as text; raises ValueError when there is no such format."""
    _check_format(fmt)
    module = importlib.import_module(f"harness.reports.formats.{TABLE_FORMATS[fmt]}")
    text: str = module.render_document(document)
    return text


def _check_format(fmt: str) -> None:
    if fmt not in TABLE_FORMATS:
        raise unknown_name("format of a table", fmt, list(TABLE_FORMATS))
