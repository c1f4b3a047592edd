"""Paired differences over one row of a table, prompt by prompt, with 95 % intervals.

    python tools/paired_differences.py RECORDS... --over ptq
    python tools/paired_differences.py RECORDS... --over svdquant grid=1,iterations=0,rank=0 --metric psnr

RECORDS are run folders or files from `harness report RUN --format jsonl`. The row is named by method and
variant, and found at every model and width; every other cell at the same model and width is compared with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.reports.record import Record, read_records
from harness.reports.statistics.comparisons import paired_t
from harness.reports.statistics.intervals import Interval


def differences(
    records: Sequence[Record], method: str, variant: str, metric: str
) -> list[tuple[Record, Interval]]:
    """Return every comparable cell with its mean difference over the row, by model, width and method.

    Args:
        records: cells of any models and widths.
        method: of the row compared with.
        variant: of the row compared with.
        metric: a per-prompt figure of the records.

    Raises:
        ValueError: no cell is the row.
    """
    there = [r for r in records if r.result.state == "ok" and metric in r.result.per_prompt]
    rows = {_where(r): r for r in there if (r.identity.method, r.identity.variant) == (method, variant)}
    if not rows:
        raise ValueError(f"no cell of {method} {variant} has {metric}")
    found = []
    for record in there:
        row = rows.get(_where(record))
        if row is not None and record.identity.cell != row.identity.cell:
            interval = paired_t(record.result.per_prompt[metric], row.result.per_prompt[metric])
            found.append((record, interval))
    return sorted(found, key=lambda pair: _order(pair[0]))


def _order(record: Record) -> tuple[object, ...]:
    i = record.identity
    return i.model, -i.wbits, -i.abits, i.method, len(i.variant), i.variant


def _where(record: Record) -> tuple[object, ...]:
    """What cells that can be compared have in common."""
    i = record.identity
    return i.model, i.dataset, i.protocol_hash, i.device, i.wbits, i.abits, record.result.n


def main() -> None:
    """Print one line per cell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--over", nargs="+", required=True, metavar=("METHOD", "VARIANT"))
    parser.add_argument("--metric", default="psnr")
    options = parser.parse_args()
    method, variant = (*options.over, "default")[:2]
    records = [record for path in options.records for record in read_records(path)]
    print(f"Over {method} {variant}, {options.metric}: mean difference and 95 % interval of the pairs.\n")
    print("| model | bits | method | variant | N | difference |\n" + "|---" * 6 + "|")
    for record, (value, lo, hi) in differences(records, method, variant, options.metric):
        i = record.identity
        shown = "–" if value is None or lo is None or hi is None else f"{value:+.2f} [{lo:+.2f}, {hi:+.2f}]"
        cells = (i.model, f"W{i.wbits}A{i.abits}", i.method, i.variant, record.result.n, shown)
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
