"""Times packed linear layers beside bf16 and other libraries: `harness bench kernels`."""

from __future__ import annotations

import copy
import gc
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import Tensor

from harness.bench.layers import (
    input_quantizer,
    packed_linear,
    random_input,
    random_linear,
    road_of,
    weight_grid,
)
from harness.bench.peers import BASELINE, PEERS, Peer, float64_linear
from harness.bench.shapes import FLUX, FLUX_ROWS, MODULATION, NumberFormat, Shape
from harness.conformance.definition import layer_float64, relative_error
from harness.kernels.dispatch import OLDEST_FP8
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.scales import LARGEST_E8M0_UNIT, ScaleFormat, largest_unit
from harness.measure.floor import Ceilings, Work, linear_work
from harness.measure.timing import (
    ROTATED_BYTES,
    Contestant,
    Times,
    copies_needed,
    one_line,
    paired_ratio,
    race,
)

Launch = Literal["eager", "graph", "compiled"]
LAUNCHES: tuple[Launch, ...] = ("eager", "graph", "compiled")
"""Calls from Python; the same in one CUDA graph; calls of the layer compiled by torch, in one CUDA graph."""
HEADLINE: Launch = "graph"
"""The launch whose ratios are the headline figures: time on the device, for both sides."""
OURS = "packed"
ACCURACY_ROWS = 256
FEW = 64
"""Up to so many rows a layer counts as memory-bound, and weight-only formats are timed."""


@dataclass(frozen=True)
class Row:
    """One contestant on one layer under one launch; JSON keys are the field names.

    Attributes:
        layer: name of the shape.
        rows: input rows (tokens).
        k: input features.
        n: output features.
        contestant: `bf16`, `packed`, or a peer.
        format: widths, as `w4a4`.
        launch: see `LAUNCHES`.
        state: `ok`, or `n/a`.
        reason: why not, one line.
        ms: median milliseconds of one call.
        ms_lo: first quartile.
        ms_hi: third quartile.
        ratio: median time of bf16 under the same launch over this one's: above 1 is faster than bf16.
        ratio_lo: lower end of its 95 % interval, from a bootstrap paired by repetition.
        ratio_hi: upper end.
        floor_ms: least time at the measured ceilings.
        of_floor: `ms` over `floor_ms`.
        bytes: fewest bytes moved.
        operations: operations needed.
        error: relative error against the float64 layer before quantization.
        kernel_error: relative error against float64 on the layer's own stored numbers, for `packed`.
        road: kernels that ran, for `packed`.
        copies: copies of input and weight a repetition ran over.
        complete: False for a bare product that leaves out the input's quantization.
        scales: scale format of a packed layer with quantized inputs; empty for all others.
    """

    layer: str
    rows: int
    k: int
    n: int
    contestant: str
    format: str
    launch: str
    state: Literal["ok", "n/a"] = "ok"
    reason: str = ""
    ms: float | None = None
    ms_lo: float | None = None
    ms_hi: float | None = None
    ratio: float | None = None
    ratio_lo: float | None = None
    ratio_hi: float | None = None
    floor_ms: float | None = None
    of_floor: float | None = None
    bytes: int | None = None
    operations: int | None = None
    error: float | None = None
    kernel_error: float | None = None
    road: str = ""
    copies: int = 0
    complete: bool = True
    scales: str = ""


@dataclass(frozen=True)
class Settings:
    """How layers are timed.

    Attributes:
        device: where.
        launches: some of `LAUNCHES`; only `eager` elsewhere than on CUDA.
        repetitions: timed runs per contestant.
        scales: scale format of layers with quantized inputs; `auto` is `fastest_scales`.
        peers: timed beside.
        rotated: bytes of inputs and weights a repetition runs over at least.
    """

    device: torch.device
    launches: tuple[Launch, ...] = LAUNCHES
    repetitions: int = 50
    scales: ScaleFormat | Literal["auto"] = "auto"
    peers: tuple[Peer, ...] = PEERS
    rotated: int = ROTATED_BYTES


@dataclass
class _Built:
    """A contestant's copies of one layer, or why there are none."""

    name: str
    format: NumberFormat
    work: Work
    launches: tuple[Launch, ...]
    layers: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    reason: str = ""
    errors: tuple[float | None, float | None] = (None, None)
    road: str = ""
    complete: bool = True
    scales: str = ""

    def key(self, launch: str) -> str:
        return f"{self.name}|{self.format.name}|{launch}"


