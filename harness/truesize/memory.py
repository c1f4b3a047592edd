"""What one denoiser holds and needs, measured in a process of its own.

`python -m harness.truesize.memory REQUEST.json PARENT` builds one model, runs two steps and prints what was
seen as one JSON line; it ends with PARENT, the id of the process that started it. With a cap, the allocator
refuses what a card of that size would refuse: whether a model "fits in 8 GB" is found, not computed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness.kernels.layers import PackedLayer
from harness.measure.memory import forward_peak_bytes
from harness.models import registry as models
from harness.models.configs import DenoiserConfig
from harness.truesize.build import build_empty, materialise
from harness.truesize.inputs import denoiser_inputs
from harness.truesize.orphan import end_with
from harness.truesize.quantize import Recipe, host_peak_bytes, load_true_size

CONTEXT_BYTES = 512 * 2**20
"""Left free under a cap: the driver's context and code, which the allocator does not count."""
_TIMEOUT = 900


@dataclass(frozen=True)
class MemoryRequest:
    """One model to be looked at.

    Attributes:
        recipe: the model; without a folder only its card, config, inputs and seed count.
        folder: of its finished blocks, or None for the model in 16 bits.
        device: where it goes.
        dtype: of its floating tensors.
        batch: samples of the step.
        cap_bytes: memory of the card to be imitated, or None for all there is.
    """

    recipe: Recipe
    folder: Path | None
    device: str
    dtype: str
    batch: int
    cap_bytes: int | None = None


@dataclass(frozen=True)
class MemorySeen:
    """What was seen.

    Attributes:
        fits: whether it was built and both steps ran.
        stage: where memory ran out: `load` or `step`; empty when it did not.
        packed_bytes: weights in packed layers.
        kept_bytes: all other weights.
        load_peak_bytes: most the allocator held until the weights were in place.
        scratch_bytes: what the first step left allocated besides its result (workspaces kept for reuse).
        activation_bytes: most the second step held beyond weights and scratch.
        peak_bytes: most the allocator held during the second step.
        host_peak_bytes: most resident memory of the process.
        load_seconds: until the weights were in place.
    """

    fits: bool
    stage: str = ""
    packed_bytes: int = 0
    kept_bytes: int = 0
    load_peak_bytes: int = 0
    scratch_bytes: int = 0
    activation_bytes: int = 0
    peak_bytes: int = 0
    host_peak_bytes: int = 0
    load_seconds: float = 0.0


def in_own_process(request: MemoryRequest) -> MemorySeen:
    """Look at a model in a fresh Python process.

    Raises:
        RuntimeError: the process failed for another reason than memory; its last line is given.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(to_json(request)), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "harness.truesize.memory", str(path), str(os.getpid())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise RuntimeError(f"measuring memory failed: {last}")
    return MemorySeen(**json.loads(done.stdout.strip().splitlines()[-1]))


def smallest_card(request: MemoryRequest, sizes: tuple[int, ...]) -> dict[int, MemorySeen]:
    """Try cards from the smallest up until one is large enough.

    Args:
        request: the model; its own cap does not count.
        sizes: memories of cards in GiB, ascending.

    Returns:
        What was seen by size, the last of them the one that fits; larger ones were not tried.
    """
    seen: dict[int, MemorySeen] = {}
    for size in sizes:
        seen[size] = in_own_process(replace(request, cap_bytes=size * 2**30))
        if seen[size].fits:
            break
    return seen


def look(request: MemoryRequest) -> MemorySeen:
    """Build the model in this process, run two steps and say what was seen."""
    device, dtype = torch.device(request.device), getattr(torch, request.dtype)
    if request.cap_bytes is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = max(0.0, min(1.0, (request.cap_bytes - CONTEXT_BYTES) / total))
        torch.cuda.set_per_process_memory_fraction(share, device)
    started = time.perf_counter()
    try:
        denoiser = _build(request, device, dtype)
    except torch.OutOfMemoryError:
        return MemorySeen(False, "load", host_peak_bytes=host_peak_bytes())
    packed, kept = weight_bytes(denoiser)
    seen = MemorySeen(
        True, "", packed, kept, _peak(device), load_seconds=round(time.perf_counter() - started, 3)
    )
    recipe = request.recipe
    shape: dict[str, Any] = {"batch": request.batch, "side": recipe.side, "text_tokens": recipe.text_tokens}
    call = denoiser_inputs(recipe.card, recipe.config.config, device, dtype, **shape, seed=recipe.seed)
    try:
        with torch.no_grad():
            seen = _two_steps(lambda: denoiser(**call), device, seen)
    except torch.OutOfMemoryError:
        seen = replace(seen, fits=False, stage="step")
    return replace(seen, host_peak_bytes=host_peak_bytes())


def weight_bytes(denoiser: torch.nn.Module) -> tuple[int, int]:
    """Return the bytes of packed layers and of everything else; storage that several share counts once."""
    packed: dict[int, int] = {}
    every: dict[int, int] = {}
    for module in denoiser.modules():
        inside = isinstance(module, PackedLayer)
        tensors = [*module.parameters(inside), *module.buffers(inside)]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        every |= sizes
        if inside:
            packed |= sizes
    total = sum(packed.values())
    return total, sum(every.values()) - total


def to_json(request: MemoryRequest) -> dict[str, Any]:
    """Return the request as JSON types."""
    recipe = request.recipe
    fields = {**asdict(recipe), "card": recipe.card.name}
    folder = None if request.folder is None else str(request.folder)
    return {**{k: getattr(request, k) for k in ("device", "dtype", "batch", "cap_bytes")}, "folder": folder,
            "recipe": fields}  # fmt: skip


def from_json(data: dict[str, Any]) -> MemoryRequest:
    """Undo `to_json`."""
    fields = dict(data["recipe"])
    fields["card"] = models.get(fields["card"])
    fields["config"] = DenoiserConfig(**fields["config"])
    folder = None if data["folder"] is None else Path(data["folder"])
    return MemoryRequest(**{**data, "folder": folder, "recipe": Recipe(**fields)})


def held_bytes(device: torch.device) -> int:
    """Return what the allocator holds on the device now; 0 on the CPU."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


def _build(request: MemoryRequest, device: torch.device, dtype: torch.dtype) -> Any:
    if request.folder is not None:
        return load_true_size(request.recipe, request.folder, device, dtype)
    denoiser = build_empty(request.recipe.config)
    materialise(denoiser, device, dtype, seed=request.recipe.seed)
    return denoiser


def _peak(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def _two_steps(step: Callable[[], object], device: torch.device, seen: MemorySeen) -> MemorySeen:
    weights = seen.packed_bytes + seen.kept_bytes
    if device.type != "cuda":
        used = forward_peak_bytes(step, device)
        return replace(seen, activation_bytes=used, peak_bytes=weights + used)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    scratch = max(0, torch.cuda.memory_allocated(device) - before)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    peak = _peak(device)
    return replace(
        seen, scratch_bytes=scratch, peak_bytes=peak, activation_bytes=max(0, peak - weights - scratch)
    )


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    print(json.dumps(asdict(look(from_json(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))))
