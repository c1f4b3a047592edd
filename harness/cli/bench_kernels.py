"""`harness bench kernels`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from harness.cli.grid import split_counts, split_names
from harness.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.bench.kernels import Row, Settings
    from harness.bench.peers import Peer
    from harness.bench.shapes import NumberFormat, Shape
    from harness.kernels.quantizers.scales import ScaleFormat

_MOST_ON_CPU = 2**28
"""Multiplications of one layer beyond which the CPU is no place to time it."""


def bench_kernels_command(
    shapes: Annotated[
        str, typer.Option(help="Layers at many rows, by comma: `flux`, or IN x OUT as 3072x9216; `none`.")
    ] = "flux",
    rows: Annotated[int, typer.Option(help="Rows (tokens) of their input.")] = 4608,
    few_shapes: Annotated[
        str, typer.Option(help="Layers at few rows: `modulation`, or IN x OUT; `none`.")
    ] = "modulation",
    few_rows: Annotated[str, typer.Option(help="Rows of their input, by comma.")] = "1,16",
    formats: Annotated[
        str, typer.Option(help="Formats of packed layers; those with A16 are timed at few rows.")
    ] = "w4a4,w4a8,w3a8,w2a8,w4a16,w3a16,w2a16",
    scales: Annotated[
        str,
        typer.Option(
            help="Scale format where inputs are quantized: auto, float, integer or e8m0. auto: e8m0 for "
            "inputs of up to 4 bits on a card with float8 tensor cores, else integer."
        ),
    ] = "auto",
    peers: Annotated[str, typer.Option(help="Libraries timed beside: all, none, or names by comma.")] = "all",
    launch: Annotated[
        str, typer.Option(help="eager, graph, compiled, by comma (the last two on CUDA).")
    ] = "eager,graph,compiled",
    reps: Annotated[int, typer.Option(help="Repetitions of each contestant, interleaved.")] = 50,
    rotate_mb: Annotated[int, typer.Option(help="MB of inputs and weights a repetition runs over.")] = 200,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Keep the result in this file, from the first layer on; others' keys stay.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the roofline plot into this file.")
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="Commit to note in the file.  [default: git's]", show_default=False)
    ] = None,
) -> int:
    """Time packed layers beside bf16 and other libraries."""
    from harness.bench import shapes as known

    chosen = known.parse_formats(formats)
    many = [] if shapes == "none" else [(shape, rows) for shape in known.parse_shapes(shapes)]
    small = [] if few_shapes == "none" else known.parse_shapes(few_shapes)
    few = [
        (shape, count)
        for shape in small
        for count in split_counts(few_rows, "--few-rows", "positive numbers")
    ]
    if rows < 1 or reps < 1 or rotate_mb < 0:
        raise UserError("--rows and --reps are at least 1, --rotate-mb at least 0")
    settings = _settings(device, launch, reps, scales, peers, rotate_mb)
    _check_formats(chosen, settings)
    if settings.device.type == "cpu":
        _check_size([*many, *few])
    layers = [(*one, [each for each in chosen if not each.weight_only]) for one in many]
    layers += [(*one, [each for each in chosen if each.weight_only]) for one in few]
    found = _measure(settings, layers, json_file, plot, commit)
    return 1 if any(row.contestant == "packed" and row.state != "ok" for row in found) else 0


def _check_formats(chosen: Sequence[NumberFormat], settings: Settings) -> None:
    """Pack a small layer in each format, before a large one is made."""
    from harness.bench.kernels import scales_of
    from harness.bench.layers import packed_linear, random_linear
    from harness.bench.shapes import GROUP, Shape

    for numbers in chosen:
        try:
            packed_linear(*random_linear(Shape("", GROUP, 1), "cpu"), numbers, scales_of(numbers, settings))
        except ValueError as error:
            raise UserError(f"--formats {numbers.name}, --scales {settings.scales}: {error}") from error


def _settings(device: str, launch: str, reps: int, scales: str, peers: str, rotate_mb: int) -> Settings:
    import torch

    from harness.bench.kernels import LAUNCHES, Settings
    from harness.kernels.quantizers.scales import SCALE_FORMATS

    if scales not in {"auto", *SCALE_FORMATS}:
        raise unknown("--scales", scales, ("auto", *SCALE_FORMATS))
    if device not in {"auto", "cuda", "cpu"}:
        raise unknown("--device", device, ("auto", "cuda", "cpu"))
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(
            "bench kernels needs a CUDA device, and torch sees none; to try it out: --device cpu "
            "--shapes 256x512 --rows 32 --few-shapes 256x512"
        )
    asked = split_names(launch)
    if not asked:
        raise UserError(f"--launch {launch!r} names none of {', '.join(LAUNCHES)}")
    for name in asked:
        if name not in LAUNCHES:
            raise unknown("--launch", name, LAUNCHES)
    launches = tuple(name for name in LAUNCHES if name in asked)
    return Settings(
        device=torch.device("cpu" if device == "cpu" else "cuda"),
        launches=("eager",) if device == "cpu" else launches,
        repetitions=reps,
        scales=cast("ScaleFormat | Literal['auto']", scales),
        peers=_peers(peers),
        rotated=rotate_mb * 10**6,
    )


def _peers(text: str) -> tuple[Peer, ...]:
    from harness.bench.peers import PEERS

    if text in {"all", "none"}:
        return PEERS if text == "all" else ()
    by_name = {peer.name: peer for peer in PEERS}
    names = split_names(text)
    if not names:
        raise UserError(f"--peers {text!r} names no library; to time none: --peers none")
    for name in names:
        # Some names hold a comma; their beginning is enough for any.
        if not any(known.startswith(name) for known in by_name):
            raise unknown("peer", name, by_name)
    return tuple(peer for peer in PEERS if any(peer.name.startswith(name) for name in names))


def _check_size(layers: Sequence[tuple[Shape, int]]) -> None:
    for shape, rows in layers:
        if shape.k * shape.n * rows > _MOST_ON_CPU:
            raise UserError(
                f"{shape.name} at {rows} rows is too large for --device cpu; give small ones, as "
                "--shapes 256x512 --rows 32 --few-shapes 256x512"
            )


def _measure(
    settings: Settings,
    layers: Sequence[tuple[Shape, int, Sequence[NumberFormat]]],
    json_file: Path | None,
    plot: Path | None,
    commit: str | None,
) -> list[Row]:
    """Time the layers, print the tables and write the files asked for."""
    from rich.console import Console

    from harness.bench.keeping import KeptResult
    from harness.bench.kernels import is_headline
    from harness.bench.report import SECTION, UNFINISHED

    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, highlight=False)

    kept, stamp = KeptResult(json_file, say), dict[str, Any]()

    def keep(content: dict[str, Any], found: Sequence[Row]) -> None:
        if not stamp:
            stamp.update(_stamp(settings, content["gpu_before"]["driver"], commit))
        section = {**stamp, **content}
        if len(content["gpu_after_each_layer"]) < len(layers):
            kept.keep(UNFINISHED, section, {})
            return
        figures = {**stamp, **_figures(found, settings)}
        kept.keep(SECTION, section, figures, lambda key: key == UNFINISHED or is_headline(key))

    content, found = _run(settings, layers, keep, say)
    _print(found, settings)
    if plot is not None:
        _draw(content, found, plot)
    kept.settle()
    return found


def _run(
    settings: Settings,
    layers: Sequence[tuple[Shape, int, Sequence[NumberFormat]]],
    keep: Callable[[dict[str, Any], Sequence[Row]], None],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[Row]]:
    """Time every layer and return the section of the file and its rows; hand both to `keep` after each."""
    import time
    from dataclasses import asdict

    from harness.bench.kernels import bench_layer
    from harness.bench.report import rows_json
    from harness.compat import quiet_imports
    from harness.measure.floor import measure_ceilings
    from harness.measure.gpu import gpu_state
    from harness.measure.timing import one_line

    with quiet_imports():
        before, ceilings = gpu_state(settings.device), measure_ceilings(settings.device)
        say(f"ceilings: copy {ceilings.bandwidth / 1e12:.3g} TB/s, bf16 {ceilings.bf16 / 1e12:.4g} TFLOP/s")
        names = [f"{shape.name} {shape.k} → {shape.n}, {rows} rows" for shape, rows, _ in layers]
        found: list[Row] = []
        content: dict[str, Any] = {
            "settings": {
                "device": str(settings.device),
                "launches": list(settings.launches),
                "repetitions": settings.repetitions,
                "scales": settings.scales,
                "rotated_bytes": settings.rotated,
            },
            "stages": dict.fromkeys(names, "not started"),
            "ceilings": asdict(ceilings),
            "gpu_before": asdict(before),
            "gpu_after_each_layer": [],
            "rows": [],
        }
        for name, (shape, rows, formats) in zip(names, layers, strict=True):
            started = time.monotonic()
            try:
                found += bench_layer(shape, rows, formats, settings, ceilings)
            except BaseException as error:
                content["stages"][name] = f"failed: {one_line(error)}"
                if found:  # a run that has measured nothing must not replace one that has
                    keep(content, found)
                raise
            content["stages"][name] = "done"
            after = {"layer": shape.name, "rows": rows, **asdict(gpu_state(settings.device))}
            content["gpu_after_each_layer"].append(after)
            content["rows"] = rows_json(found)
            say(f"{name}: {time.monotonic() - started:.1f} s")
            keep(content, found)
    return content, found


def _figures(found: Sequence[Row], settings: Settings) -> dict[str, float]:
    from harness.bench.kernels import headline

    return headline(found) if settings.device.type == "cuda" else {}


def _stamp(settings: Settings, driver: str | None, commit: str | None) -> dict[str, Any]:
    """Return what stands beside the figures at the top of the file."""
    from harness.bench import report
    from harness.bench.kernels import versions_of
    from harness.measure.environment import environment

    around = environment()
    return {
        "commit": commit or report.commit(),
        "driver": driver,
        "gpu": around["gpu"],
        "versions": {"python": around["python"], **around["versions"], **versions_of(settings.peers)},
    }


def _print(found: Sequence[Row], settings: Settings) -> None:
    from harness.bench import report

    for name, table in report.tables(found).items():
        print(f"## {name}\n\n{table}")
    for name, value in _figures(found, settings).items():
        print(f"{name}: {value:.3f}")


def _draw(content: dict[str, Any], found: Sequence[Row], plot: Path) -> None:
    from harness.measure.floor import Ceilings
    from harness.reports.roofline import roofline_figure

    figure = roofline_figure(found, Ceilings(**content["ceilings"]))
    try:
        figure.savefig(plot)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {plot}: {error}") from error
