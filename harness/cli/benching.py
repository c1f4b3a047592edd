"""`harness bench`: the group of benchmarks; each is a module of its own."""

from __future__ import annotations

import typer

from harness.cli.bench_model import bench_model_command

bench_app = typer.Typer(
    help="Time packed layers beside 16-bit ones and other libraries.", no_args_is_help=True
)


@bench_app.callback()
def bench() -> None:
    """Keep the commands' names even while there is only one of them."""


bench_app.command("model", help="Quantize and measure a model of true size with random weights.")(
    bench_model_command
)
