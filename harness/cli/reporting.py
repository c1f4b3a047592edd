"""`harness report` and `harness show`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.tables import chosen_format, deliver, print_table, read_runs
from harness.errors import UserError, unknown

if TYPE_CHECKING:
    from harness.reports.record import Record

FORMATS = ("table", "markdown", "csv", "latex", "typst", "json", "jsonl", "html")
REPORT, SLICES = "report", "slices"
"""The names of the full report and of the table by slice where a document holds them."""


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders or files of records.")],
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="|".join(FORMATS), help="Format.  [default: by the file's name, or table]"
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="SPEC.yaml", help="Print this table instead of all.")
    ] = None,
    slices: Annotated[
        bool, typer.Option("--slices", help="Print the figures of each category of the prompt set.")
    ] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write to this file.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Fail if FILE no longer says this.")
    ] = None,
) -> int:
    """Print the table of a run folder."""
    fmt = chosen_format(fmt, FORMATS, check or output)
    if slices and table is not None:
        raise UserError("--slices and --table exclude each other")
    records = read_runs(runs)
    if slices:
        return deliver(_by_slice(records, fmt), SLICES, output, check)
    if table is not None:
        from harness.reports.tables import load_spec

        return print_table(load_spec, table, records, fmt, output, check)
    from harness.reports import formats

    if fmt == "table" and output is None and check is None and sys.stdout.isatty():
        from rich.console import Console

        formats.render_terminal(records, Console())
        return 0
    if output is None and check is None and fmt == "html" and sys.stdout.isatty():
        raise UserError("the page holds every image and is no reading for a terminal; give -o page.html")
    one_run = len(runs) == 1 and runs[0].is_dir()
    text = _page(runs[0], records) if fmt == "html" and one_run else formats.render(records, fmt)
    return deliver(text, REPORT, output, check)


def _by_slice(records: Sequence[Record], fmt: str) -> str:
    """Return the table by slice; raises UserError when the records name no slices."""
    from harness.reports.tables import render_built
    from harness.reports.tables.slices import slice_table

    try:
        return render_built(slice_table(records), "markdown" if fmt == "table" else fmt)
    except ValueError as error:
        raise UserError(str(error)) from error


def _page(run: Path, records: Sequence[Record]) -> str:
    """Return the run's page, with images, layers and the texts of prompts.

    Prompts that were read from a file of the user's are not in the run folder; the page numbers them.
    """
    from harness.datasets import registry
    from harness.datasets.selection import select
    from harness.metrics import METRICS
    from harness.reports import page
    from harness.store import RunStore

    counts: dict[str, int] = {}
    for record in records:
        name = record.identity.dataset
        counts[name] = max(counts.get(name, 0), record.result.n)
    protocol = RunStore(run).header()["protocol"]
    order = protocol.get("selection", "nesting order")
    shipped = [name for name in counts if name in registry.names() and not registry.get(name).takes_path]
    source = page.Source(
        run_folder=run,
        protocol=protocol,
        captions={
            name: [p.text for p in select(registry.get(name), counts[name], order)] for name in shipped
        },
        better={name: spec.better for name, spec in METRICS.items()},
    )
    try:
        return page.render(records, source)
    except ValueError as error:
        raise UserError(str(error)) from error


def show_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    cell: Annotated[str, typer.Argument(metavar="CELL", help="A cell's key, or its first letters.")],
) -> None:
    """Print everything known of one cell."""
    from harness.store import RunStore

    store = RunStore(run)
    store.header()
    keys = store.keys()
    found = [key for key in keys if key.startswith(cell)]
    if not found:
        raise unknown("cell", cell, keys) if keys else UserError(f"{run} holds no cell yet")
    if len(found) > 1:
        raise UserError(f"cell {cell!r} is ambiguous: {', '.join(found[:4])}")
    files = store.cell(found[0])
    record = files.record() or {}
    hashed = files.identity() or {}
    made_with = {"weights": hashed.get("weights"), **(hashed.get("fingerprint") or {})}
    sections: dict[str, Any] = {
        "identity": record.get("identity") or hashed,
        "made with": made_with,
        "result": _without(record.get("result"), "per_prompt"),
        "measured": _without(_without(record.get("measured"), "log_tail"), "roads"),
    }
    roads = _roads(record)
    for name, content in sections.items():
        print(f"{name}:")
        _print_fields(content if isinstance(content, dict) else {"state": "not finished"}, "  ")
    _print_roads(roads)
    _print_layers(files.ledger(), roads)
    print(f"folder: {files.folder}")
    tail = files.log_tail()
    if tail:
        print("log:\n" + "\n".join(f"  {line}" for line in tail.splitlines()))


def _roads(record: dict[str, Any]) -> dict[str, str]:
    """Return the kernels that ran by layer, where the record tells."""
    measured = record.get("measured")
    roads = measured.get("roads") if isinstance(measured, dict) else None
    return {str(layer): str(road) for layer, road in roads.items()} if isinstance(roads, dict) else {}


def _print_roads(roads: dict[str, str]) -> None:
    """Print how many layers ran which kernels."""
    if roads:
        counts = Counter(roads.values())
        print("kernels: " + ", ".join(f"{road} {count}" for road, count in sorted(counts.items())))


def _print_layers(ledger: dict[str, Any] | None, roads: dict[str, str]) -> None:
    """Print a line per quantized layer: role, shape, mean width of its codes, bytes by part, kernels."""
    rows = (ledger or {}).get("rows")
    if not isinstance(rows, list) or not rows:
        return
    print("layers:")
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        parts = ", ".join(f"{part} {count}" for part, count in row["bytes"].items() if count)
        line = f"W{row['w_bits']}A{row['a_bits']}, mean {row['mean_bits']:.3g} bits; bytes: {parts}"
        line += f"; kernels: {roads[row['name']]}" if row["name"] in roads else ""
        print(f"  {row['name']} ({row['role']}, {shape}): {line}")


def _without(value: Any, key: str) -> Any:
    return {k: v for k, v in value.items() if k != key} if isinstance(value, dict) else None


def _print_fields(fields: dict[str, Any], indent: str) -> None:
    for name, value in fields.items():
        if isinstance(value, dict) and value and any(isinstance(inner, dict) for inner in value.values()):
            print(f"{indent}{name}:")
            for key, inner in value.items():
                print(f"{indent}  {key}: {json.dumps(inner, ensure_ascii=False)}")
        else:
            print(f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}")
