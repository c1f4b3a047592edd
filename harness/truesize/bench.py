"""`harness bench model`: quantize a model of true size, look at its memory, time one denoising step."""

from __future__ import annotations

import gc
import importlib
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness.bench.peers import FP8_ROWWISE, NF4, WHOLE_MODEL_PEERS, Peer
from harness.measure.environment import environment
from harness.measure.gpu import gpu_state
from harness.measure.timing import Contestant, one_line, race
from harness.models.configs import CONFIGS
from harness.truesize.build import build_empty, materialise
from harness.truesize.image import COMPANIONS, make_image
from harness.truesize.inputs import default_batch, denoiser_inputs
from harness.truesize.memory import (
    MemoryRequest,
    MemorySeen,
    held_bytes,
    in_own_process,
    smallest_card,
)
from harness.truesize.quantize import (
    QuantizedModel,
    Recipe,
    host_peak_bytes,
    load_true_size,
    quantize_true_size,
)
from harness.truesize.timing import against, compile_blocks

REFERENCE = "bf16"
SIXTEEN_BIT = "W16A16"
GRAPH = "graph"
"""The compiled step of each model replayed as one CUDA graph: what it takes on the device, launches aside."""


@dataclass(frozen=True)
class BenchRequest:
    """What is measured.

    Attributes:
        recipe: the model, and how it is quantized.
        quantized: whether it is; else only the 16-bit model and the peers are measured.
        folder: of the finished blocks.
        device: where.
        dtype: of the 16-bit model.
        batch: samples of a step; None for one image's.
        compile: whether steps are timed under `torch.compile` too.
        reference: whether the 16-bit model is built and timed beside.
        peers: names of `WHOLE_MODEL_PEERS`; those not installed are rows that say so.
        caps: sizes of cards in GiB for "fits in", ascending.
        rounds: timed runs of each model.
        warm_up: untimed runs of each before.
        quantize_only: stop when the model is quantized.
        image: whether one whole image is made too.
        steps: its sampling steps; None for the card's.
    """

    recipe: Recipe
    quantized: bool
    folder: Path
    device: torch.device
    dtype: torch.dtype
    batch: int | None = None
    compile: bool = False
    reference: bool = True
    peers: tuple[str, ...] = tuple(peer.name for peer in WHOLE_MODEL_PEERS)
    caps: tuple[int, ...] = (8, 12, 16, 24)
    rounds: int = 20
    warm_up: int = 3
    quantize_only: bool = False
    image: bool = False
    steps: int | None = None

    @property
    def name(self) -> str:
        """Name of the quantized model's row."""
        return f"{self.recipe.method} W{self.recipe.w_bits}A{self.recipe.a_bits}"

    @property
    def step_batch(self) -> int:
        """Samples of a step."""
        return self.batch or default_batch(self.recipe.card)


Say = Callable[[str], None]


def run_bench(request: BenchRequest, say: Say) -> dict[str, Any]:
    """Do everything asked for and return the result as JSON types; `say` takes lines of progress.

    Raises:
        UserError: the method, its settings or the folder do not go together.
    """
    quantize = _quantize(request, say) if request.quantized else None
    memory = {} if request.quantize_only else _memory(request, say)
    rows = [] if request.quantize_only else _time(request, say)
    images = _images(request, say) if request.image else {}
    for row in rows:
        row.update(memory.get(row["name"], {}))
        if row["name"] in images:
            row["image"] = images[row["name"]]
    recipe = request.recipe
    result = {
        "model": recipe.card.name,
        "weights": "random",
        "quality": "n/a: random weights",
        "bits": f"W{recipe.w_bits}A{recipe.a_bits}" if request.quantized else None,
        "batch": request.step_batch,
        "side": recipe.side or recipe.card.sampling.height,
        "recipe": recipe.manifest(request.dtype) if request.quantized else None,
        "environment": environment(),
        "quantize": quantize,
        "rows": rows,
    }
    return {**result, "headline": headline(result, request)}


def _quantize(request: BenchRequest, say: Say) -> dict[str, Any]:
    say(f"quantizing {request.recipe.card.name} by {request.name} into {request.folder}")
    done: QuantizedModel = quantize_true_size(
        request.recipe, request.folder, request.device, request.dtype, say
    )
    found: dict[str, Any] = {
        "seconds": done.seconds,
        "phases": done.phases,
        "blocks": done.blocks,
        "resumed": done.resumed,
        "layers": len(done.targets),
        "calls": request.recipe.calls,
        "device_peak_bytes": done.device_peak_bytes,
        "host_peak_bytes": done.host_peak_bytes,
    }
    del done
    _free()
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found["phases"].items())
    say(f"quantized in {found['seconds']:.1f} s ({spent} s)")
    return found


