"""Whether a backend computes on the embedded models what the layers mean: layer by layer, and in images.

    python tools/backend_parity.py --jobs 10 --json parity.json
    TRITON_INTERPRET=1 python tools/backend_parity.py --device cpu --methods ptq --layers-only --most-layers 3

The first is for a GPU. Every cell of `harness run` is quantized as it does. Then

* each packed layer runs on the backend with bf16 inputs and outputs, and its output is compared with the
  float64 definition on the layer's own numbers, on the CPU: the relative error in the Frobenius norm. Inputs
  are recorded while the 16-bit model draws the prompts, and cast to bf16;
* the quantized model draws the prompts with the backend and with `reference` on the same device, as
  `harness run` draws them: PSNR of the squared error averaged over all images, PSNR of the worst image, and
  how many images are equal to the pixel.

One line per cell; what is left out prints `–`. Exit code 1: some cell failed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from harness.calibrate import Calibration
from harness.cli.grid import split_names
from harness.conformance.definition import layer_float64, relative_error
from harness.conformance.parity import TOLERANCE
from harness.datasets.contract import Prompt
from harness.errors import UserError
from harness.kernels.activations import StepIndex, bind_step_index
from harness.kernels.dispatch import Backend, use_backend
from harness.kernels.layers import PackedLayer
from harness.measure.environment import environment
from harness.measure.timing import one_line
from harness.metrics.psnr import mse, psnr
from harness.metrics.psnr_pooled import psnr_pooled
from harness.plan import Cell, Plan, make_plan
from harness.project import WORLD, ModelSession
from harness.reports.validation import finite
from harness.request import Request
from harness.world import Setting

SOME_FAILED, MISUSED = 1, 2
COLUMNS = (
    "cell | layers | roads | largest error | above | in layer | equal images | PSNR of all | of the worst"
)


@dataclass(frozen=True)
class LayerError:
    """What one packed layer computed.

    Attributes:
        name: module path in the denoiser.
        road: kernels that ran.
        error: relative error against float64; NaN where a value is.
    """

    name: str
    road: str
    error: float


@dataclass(frozen=True)
class ImageDifference:
    """How the images of two backends differ.

    Attributes:
        images: how many were compared.
        equal: how many are equal to the pixel.
        psnr: of the squared error averaged over all images, in dB; None where all are equal.
        worst: of the image that differs most, in dB; None where all are equal.
    """

    images: int
    equal: int
    psnr: float | None
    worst: float | None


@dataclass
class Found:
    """What was found of one cell, and the seconds each part took; `failed` says why there is no more."""

    model: str
    method: str
    variant: str
    bits: str
    layers: list[LayerError] = field(default_factory=list)
    images: ImageDifference | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Task:
    """One cell and all that its process needs; picklable."""

    cell: Cell
    blocks: list[list[Prompt]]
    n: int
    folder: Path
    backend: Backend
    layers: bool
    images: bool
    most_layers: int | None


def layer_errors(
    denoiser: nn.Module, inputs: Calibration, backend: Backend, device: torch.device, most: int | None = None
) -> Iterator[LayerError]:
    """Run packed layers on a backend, bf16 in and out, and yield what each found; by default all of them."""
    bind_step_index(denoiser, StepIndex(0))  # a sample of inputs is of all steps: any range will do
    packed = {name: module for name, module in denoiser.named_modules() if isinstance(module, PackedLayer)}
    for name, layer in list(packed.items())[:most]:
        x = inputs.samples(name).to(torch.bfloat16)
        with torch.inference_mode(), use_backend(backend):
            y = layer(x.to(device)).cpu()
        with torch.inference_mode():
            expected = layer_float64(copy.deepcopy(layer).cpu(), x)
        yield LayerError(name, layer.road_taken, relative_error(y, expected))


def difference(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> ImageDifference:
    """Compare images uint8 [n, height, width, 3] with those of the same prompts."""
    equal = int((mse(images, reference) == 0).sum())
    pooled, worst = psnr_pooled(images, reference).value, float(psnr(images, reference).min())
    return ImageDifference(len(images), equal, pooled, worst if math.isfinite(worst) else None)


def record(setting: Setting, prompts: list[Prompt], path: Path) -> None:
    """Record the layers' inputs while the 16-bit model draws prompts."""
    WORLD.start_worker()
    WORLD.open(setting).calibrate(prompts, path)


def examine(task: Task) -> Found:
    """Quantize one cell as `harness run` does and see what the backend makes of it."""
    found = _empty(task.cell)
    if task.cell.unsupported is not None:
        found.failed = f"unsupported: {task.cell.unsupported}"
        return found
    try:
        session, inputs = _quantized(task, found)
        started = time.perf_counter()
        if inputs is not None:
            device = torch.device(task.cell.setting.device)
            each = layer_errors(session.denoiser, inputs, task.backend, device, task.most_layers)
            found.layers = list(each)
            found.seconds["layers"] = round(time.perf_counter() - started, 2)
        if task.images:
            started = time.perf_counter()
            found.images = difference(_drawn(session, task, task.backend), _drawn(session, task, "reference"))
            found.seconds["images"] = round(time.perf_counter() - started, 2)
    except Exception as error:  # a kernel that cannot be compiled or launched is a finding
        found.failed = one_line(error)
    return found


def _quantized(task: Task, found: Found) -> tuple[ModelSession, Calibration | None]:
    """Return the quantized model, and the inputs that its layers are judged by if they are."""
    cell, method = task.cell, task.cell.method
    assert method is not None
    WORLD.start_worker()
    session, model = ModelSession(cell.setting), cell.setting.model.name
    calibration = None if cell.calibration is None else _recording(task.folder, model, "calibrated")
    widths = cell.bits.weight, cell.bits.act
    seconds = session.quantize(method, widths, calibration, task.folder / cell.key)
    found.seconds["quantize"] = round(seconds, 2)
    return session, Calibration.load(_recording(task.folder, model, "judged")) if task.layers else None