def bench_layer(
    shape: Shape, rows: int, formats: Sequence[NumberFormat], settings: Settings, ceilings: Ceilings
) -> list[Row]:
    """Time one layer: bf16, packed in each format, and the peers, all in one race.

    Args:
        shape: the layer.
        rows: rows of its input.
        formats: of the packed layers.
        settings: how.
        ceilings: of the device, for the floors.

    Returns:
        Rows in the order bf16, packed, peers; for each its launches.
    """
    weight, bias = random_linear(shape, settings.device)
    few = rows <= FEW
    with torch.no_grad(), _room_to_compile(settings.device):
        built = [_peer(BASELINE, shape, rows, weight, bias, settings)]
        built += [_ours(numbers, shape, rows, weight, bias, settings) for numbers in formats]
        chosen = [peer for peer in settings.peers if (peer.few if few else peer.many)]
        built += [_peer(peer, shape, rows, weight, bias, settings) for peer in chosen]
        count = max((len(one.layers) for one in built), default=1)
        inputs = [random_input(rows, shape.k, settings.device, 1 + i) for i in range(max(1, count))]
        for one in built:
            _judge(one, inputs[0], weight, bias)
        contestants = list(_contestants(built, inputs))
        found = race(contestants, settings.device, repetitions=settings.repetitions)
        rows_found = [
            _row(shape, rows, one, launch, found, built[0], ceilings)
            for one in built
            for launch in one.launches
        ]
    del built, contestants, inputs, weight, bias
    _forget(settings.device)
    return rows_found


def fastest_scales(numbers: NumberFormat, device: torch.device) -> ScaleFormat:
    """Return the scale format whose kernels are meant for a card, of a layer with quantized inputs.

    `e8m0`, whose products are float8, where inputs have groups as weights do (up to 4 bits), weights fit
    (up to 5 bits) and the card has float8 tensor cores; else `integer`, whose products are int8.
    """
    act = input_quantizer(numbers)
    if act is None or act.granularity != "group" or device.type != "cuda":
        return "integer"
    if largest_unit(numbers.w_bits, weight_grid(numbers)) > LARGEST_E8M0_UNIT:
        return "integer"
    return "e8m0" if torch.cuda.get_device_capability(device) >= OLDEST_FP8 else "integer"


def scales_of(numbers: NumberFormat, settings: Settings) -> ScaleFormat:
    """Return the scale format that a packed layer is timed with."""
    if numbers.weight_only:
        return "float"
    return fastest_scales(numbers, settings.device) if settings.scales == "auto" else settings.scales


def _launches(settings: Settings, compiled: bool) -> tuple[Launch, ...]:
    return tuple(launch for launch in settings.launches if compiled or launch != "compiled")


def _peer(peer: Peer, shape: Shape, rows: int, weight: Tensor, bias: Tensor, settings: Settings) -> _Built:
    """Build a peer's copies; its floor counts codes and bias, not the scales that each library stores."""
    numbers = NumberFormat(*peer.bits)
    held = shape.n * shape.k * peer.bits[0] // 8 + 2 * shape.n
    work = linear_work(rows, shape.k, shape.n, weight_bytes=held, act_bits=peer.bits[1])
    compiled = peer.compiled and (peer is BASELINE or rows > FEW)
    built = _Built(peer.name, numbers, work, _launches(settings, compiled), complete=peer.complete)
    copies = copies_needed(held + 2 * rows * shape.k, settings.rotated)
    try:
        built.layers = [peer.build(weight, bias) for _ in range(copies)]
    except ModuleNotFoundError as error:
        built.reason = f"{(error.name or str(error)).partition('.')[0]} is not installed"
    except Exception as error:  # a library fails in ways of its own; the others are timed
        built.reason = one_line(error)
    return built


def _ours(
    numbers: NumberFormat, shape: Shape, rows: int, weight: Tensor, bias: Tensor, settings: Settings
) -> _Built:
    """Build the copies of a packed layer: one is quantized, the others are loaded with its numbers."""
    scales = scales_of(numbers, settings)
    first = packed_linear(weight, bias, numbers, scales)
    held = sum(first.bytes_by_part().values())
    work = linear_work(rows, shape.k, shape.n, weight_bytes=held, act_bits=numbers.a_bits, rank=numbers.rank)
    named = "" if numbers.weight_only else scales
    built = _Built(OURS, numbers, work, _launches(settings, rows > FEW), scales=named)
    copies = copies_needed(held + 2 * rows * shape.k, settings.rotated)
    built.layers = [first, *(_clone(first) for _ in range(copies - 1))]
    return built


def _clone(layer: PackedLinear) -> PackedLinear:
    """Return a layer of the same numbers in memory of its own."""
    return copy.deepcopy(layer)


