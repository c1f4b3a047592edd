"""Quantizing a denoiser of true size block by block: it is never whole in 16 bits.

For each block: make its random 16-bit weights, run it on the calibration calls and keep the inputs of its
target layers (every token), hand the method a job of these targets, save the packed block, free the rest.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness.canonical import digest_json
from harness.errors import UserError
from harness.kernels.layers import PackedLayer
from harness.kernels.ties import tie_siblings
from harness.methods import registry
from harness.methods.contract import LayerTarget, MethodConfig, QuantizeJob
from harness.methods.phases import PhaseClock, clocked, phase
from harness.models.card import ModelCard
from harness.models.configs import DenoiserConfig
from harness.models.fuse import fuse_activations, fuse_projections
from harness.models.roles import hidden_width, targets
from harness.project import check_packed
from harness.truesize.blocks import block_file, load_block, save_block
from harness.truesize.build import build_empty, denoiser_class, materialise
from harness.truesize.inputs import denoiser_inputs
from harness.truesize.walk import Walk, chain_blocks, open_walk, unet_blocks

MANIFEST = "quantization.json"


@dataclass(frozen=True)
class Recipe:
    """What decides on the values of a quantized model of true size.

    Attributes:
        card: the model.
        config: its denoiser's class and config.
        method: a registered method.
        settings: of the method, as `--set` gives them.
        w_bits: weight bits.
        a_bits: activation bits.
        policy: which layers are quantized, see `harness.models.roles`.
        calls: calibration calls of the denoiser, at timesteps spread over the schedule.
        batch: samples of a calibration call.
        side: image side in pixels; the card's by default.
        text_tokens: caption length; the pipeline's by default.
        seed: of weights, inputs and method.
    """

    card: ModelCard
    config: DenoiserConfig
    method: str
    w_bits: int
    a_bits: int
    policy: str
    settings: Mapping[str, str] = field(default_factory=dict)
    calls: int = 8
    batch: int = 1
    side: int | None = None
    text_tokens: int | None = None
    seed: int = 0

    def method_config(self) -> MethodConfig:
        """Return the method's config; raises UserError for an unknown method or setting."""
        return registry.configure(self.method, self.settings)

    def manifest(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return what a folder of finished blocks must have been made with to be gone on with."""
        spec = registry.get(self.method)
        values = {
            **{key: value for key, value in asdict(replace(self, card=self.card)).items() if key != "card"},
            "model": self.card.name,
            "settings": asdict(self.method_config()),
            "method_version": spec.version,
            "dtype": str(dtype).removeprefix("torch."),
        }
        return {"digest": digest_json(json.loads(json.dumps(values))), **values}


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized denoiser of true size and what it took.

    Attributes:
        denoiser: packed, on the device.
        targets: the layers handed to the method.
        notes: the method's remarks by layer.
        seconds: of the blocks quantized now, calibration forward included.
        phases: seconds by phase; `search`, `refine`, `svd` and `pack` lie inside `method`.
        blocks: how many blocks there are.
        resumed: how many of them were there already.
        device_peak_bytes: most bytes the allocator held on the device; 0 on the CPU.
        host_peak_bytes: most resident memory of the process so far.
    """

    denoiser: Any
    targets: tuple[LayerTarget, ...]
    notes: dict[str, dict[str, Any]]
    seconds: float
    phases: dict[str, float]
    blocks: int
    resumed: int
    device_peak_bytes: int
    host_peak_bytes: int


def quantize_true_size(
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    say: Callable[[str], None] = lambda _: None,
) -> QuantizedModel:
    """Quantize a model with random weights, or go on where an earlier call stopped.

    Args:
        recipe: what is made.
        folder: of the finished blocks, one file each; made if it is missing.
        device: where all of it happens.
        dtype: of the 16-bit model.
        say: takes one line per block.

    Raises:
        UserError: the folder holds blocks of another recipe, the method does not take these bits, or the
            policy quantizes a layer outside of the blocks.
        CellError: the method left a layer unpacked, or a packed layer is not finite.
    """
    _check_bits(recipe)
    _claim(folder, recipe.manifest(dtype))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    denoiser_class(recipe.config)  # imported before the clock runs
    started = time.perf_counter()
    with torch.no_grad(), clocked(device) as clock:
        with phase("build"):
            denoiser = build_empty(recipe.config)
            found = targets(recipe.card, denoiser, recipe.w_bits, recipe.a_bits, recipe.policy)
            walk = open_walk(denoiser, calibration_calls(recipe, device, dtype), device, dtype, recipe.seed)
        notes, resumed = _every_block(recipe, denoiser, walk, found, folder, (device, dtype), clock, say)
    return QuantizedModel(
        denoiser,
        found,
        notes,
        time.perf_counter() - started,
        dict(clock.seconds),
        len(walk.blocks),
        resumed,
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        host_peak_bytes(),
    )


def load_true_size(recipe: Recipe, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the denoiser of a finished quantization, to be run: the blocks from files, the rest made anew.

    Packed q, k and v of one input are one layer where the attention can run from one.

    Raises:
        UserError: the folder is not of this recipe, or a block is missing or damaged.
    """
    _claim(folder, recipe.manifest(dtype))
    denoiser = build_empty(recipe.config)
    blocks = blocks_of(denoiser)
    with torch.no_grad():
        materialise(denoiser, device, dtype, seed=recipe.seed, skip=blocks)
        for block in blocks:
            load_block(denoiser, block, folder, device, dtype)
    even_smoothing(denoiser)
    fuse_projections(denoiser)
    fuse_activations(denoiser)
    return denoiser


def even_smoothing(denoiser: Any) -> None:
    """Give layers without smoothing a vector of ones where the same layer of another block is smoothed.

    Dividing by one changes no value. It makes the blocks of a class alike, so that one compiled graph serves
    all of them where the search left the smoothing out here and there. A compiler also tells blocks apart by
    which layers hold one tensor: layers share their ones where they share the vector of another block, and
    nowhere else.
    """
    tie_siblings(denoiser)
    alike: dict[str, list[tuple[str, PackedLayer]]] = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, PackedLayer):
            alike.setdefault(re.sub(r"\d+", "*", name), []).append((name.rpartition(".")[0], module))
    ones: dict[tuple[str, int], torch.Tensor] = {}
    for layers in alike.values():
        smooth = next((layer.smooth for _, layer in layers if layer.smooth is not None), None)
        for parent, layer in layers:
            if smooth is not None and layer.smooth is None:
                layer.smooth = ones.setdefault((parent, id(smooth)), torch.ones_like(smooth))


def blocks_of(denoiser: Any) -> tuple[str, ...]:
    """Return the blocks of a denoiser, whichever way it is walked."""
    return chain_blocks(denoiser) or unet_blocks(denoiser)


def calibration_calls(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return the inputs of the calibration calls, timesteps evenly spread over the schedule."""
    moments = [(number + 0.5) / recipe.calls for number in range(recipe.calls)]
    shape: dict[str, Any] = {"batch": recipe.batch, "side": recipe.side, "text_tokens": recipe.text_tokens}
    return [
        denoiser_inputs(recipe.card, recipe.config.config, device, dtype, **shape, seed=recipe.seed, moment=m)
        for m in moments
    ]


def _every_block(
    recipe: Recipe,
    denoiser: Any,
    walk: Walk,
    found: Sequence[LayerTarget],
    folder: Path,
    place: tuple[torch.device, torch.dtype],
    clock: PhaseClock,
    say: Callable[[str], None],
) -> tuple[dict[str, dict[str, Any]], int]:
    """Quantize or load every block; return the remarks, and how many blocks were loaded."""
    by_block = {
        block: [target for target in found if target.name.startswith(f"{block}.")] for block in walk.blocks
    }
    outside = {t.name for t in found} - {t.name for inside in by_block.values() for t in inside}
    if outside:
        raise UserError(f"policy {recipe.policy}: {min(outside)} lies in no block; give --policy harness")
    notes: dict[str, dict[str, Any]] = {}
    done = {block for block in walk.blocks if block_file(folder, block).is_file()}
    for number, block in enumerate(walk.blocks):
        later = any(other not in done for other in walk.blocks[number + 1 :])
        if block in done:
            if later:
                with phase("capture"):
                    walk.enter(block)
                    walk.record(block, ())
            with phase("load"):
                notes |= load_block(denoiser, block, folder, *place)
            continue
        before = time.perf_counter()
        with phase("capture"):
            walk.enter(block)
            stream = walk.record(block, by_block[block])
        job = QuantizeJob(
            denoiser, tuple(by_block[block]), stream, hidden_width(denoiser), embedded=False, seed=recipe.seed
        )
        with phase("method"):
            if job.targets:
                registry.get(recipe.method).quantize(job, recipe.method_config())
        check_packed(denoiser, [target.name for target in job.targets])
        tie_siblings(denoiser.get_submodule(block))
        notes |= job.notes
        del stream, job
        with phase("save"):
            save_block(denoiser, block, folder, notes)
        say(
            f"block {number + 1}/{len(walk.blocks)} {block}: {time.perf_counter() - before:.1f} s"
            f" ({', '.join(f'{name} {spent:.0f}' for name, spent in clock.seconds.items())} s so far)"
        )
    return notes, len(done)


def host_peak_bytes() -> int:
    """Return the most memory this process has had resident so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _check_bits(recipe: Recipe) -> None:
    spec = registry.get(recipe.method)
    if recipe.w_bits not in spec.weight_bits:
        raise UserError(f"{recipe.method} quantizes to {', '.join(map(str, spec.weight_bits))} bits")
    if not spec.weight_only and recipe.a_bits not in spec.act_bits:
        raise UserError(f"{recipe.method} takes inputs of {', '.join(map(str, spec.act_bits))} bits")


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Make the folder this recipe's; UserError when it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if not path.exists():
        path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        same = isinstance(held, dict) and held.get("digest") == manifest["digest"]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not same:
        raise UserError(f"{folder} holds blocks of other settings; give another --work folder")
