"""`harness leaderboard`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.tables import chosen_format, deliver
from harness.errors import UserError, unknown

if TYPE_CHECKING:
    from harness.reports.leaderboard import Board, Entry
    from harness.reproduce import Reproduced
    from harness.request import Request

leaderboard_app = typer.Typer(
    help="Rows of cells, kept in git: add, show, verify, plot.", no_args_is_help=True
)
FORMATS = ("table", "markdown", "json", "html")
_MOST_COMMITS = 5
_MOST_COMMITS = 5
BoardOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The leaderboard's folder.  [default: reports/leaderboard]"),
]


@leaderboard_app.command("add", help="Add the finished cells of a run.")
def add_rows(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    cell: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only this cell, by the first letters of its key.")
    ] = None,
    board: BoardOption = None,
) -> None:
    """Add rows, all of them or none, and say how many."""
    from harness.leaderboard import add

    added = add(run, cell or (), board)
    for line in added.notes:
        print(f"note: {line}")
    for name, count in added.rows.items():
        print(f"{count} rows added to {name}")


@leaderboard_app.command("show", help="Print the newest row of every cell, and steps in their history.")
def show_rows(
    fmt: Annotated[
        str | None,
        typer.Option("--format", metavar="|".join(FORMATS), help="Format.  [default: by the file's name]"),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write to this file.")] = None,
    board: BoardOption = None,
) -> int:
    """Print the leaderboard in one of the formats."""
    fmt = chosen_format(fmt, FORMATS, output)
    boards = _read(board)
    if fmt == "html":
        from harness.reports.leaderboard.page import render as render_page

        text = render_page(boards)
    else:
        from harness.reports.leaderboard.tables import render

        text = render(boards, fmt)
        if fmt == "table":
            text += _commits(boards)
    return deliver(text, "leaderboard", output, None)


@leaderboard_app.command("verify", help="Check the files, make rows' first images again and compare.")
def verify_rows(
    cells: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CELL]...", help="Cells, by the first letters of their keys."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="REV", help="Only rows added since this revision of git.")
    ] = None,
    no_generate: Annotated[bool, typer.Option("--no-generate", help="Check the files only.")] = False,
    board: BoardOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the runs made in here.")] = None,
    workers: Annotated[int | None, typer.Option(help="Cells at a time.")] = None,
    data_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="As in `harness run`.")
    ] = None,
    model_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="As in `harness run`.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Keep the libraries off the network.")] = False,
) -> int:
    """Verify rows; 0 reproduced, 1 not, 3 the figures cannot tell, 2 a mistake."""
    from harness.leaderboard import own_folder, rows_to_verify

    folder = board or own_folder()
    try:
        boards, entries = rows_to_verify(folder, since, cells or ())
    except ValueError as error:
        print(f"not verified: {error}")
        return 1
    rows = sum(len(one.entries) for one in boards)
    print(f"{folder}: {rows} rows in {len(boards)} files; every line, the chains and seals hold")
    if no_generate or not entries:
        print(f"{len(entries)} rows to make again{': left out' if no_generate else ''}")
        return 0
    from harness.request import Request

    options = Request(
        workers=workers,
        data_paths=tuple(data_path or ()),
        model_paths=tuple(model_path or ()),
        offline=offline,
    )
    return _reproduce(entries, out, options)


@leaderboard_app.command("plot", help="Draw a figure's history, with steps marked.")
def plot_rows(
    figure: Annotated[str, typer.Argument(metavar="FIGURE", help="A metric, weight_bytes, ...")] = "psnr",
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="PNG, SVG or PDF, by the file's name.")
    ] = Path("leaderboard.png"),
    board: BoardOption = None,
) -> None:
    """Draw how a figure of every cell went from row to row."""
    from harness.reports.leaderboard.plot import ENDINGS, figures, write_plot

    boards = _read(board)
    known = figures(boards)
    if figure not in known:
        raise unknown("figure", figure, known) if known else UserError("the leaderboard has no rows yet")
    if output.suffix.lower() not in ENDINGS:
        raise UserError(f"{output}: give a name that ends in {', '.join(ENDINGS)}")
    try:
        write_plot(boards, figure, output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    print(output)


def _read(folder: Path | None) -> list[Board]:
    from harness.leaderboard import own_folder, read

    return read(folder or own_folder())


def _commits(boards: Sequence[Board]) -> str:
    """Return the commits that steps lie between, newest first, as far as git knows them here."""
    from harness.git import subjects
    from harness.leaderboard import own_folder
    from harness.reports.formats.layout import clean
    from harness.reports.leaderboard import commit_range, steps

    ranges = dict.fromkeys(commit_range(step) for board in boards for step in steps(board))
    text = ""
    for name in filter(None, ranges):
        lines = [f"  {clean(line)}\n" for line in subjects(own_folder(), name, _MOST_COMMITS)]
        if lines:
            first, last = name.split("..")
            text += f"\nCommits {first[:12]}..{last[:12]}, the newest first:\n{''.join(lines)}"
    return text


def _reproduce(entries: Sequence[Entry], out: Path | None, options: Request) -> int:
    """Make rows again, print a line for each, and return the exit code."""
    from rich.console import Console

    from harness.reproduce import exit_code, reproduce

    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="harness-verify-") as spare:
        found = reproduce(entries, out or Path(spare), options, console)
    for one in found:
        print(_line(one))
    return exit_code(found)


def _line(one: Reproduced) -> str:
    """Return what became of a row, in one line."""
    from harness.reports.formats.layout import clean
    from harness.reports.gate.sides import name_of

    other = "" if one.sources else " (sources, libraries or weights are not those of the row)"
    detail = f": {one.detail}" if one.detail else ""
    record = one.entry.record
    return clean(f"{one.finding:<8}{record.identity.cell}  {name_of(record)}{detail}{other}")
