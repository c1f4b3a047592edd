"""`harness run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.request import Request

if TYPE_CHECKING:
    from rich.console import Console

    from harness.outlook import Outlook
    from harness.plan import Plan


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a list by comma."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def run_command(
    models: Annotated[str, typer.Option(help="Models, by comma; `all` for those that ship.")] = "all",
    methods: Annotated[
        str, typer.Option(help="Methods, by comma, or `all`; NAME:SET for a named set of settings.")
    ] = "all",
    bits: Annotated[str, typer.Option(help="Weight bits (2,3,4) or both (w4a4,w3a6).")] = "2,3,4",
    act_bits: Annotated[
        int | None, typer.Option(help="Activation bits beside plain weight bits.  [default: 8]")
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="Prompt sets, by comma.  [default: the protocol's]", show_default=False)
    ] = "",
    protocol: Annotated[str, typer.Option(help="How images are made and judged.")] = "scenes-default",
    prompts: Annotated[int, typer.Option(help="Images per cell.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.  [default: 0]")] = None,
    block: Annotated[
        int | None, typer.Option(help="Prompts of one batch: another protocol.  [default: the protocol's]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backend: Annotated[
        str, typer.Option(help="What packed layers run on: auto (triton on cuda), reference or triton.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Cells at a time.  [default: cores; 1 on a GPU]")
    ] = None,
    data_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="File or folder of a prompt set or metric.")
    ] = None,
    model_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="Diffusers folder of a model.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Keep the libraries off the network.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder.  [default: runs/PROTOCOL-HASH]")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="A setting of a method.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds one stage of a cell may take.")] = 3600.0,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Take times and peak memory, cell after cell.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> int:
    """Quantize, generate, measure and compare every cell of a grid."""
    request = Request(
        models=split_names(models),
        methods=split_names(methods),
        bits=bits,
        act_bits=act_bits,
        datasets=split_names(dataset),
        protocol=protocol,
        prompts=prompts,
        seed=seed,
        block=block,
        device=device,
        backend=backend,
        workers=workers,
        data_paths=tuple(data_path or ()),
        model_paths=tuple(model_path or ()),
        offline=offline,
        out=out,
        settings=tuple(set_ or ()),
        timeout=timeout,
        latency=latency,
    )
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