def _drawn(session: ModelSession, task: Task, backend: Backend) -> NDArray[np.uint8]:
    """Return the images of a cell on a backend: uint8 [n, height, width, 3]."""
    with use_backend(backend):
        return np.concatenate([session.generate(block) for block in task.blocks])[: task.n]


def row(found: Found) -> str:
    """Return a cell's line of the table."""
    variant = "" if found.variant == "default" else f" [{found.variant}]"
    title = f"{found.model} {found.method}{variant} {found.bits}"
    if found.failed:
        return f"| {title} | failed: {found.failed} |"
    layers, images = ["–"] * 5, ["–"] * 3
    if found.layers:
        roads = Counter(layer.road for layer in found.layers)
        worst = max(found.layers, key=lambda layer: math.inf if math.isnan(layer.error) else layer.error)
        above = sum(not layer.error <= TOLERANCE for layer in found.layers)
        shown = ", ".join(f"{road} {count}" for road, count in sorted(roads.items()))
        where = f"{worst.name} ({worst.road})"
        layers = [str(len(found.layers)), shown, f"{worst.error:.5f}", str(above), where]
    if found.images is not None:
        decibels = [found.images.psnr, found.images.worst]
        shown_db = ["equal" if value is None else f"{value:.1f} dB" for value in decibels]
        images = [f"{found.images.equal} of {found.images.images}", *shown_db]
    return f"| {' | '.join([title, *layers, *images])} |"


def tasks_of(plan: Plan, options: argparse.Namespace, folder: Path) -> list[Task]:
    """Return what is to be done of each quantized cell."""
    return [
        Task(
            cell,
            plan.blocks(cell.setting.dataset),
            plan.n,
            folder,
            options.backend,
            not options.images_only,
            not options.layers_only,
            options.most_layers,
        )
        for cell in plan.cells
        if cell.method is not None
    ]


def run(plan: Plan, options: argparse.Namespace, submit: Callable[..., Future[Any]]) -> list[Found]:
    """Record inputs, then examine the cells, and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = tasks_of(plan, options, Path(folder))
        wanted = [(t, "calibrated") for t in tasks if t.cell.calibration is not None]
        wanted += [(t, "judged") for t in tasks if t.layers]
        settings = {
            _recording(t.folder, t.cell.setting.model.name, use): (t.cell.setting, use) for t, use in wanted
        }
        waiting = []
        for path, (setting, use) in settings.items():
            prompts = plan.calibration_prompts if use == "calibrated" else plan.prompts
            waiting.append(submit(record, setting, prompts[setting.dataset], path))
        for future in waiting:
            future.result()
        found = []
        for task, future in [(task, submit(examine, task)) for task in tasks]:
            found.append(_result(future, task.cell))
            print(row(found[-1]), flush=True)
    return found


def _empty(cell: Cell, failed: str = "") -> Found:
    """Return what is known of a cell beforehand."""
    identity = cell.identity
    return Found(identity.model, identity.method, identity.variant, str(cell.bits), failed=failed)


def _recording(folder: Path, model: str, use: str) -> Path:
    """Return where recorded inputs are kept: those `calibrated` on, or those `judged` by."""
    return folder / f"{model}-{use}.safetensors"


def _result(future: Future[Found], cell: Cell) -> Found:
    """Return what was found of a cell, also when its process died."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        return _empty(cell, one_line(error))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises UserError where it is wrong."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="all", help="by comma")
    parser.add_argument("--methods", default="all", help="by comma, as of `harness run`")
    parser.add_argument("--bits", default="2,3,4", help="as of `harness run`")
    parser.add_argument("--device", default="cuda", help="cuda, cpu or auto")
    parser.add_argument("--backend", default="triton", choices=get_args(Backend)[1:])
    parser.add_argument("--prompts", type=int, default=16, metavar="N", help="images of a cell")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="cells at a time, each in a process")
    parser.add_argument("--most-layers", type=int, metavar="K", help="of a cell, to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, of every layer")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--layers-only", action="store_true")
    parts.add_argument("--images-only", action="store_true")
    options = parser.parse_args(arguments)
    for name in ("jobs", "most_layers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    if options.json and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json {options.json}: {options.json.absolute().parent} is not a folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per cell and return the exit code."""
    try:
        options = _options(arguments)
        started = time.perf_counter()
        plan = make_plan(
            Request(
                models=split_names(options.models),
                methods=split_names(options.methods),
                bits=options.bits,
                device=options.device,
                backend=options.backend,
                prompts=options.prompts,
            ),
            WORLD,
        )
        print(f"| {COLUMNS} |\n" + "|---" * (COLUMNS.count("|") + 1) + "|", flush=True)
        context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            found = run(plan, options, pool.submit)
    except UserError as error:
        print(error, file=sys.stderr)
        return MISUSED
    seconds = round(time.perf_counter() - started, 1)
    print(f"\n{len(found)} cells in {seconds:.0f} s; above: layers whose error is above {TOLERANCE:g}")
    if options.json:
        report = {
            "environment": environment(),
            "device": plan.device,
            "backend": options.backend,
            "prompts": plan.n,
            "tolerance": TOLERANCE,
            "seconds": seconds,
            "cells": [asdict(cell) for cell in found],
        }
        options.json.write_text(json.dumps(finite(report), indent=1) + "\n", encoding="utf-8")
    return SOME_FAILED if any(cell.failed for cell in found) else 0


if __name__ == "__main__":
    sys.exit(main())