def _judge(one: _Built, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Run a contestant once and note its errors and its road; on failure note the reason instead."""
    if not one.layers:
        return
    layer = one.layers[0]
    try:
        y = layer(x)[:ACCURACY_ROWS]
    except Exception as error:  # as when it was built
        one.reason, one.layers = one_line(error), []
        return
    off = relative_error(y, float64_linear(x[:ACCURACY_ROWS], weight, bias))
    kernel = None
    if isinstance(layer, PackedLinear):
        kernel = relative_error(y, layer_float64(layer, x[:ACCURACY_ROWS]))
        one.road = road_of(layer, x)
    one.errors = (off, kernel)


def _contestants(built: Sequence[_Built], inputs: Sequence[Tensor]) -> Iterator[Contestant]:
    """Yield what is raced; a compiled layer is compiled in its first warm-up run."""
    for one in built:
        if not one.layers:
            continue
        for launch in one.launches:
            layers = [_compiled(layer) for layer in one.layers] if launch == "compiled" else one.layers
            calls = tuple(
                _call(layer, x) for layer, x in zip(layers, islice(cycle(inputs), len(layers)), strict=True)
            )
            yield Contestant(one.key(launch), calls, graph=launch != "eager")


def _call(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    return lambda: layer(x)


def _compiled(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    compiled: Callable[[Tensor], Tensor] = torch.compile(layer, fullgraph=True, dynamic=False)
    return compiled


def _room_to_compile(device: torch.device) -> AbstractContextManager[object]:
    """Forget what torch compiled before, and let it compile one graph per shape and copy without giving up.

    Nothing is compiled on the CPU.
    """
    if device.type != "cuda":
        return nullcontext()
    import torch._dynamo as dynamo

    dynamo.reset()
    patch: Any = dynamo.config.patch  # type: ignore[attr-defined]
    room: AbstractContextManager[object] = patch(recompile_limit=1024, accumulated_recompile_limit=8192)
    return room


def _forget(device: torch.device) -> None:
    """Give memory back between layers."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _row(
    shape: Shape,
    rows: int,
    one: _Built,
    launch: Launch,
    found: dict[str, Times],
    baseline: _Built,
    ceilings: Ceilings,
) -> Row:
    times = found.get(one.key(launch), Times((), one.reason))
    quartiles, floor = times.quartiles, one.work.floor_ms(ceilings)
    row: dict[str, Any] = {
        "layer": shape.name,
        "rows": rows,
        "k": shape.k,
        "n": shape.n,
        "contestant": one.name,
        "format": one.format.name,
        "launch": launch,
        "floor_ms": floor,
        "bytes": one.work.bytes,
        "operations": one.work.operations,
        "error": one.errors[0],
        "kernel_error": one.errors[1],
        "road": one.road,
        "complete": one.complete,
        "scales": one.scales,
    }
    if quartiles is None:
        return Row(**row, state="n/a", reason=times.reason or one.reason)
    theirs = found.get(baseline.key(launch), Times(()))
    ratio = paired_ratio(theirs.ms, times.ms) if theirs.ms else None
    return Row(
        **row,
        ms=quartiles.median,
        ms_lo=quartiles.lo,
        ms_hi=quartiles.hi,
        ratio=None if ratio is None else ratio.median,
        ratio_lo=None if ratio is None else ratio.lo,
        ratio_hi=None if ratio is None else ratio.hi,
        of_floor=quartiles.median / floor,
        copies=len(one.layers),
    )


def is_headline(name: str) -> bool:
    """Whether a figure is one of those that `headline` returns."""
    return re.fullmatch(r"w4a4_linear_\w+|gemv_w\d_m\d+", name) is not None


def headline(rows: Sequence[Row]) -> dict[str, float]:
    """Return the figures that are quoted: ratios to bf16, above 1 faster; only those that were measured.

    `w4a4_linear_geomean` and `_min` are over the five layers of a FLUX block at 4,608 rows and need all of
    them; the same with `_eager_` and `_compiled_` for the other launches. `gemv_wB_mM` is the weight-only
    format of B bits on the modulation layer at M rows.
    """
    ours = [row for row in rows if row.contestant == OURS and row.ratio is not None]
    figures = {}
    for launch in LAUNCHES:
        label = "" if launch == HEADLINE else f"{launch}_"
        ratios = {
            row.layer: float(row.ratio or 0)
            for row in ours
            if row.launch == launch and row.format == "w4a4" and row.rows == FLUX_ROWS
            for shape in FLUX
            if (row.layer, row.k, row.n) == (shape.name, shape.k, shape.n)
        }
        if len(ratios) == len(FLUX):
            figures[f"w4a4_linear_{label}geomean"] = statistics.geometric_mean(ratios.values())
            figures[f"w4a4_linear_{label}min"] = min(ratios.values())
    modulation = MODULATION[0]
    for row in ours:
        if (row.layer, row.k, row.n) == (modulation.name, modulation.k, modulation.n):
            bits, _, act = row.format[1:].partition("a")
            if row.launch == HEADLINE and act == "16":
                figures[f"gemv_w{bits}_m{row.rows}"] = float(row.ratio or 0)
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def versions_of(peers: Sequence[Peer]) -> dict[str, str]:
    """Return the installed versions of the peers' packages."""
    from importlib import metadata

    found = {}
    for package in sorted({peer.package for peer in peers if peer.package}):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
