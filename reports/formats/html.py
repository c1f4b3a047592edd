"""HTML: the page of a run (`harness.reports.page`) with what records alone hold: no images, no layers."""

from __future__ import annotations

from collections.abc import Iterable

from harness.reports.page import render as render_page
from harness.reports.record import Record


def render(records: Iterable[Record]) -> str:
    """Return a page that loads nothing: grid, plots, prompts, failures and environment."""
    return render_page(records)
