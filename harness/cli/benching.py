"""`harness bench`: the group of benchmarks; each is a module of its own."""

from __future__ import annotations

import typer

from harness.cli.bench_kernels import bench_kernels_command
from harness.cli.bench_table import bench_table_command

bench_app = typer.Typer(
    help="Time packed layers beside 16-bit ones and other libraries.", no_args_is_help=True
)


@bench_app.callback()
def bench() -> None:
    """Keep the commands' names even while there is only one of them."""


bench_app.command("kernels", help="Time single layers: packed, bf16, peers; with floors and errors.")(
    bench_kernels_command
)
bench_app.command("table", help="Print the tables of a result, or put them into a document.")(
    bench_table_command
)
