"""`harness bench table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UserError, unknown


def bench_table_command(
    result: Annotated[Path, typer.Argument(metavar="FILE.json", help="A file of `harness bench`.")],
    name: Annotated[
        str | None, typer.Option("--table", metavar="NAME", help="Print this table instead of all.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DOC", help="Put them between a document's markers."),
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="DOC", help="Fail if a document says something else.")
    ] = None,
) -> int:
    """Print the tables of a result of `harness bench kernels`, or put them into a document."""
    from harness.bench import report
    from harness.cli.tables import deliver

    held = report.read(result)
    tables = report.tables(report.rows_of(held)) | report.figures(held)
    if name is not None:
        if name not in tables:
            raise unknown("table", name, tables)
        tables = {name: tables[name]}
    document = output or check
    if document is None:
        for title, text in tables.items():
            print(f"## {title}\n\n{text}")
        return 0
    found = {title: text for title, text in tables.items() if _encloses(document, title)}
    if not found:
        raise UserError(f"{document} has no markers of {', '.join(tables)}")
    return max(deliver(text, f"bench {title}", output, check) for title, text in found.items())


def _encloses(document: Path, title: str) -> bool:
    """Whether a document has the markers of a table; raises UserError when it cannot be read."""
    from harness.reports.tables.check import embedded

    try:
        return embedded(document, f"bench {title}", document.read_text(encoding="utf-8")) is not None
    except OSError as error:
        raise UserError(f"cannot read {document}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{document}: {error}") from error
