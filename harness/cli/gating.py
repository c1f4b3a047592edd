"""`harness gate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.grid import split_names
from harness.errors import UserError


def gate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run to judge; made when missing.")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN|FILE", help="What it is compared with.", show_default=False)
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(metavar="RUN|FILE", help="The baseline made with another --block, for the margins."),
    ] = None,
    margin: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=VALUE", help="A margin in place of a measured one.")
    ] = None,
    metrics: Annotated[str, typer.Option(help="Metrics compared, by comma.")] = "psnr,prompt_accuracy",
    alpha: Annotated[float, typer.Option(help="Chance that the gate fails wrongly.")] = 0.05,
    no_generate: Annotated[
        bool, typer.Option("--no-generate", help="Leave cells undecided that lack prompts.")
    ] = False,
    quality_only: Annotated[
        bool, typer.Option("--quality-only", help="Leave memory and latency out.")
    ] = False,
    latency_bound: Annotated[
        float, typer.Option(help="Growth of the step's time let through, by the reference's.")
    ] = 0.1,
    benchmark: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Results of pytest-benchmark.", show_default=False)
    ] = None,
    benchmark_baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What they are compared with.", show_default=False)
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the summary here.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML here.")] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the run's records as a baseline, and stop.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for generating.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Cells at a time, for generating.")] = None,
    data_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="As in `harness run`.")
    ] = None,
    model_path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="As in `harness run`.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Keep the libraries off the network.")] = False,
) -> int:
    """Compare a run with a baseline; 0 passes, 1 fails, 3 undecided or suspicious, 2 a mistake."""
    if save is not None:
        _check_writable(save)
        return _save(run, save)
    if baseline is None:
        raise UserError("give --baseline RUN|FILE, or --save FILE to make one")
    for path in (markdown, junit):
        _check_writable(path)
    if (benchmark is None) != (benchmark_baseline is None):
        raise UserError("--benchmark and --benchmark-baseline belong together")
    from rich.console import Console

    from harness.gate import GateRequest, gate
    from harness.reports.gate import costs, render
    from harness.reports.gate.verdict import exit_code
    from harness.request import Request

    options = Request(
        device=device,
        workers=workers,
        data_paths=tuple(data_path or ()),
        model_paths=tuple(model_path or ()),
        offline=offline,
    )
    request = GateRequest(
        run=run,
        baseline=baseline,
        noise=noise,
        margins=tuple(margin or ()),
        metrics=split_names(metrics),
        alpha=alpha,
        generate=not no_generate,
        costs=not quality_only,
        latency_bound=latency_bound,
        options=options,
    )
    grown: list[costs.Cost] = []
    if benchmark is not None and benchmark_baseline is not None:
        try:
            sides = costs.read_benchmarks(benchmark), costs.read_benchmarks(benchmark_baseline)
        except ValueError as error:
            raise UserError(str(error)) from error
        grown = costs.compare_benchmarks(*sides, latency_bound)
    found = gate(request, Console(stderr=True))
    summary = render.markdown(found, grown, alpha)
    print(summary, end="")
    for path, text in ((markdown, summary), (junit, render.junit(found, grown))):
        if path is not None:
            _write(path, text)
    return exit_code(found, grown)


def _check_writable(path: Path | None) -> None:
    """Refuse before anything is generated what could not be written afterwards."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: {folder} is not a folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"cannot write {path}: no permission")


def _save(run: Path, path: Path) -> int:
    """Write a run's records to a file that `--baseline` and `--noise` read."""
    from harness.reports.gate.sides import read_side, write_side

    try:
        write_side(path, read_side(run))
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
