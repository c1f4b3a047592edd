"""`harness bench`: the group of benchmarks; each is a module of its own."""

from __future__ import annotations

import typer

from harness.cli.bench_kernels import bench_kernels_command
from harness.cli.bench_model import bench_model_command
from harness.cli.bench_table import bench_table_command

bench_app = typer.Typer(
    help="Time packed layers and true-size models beside 16-bit ones and other libraries.",
    no_args_is_help=True,
)
bench_app.command("kernels", help="Time single layers: packed, bf16, peers; with floors and errors.")(
    bench_kernels_command
)
bench_app.command("model", help="Quantize and measure a model of true size with random weights.")(
    bench_model_command
)
bench_app.command("table", help="Print the tables of a result, or put them into a document.")(
    bench_table_command
)
