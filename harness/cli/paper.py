"""`harness paper`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.tables import chosen_format, print_table, read_runs
from harness.errors import unknown

FORMATS = ("markdown", "latex", "csv", "html", "typst")


def paper_command(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A paper's table; without it, they are listed.")
    ] = "",
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN...]", help="Run folders or files of records.")
    ] = None,
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="|".join(FORMATS), help="Format.  [default: by the file's name, or markdown]"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write to this file.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Fail if FILE no longer says this.")
    ] = None,
) -> int:
    """Print a paper's table, filled from records, the published figures beside."""
    from harness.reports import papers

    if not name:
        width = max(map(len, papers.NAMES))
        for known in papers.NAMES:
            print(f"{known:<{width}}  {papers.get(known).caption}")
        return 0
    if name not in papers.NAMES:
        raise unknown("paper's table", name, papers.NAMES)
    fmt = chosen_format(fmt, FORMATS, check or output)
    return print_table(papers.get, name, read_runs(runs or []), fmt, output, check)
