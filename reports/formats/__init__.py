"""Renders records as a terminal table, Markdown, CSV, LaTeX, Typst, JSON or HTML. One file per format."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.reports.record import Record

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "markdown", "csv", "latex", "typst", "json", "jsonl", "html")


def render(records: Iterable[Record], fmt: str) -> str:
    """Return a report of `records` as text, ending in a newline.

    Args:
        records: cells in any order; tables sort them.
        fmt: one of `FORMATS`.

    Raises:
        ValueError: there is no such format.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown format {fmt!r:.40}; valid: {', '.join(FORMATS)}")
    text: str = importlib.import_module(f"harness.reports.formats.{fmt}").render(records)
    return text


def render_terminal(records: Iterable[Record], console: Console) -> None:
    """Print the table to `console`, fitted to its width."""
    from harness.reports.formats.table import render_terminal as print_table  # rich: only where it is used

    print_table(records, console)
