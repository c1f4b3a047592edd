"""`harness run`."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.grid import takes_grid
from harness.request import Request

if TYPE_CHECKING:
    from rich.console import Console

    from harness.outlook import Outlook
    from harness.plan import Plan


@takes_grid
def run_command(
    request: Request,
    timeout: Annotated[float, typer.Option(help="Seconds one stage of a cell may take.")] = 3600.0,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Take times and peak memory, cell after cell.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> int:
    """Quantize, generate, measure and compare every cell of a grid."""
    request = replace(request, timeout=timeout, latency=latency)
    from rich.console import Console

    from harness import run as runner

    console = Console()
    if dry_run:
        print_plan(console, *runner.dry_run(request))
        return runner.OK
    try:
        return runner.run(request, console)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from what is stored", file=sys.stderr)
        return runner.INTERRUPTED
    except runner.DiskFullError as error:
        print(f"harness: {error}", file=sys.stderr)
        return runner.SOME_FAILED


def print_plan(console: Console, plan: Plan, outlooks: dict[str, Outlook], workers: int) -> None:
    """Print the cells, what is stored of them, and what the rest will take."""
    from rich.table import Table

    from harness.outlook import free_bytes, totals
    from harness.run import announce, duration

    announce(console, plan, workers)
    table = Table(box=None, pad_edge=False)
    for heading in ("cell", "model", "method", "variant", "bits", "stored", "blocks"):
        table.add_column(heading, overflow="fold")
    for cell in plan.cells:
        outlook, identity = outlooks[cell.key], cell.identity
        blocks = f"{outlook.blocks}/{outlook.wanted}"
        names = (cell.key, identity.model, identity.method, identity.variant, str(cell.bits))
        table.add_row(*names, outlook.stored, blocks)
    console.print(table)
    seconds, disk = totals(plan, outlooks, workers)
    guess = "unknown" if seconds is None else f"about {duration(seconds)}"
    room = f"about {disk / 1e6:.0f} MB of {free_bytes(plan.out.absolute()) / 1e9:.1f} GB free"
    console.print(f"time {guess} on {workers} workers; disk {room}", highlight=False)