def _memory(request: BenchRequest, say: Say) -> dict[str, dict[str, Any]]:
    """Look at the quantized and the 16-bit model, each in processes of its own."""
    recipe = replace(request.recipe, batch=1)
    dtype = str(request.dtype).removeprefix("torch.")
    plain = MemoryRequest(recipe, None, str(request.device), dtype, request.step_batch)
    wanted = {request.name: replace(plain, folder=request.folder)} if request.quantized else {}
    if request.reference:
        wanted[REFERENCE] = plain
    found: dict[str, dict[str, Any]] = {}
    for name, one in wanted.items():
        try:
            found[name] = _looked_at(name, one, request, say)
        except (RuntimeError, subprocess.TimeoutExpired) as error:  # what else there is to measure goes on
            say(str(error))
            found[name] = {"memory_error": str(error)}
    return found


def _looked_at(name: str, one: MemoryRequest, request: BenchRequest, say: Say) -> dict[str, Any]:
    seen = in_own_process(one)
    say(f"memory of {name}: {_memory_line(seen)}")
    tried = smallest_card(one, request.caps) if request.device.type == "cuda" else {}
    for size, card in tried.items():
        say(f"{name} in {size} GB: {'fits' if card.fits else f'out of memory ({card.stage})'}")
    return {
        "memory": asdict(seen),
        "fits_in_gb": next((size for size, card in tried.items() if card.fits), None),
        "caps_tried": {str(size): asdict(card) for size, card in tried.items()},
    }


def _images(request: BenchRequest, say: Say) -> dict[str, dict[str, Any]]:
    """Make one whole image with the quantized and the 16-bit model, resident and off-loaded."""
    found: dict[str, dict[str, Any]] = {}
    own = {request.name, REFERENCE}
    for name, _, build in _contestants(request):
        if name not in own or build is None:
            continue
        found[name] = {}
        for where in ("resident", "offload"):
            importlib.import_module("torch._dynamo").reset()  # or compiled code would keep former models
            _free()
            try:
                found[name][where] = _image(request, build, where == "offload")
            except Exception as error:  # a model whose image fails is a row, the others go on
                traceback.print_exc()
                found[name][where] = {"error": one_line(error)}
                continue
            seen = found[name][where]
            say(f"image by {name}, {where}: {seen['ms']:.0f} ms, peak {seen['peak_bytes'] / 2**30:.2f} GiB")
    return found


def _image(request: BenchRequest, build: Callable[[], Any], offload: bool) -> dict[str, Any]:
    recipe = request.recipe
    seen = make_image(
        build(),
        COMPANIONS[recipe.card.name],
        recipe.card,
        request.device,
        request.dtype,
        offload=offload,
        side=recipe.side,
        text_tokens=recipe.text_tokens,
        steps=request.steps,
    )
    return {**asdict(seen), "host_peak_bytes": host_peak_bytes()}


def _memory_line(seen: MemorySeen) -> str:
    parts = {
        "packed": seen.packed_bytes,
        "kept": seen.kept_bytes,
        "scratch": seen.scratch_bytes,
        "activations": seen.activation_bytes,
        "peak": seen.peak_bytes,
        "peak of loading": seen.load_peak_bytes,
    }
    return ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items()) + " GiB"


def _time(request: BenchRequest, say: Say) -> list[dict[str, Any]]:
    """Time one step of every model in turns: eager, compiled, and on a GPU compiled in one CUDA graph."""
    rows: list[dict[str, Any]] = []
    models: dict[str, Any] = {}
    for name, bits, build in _contestants(request):
        row: dict[str, Any] = {"name": name, "bits": bits}
        rows.append(row)
        if build is None:
            row["error"] = "not installed"
            continue
        _free()
        before = held_bytes(request.device)
        try:
            models[name] = build()
        except Exception as error:  # a peer that fails is a row, the others go on
            traceback.print_exc()
            row["error"] = one_line(error)
            continue
        _free()
        row["weights_bytes"] = held_bytes(request.device) - before
    recipe = request.recipe
    shape: dict[str, Any] = {"side": recipe.side, "text_tokens": recipe.text_tokens, "seed": recipe.seed}
    call = denoiser_inputs(
        recipe.card, recipe.config.config, request.device, request.dtype, batch=request.step_batch, **shape
    )
    _turns(request, models, rows, call, "eager", say)
    if request.compile:
        uncompiled = {peer.name for peer in WHOLE_MODEL_PEERS if not peer.compiled}
        chosen = {name: model for name, model in models.items() if name not in uncompiled}
        for row in rows:
            if row["name"] in chosen:
                row["compiled_as"] = compile_blocks(chosen[row["name"]])
        _turns(request, chosen, rows, call, "compiled", say)
        if request.device.type == "cuda":
            whole = {row["name"] for row in rows if "compiled_ms" in row}
            _turns(request, {n: m for n, m in chosen.items() if n in whole}, rows, call, GRAPH, say)
    return rows


