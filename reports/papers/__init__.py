"""The tables of papers, filled from records: layouts as published, published figures in columns of their own.

One file per table. What a paper prints is data with its source; figures that are known second-hand only are
marked as such.
"""

from __future__ import annotations

import importlib

from harness.reports.tables.spec import TableSpec, unknown_name

NAMES = (
    "svdquant-table1",
    "mpqdm-imagenet",
    "mpqdm-lsun",
    "mpqdm-sd14",
    "memory-latency",
    "bits-sweep",
    "ablation-svdquant",
)


def get(name: str) -> TableSpec:
    """Return a paper's table.

    Raises:
        ValueError: there is none of this name; the nearest are named.
    """
    if name not in NAMES:
        raise unknown_name("paper's table", name, list(NAMES))
    spec: TableSpec = importlib.import_module(f"harness.reports.papers.{name.replace('-', '_')}").TABLE
    return spec
