"""The page of a run: one HTML file that needs no server and no network, images included."""

from harness.reports.page.data import Source
from harness.reports.page.rendering import render

__all__ = ["Source", "render"]