def _turns(
    request: BenchRequest,
    models: dict[str, Any],
    rows: list[dict[str, Any]],
    call: Mapping[str, Any],
    mode: str,
    say: Say,
) -> None:
    """Time the models that run, and put what was found into their rows."""
    by_name = {row["name"]: row for row in rows}
    runs: dict[str, Callable[[], object]] = {}
    with torch.no_grad():
        for name, model in list(models.items()):
            step = _step(model, call)
            try:
                started = time.perf_counter()
                step()
                if request.device.type == "cuda":
                    torch.cuda.synchronize(request.device)
                say(f"first {mode} step of {name}: {time.perf_counter() - started:.1f} s")
                runs[name] = step
            except Exception as error:  # as above
                traceback.print_exc()
                by_name[name][f"{mode}_error"] = one_line(error)
        if not runs:
            return
        before = gpu_state(request.device)
        racing = [Contestant(name, (step,), graph=mode == GRAPH) for name, step in runs.items()]
        raced = race(racing, request.device, repetitions=request.rounds, warm_up=request.warm_up)
        after = gpu_state(request.device)
    times = {name: found.ms for name, found in raced.items() if found.ms}
    for name in raced.keys() - times.keys():
        by_name[name][f"{mode}_error"] = raced[name].reason
        say(f"{mode} step of {name}: {raced[name].reason}")
    if not times:
        return
    reference = REFERENCE if REFERENCE in times else next(iter(times))
    for name, found in against(times, reference).items():
        by_name[name][f"{mode}_ms"] = {**asdict(found), "over": reference, "values": times[name]}
        by_name[name][f"{mode}_clocks"] = {"before": asdict(before), "after": asdict(after)}
        say(f"{mode} step of {name}: {found.median:.1f} ms ({found.speedup:.2f}× {reference})")
    if request.name in times:
        for name, found in against(times, request.name).items():
            if name != request.name:
                # Above 1: the quantized model is faster than this one.
                by_name[name][f"{mode}_ours_faster"] = [
                    1 / found.speedup, 1 / found.speedup_hi, 1 / found.speedup_lo
                ]  # fmt: skip


def _step(model: Any, call: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: model(**call)


def _contestants(request: BenchRequest) -> list[tuple[str, str, Callable[[], Any] | None]]:
    """Name, bits and builder of every model to be timed; no builder where a package is missing."""
    recipe, device, dtype = request.recipe, request.device, request.dtype

    def plain() -> Any:
        denoiser = build_empty(recipe.config)
        materialise(denoiser, device, dtype, seed=recipe.seed)
        return denoiser

    def of(peer: Peer) -> Callable[[], Any]:
        def build() -> Any:
            denoiser = plain()
            assert peer.whole is not None
            with torch.no_grad():
                peer.whole(denoiser)
            return denoiser

        return build

    found: list[tuple[str, str, Callable[[], Any] | None]] = []
    if request.quantized:
        bits = f"W{recipe.w_bits}A{recipe.a_bits}"
        found.append((request.name, bits, lambda: load_true_size(recipe, request.folder, device, dtype)))
    if request.reference:
        found.append((REFERENCE, SIXTEEN_BIT, plain))
    peers = [peer for peer in WHOLE_MODEL_PEERS if peer.name in request.peers]
    return found + [(peer.name, peer.label, of(peer) if peer.installed else None) for peer in peers]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def headline(result: Mapping[str, Any], request: BenchRequest) -> dict[str, float]:
    """Return the few figures that stand for a run of FLUX.1-dev as published; none for any other.

    Ratios above 1 mean that ours is faster.
    """
    recipe = request.recipe
    whole = recipe.config == CONFIGS[recipe.card.name] and recipe.side is None and recipe.text_tokens is None
    if not (request.quantized and whole and recipe.card.name == "flux.1-dev"):
        return {}
    rows = {row["name"]: row for row in result["rows"]}
    ours = rows.get(request.name, {})
    found: dict[str, float] = {}
    timed = ours.get("compiled_ms") or ours.get("eager_ms")
    if timed:
        found["flux_step_ms"] = timed["median"]
    if ours.get("graph_ms"):
        found["flux_step_graph_ms"] = ours["graph_ms"]["median"]
    for key, row, mode in (
        ("flux_step_vs_bf16_compiled", REFERENCE, "compiled"),
        ("flux_step_vs_bf16_eager", REFERENCE, "eager"),
        ("flux_step_vs_torchao_fp8_compiled", FP8_ROWWISE, "compiled"),
        ("flux_step_vs_bf16_graph", REFERENCE, GRAPH),
        ("flux_step_vs_torchao_fp8_graph", FP8_ROWWISE, GRAPH),
        ("flux_step_vs_nf4_eager", NF4, "eager"),
    ):
        ratio = rows.get(row, {}).get(f"{mode}_ours_faster")
        if ratio:
            found[key] = ratio[0]
    memory = ours.get("memory")
    if memory:
        found["flux_weights_gib"] = (memory["packed_bytes"] + memory["kept_bytes"]) / 2**30
        found["flux_peak_gib"] = memory["peak_bytes"] / 2**30
        found["flux_load_peak_gib"] = memory["load_peak_bytes"] / 2**30
    if result["quantize"] and not result["quantize"]["resumed"]:
        found["flux_quantize_s"] = result["quantize"]["seconds"]
        found["flux_quantize_host_gib"] = result["quantize"]["host_peak_bytes"] / 2**30
    return found
