"""What a run folder already holds of a plan, and what the rest is likely to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.cell import Held, Job, held, record_source
from harness.plan import Cell, Plan
from harness.reports.record import Record
from harness.request import REFERENCE
from harness.store import RunStore
from harness.world import World

Stored = Literal["finished", "failed", "partial", "missing", "unsupported"]

START_SECONDS = 1.0
"""A process, its model's weights included."""
MEASURE_SECONDS = 4.0
REDUCE_SECONDS = 0.7
QUANTIZE_SECONDS = 3.0
CALIBRATE_SECONDS = 6.0
"""Like times per image, of one thread of one of two busy cores; `ModelFacts.slowness` scales all of them."""

TIMES_REFERENCE = {"ptq": 1.3, "nf4": 1.1, "mpqdm": 1.5, "mpqdmv2": 2.2, "svdquant": 1.8}
"""Time of a packed model's image by the unquantized one's (docs/results/default)."""
TIMES_OTHER = 1.6
KEPT_SHARE = 0.09
"""Bytes of scales, branches and layers left alone, by those of the 16-bit denoiser."""


@dataclass(frozen=True)
class Outlook:
    """How far a cell is, and what it still needs.

    Attributes:
        stored: `failed` cells are retried; of a `partial` one the finished blocks are kept.
        blocks: finished blocks.
        wanted: blocks in all.
        needs_generate: a block or the checkpoint is missing or damaged.
        needs_measure: there are no times for this checkpoint, and they are wanted.
        needs_reduce: the record is missing or was made from something else.
        seconds: estimated work left for one worker, or None when nothing is known of the model.
        disk: estimated bytes still to be written.
    """

    stored: Stored
    blocks: int
    wanted: int
    needs_generate: bool
    needs_measure: bool
    needs_reduce: bool
    seconds: float | None
    disk: int


def make_jobs(plan: Plan, store: RunStore, world_name: str, world: World) -> dict[str, Job]:
    """Return the job of every cell by key."""
    judge = world.judging()
    return {
        cell.key: Job(
            world=world_name,
            root=store.root,
            cell=cell,
            n=plan.n,
            blocks=plan.blocks(cell.setting.dataset),
            calibration_prompts=plan.calibration_prompts[cell.setting.dataset],
            data_digest=plan.data_digest,
            judge=judge,
        )
        for cell in plan.cells
    }


def survey(jobs: Mapping[str, Job], latency: bool = True) -> dict[str, Outlook]:
    """Check every file of every cell and return how far each is.

    Args:
        jobs: by cell.
        latency: whether times are wanted; a cell that was finished without them is then unfinished.
    """
    stored = {key: held(job) for key, job in jobs.items()}
    return {key: _outlook(job, stored[key], stored[job.cell.reference], latency) for key, job in jobs.items()}


def finished_record(job: Job) -> Record | None:
    """Return the record of a cell, or None when there is none that can be read."""
    held = job.files.record()
    if held is None:
        return None
    try:
        return Record.from_json(held)
    except ValueError:
        return None


def _outlook(job: Job, own: Held, reference: Held, latency: bool) -> Outlook:
    cell = job.cell
    if cell.unsupported is not None:
        return Outlook("unsupported", 0, 0, False, False, False, 0.0, 0)
    done = sum(digest is not None for digest in own.blocks)
    record = finished_record(job)
    needs_measure = latency and (own.checkpoint is None or job.files.measured(own.checkpoint) is None)
    source = record_source(job, own, None if cell.method is None else reference)
    sound = record is not None and record.result.state == "ok" and job.files.reduced_from() == source
    needs_reduce = needs_measure or not own.complete or not sound
    stored: Stored = "finished"
    if needs_reduce:
        stored = "partial" if done or own.checkpoint else "missing"
        if record is not None and record.result.state != "ok":
            stored = "failed"
    images = (len(own.blocks) - done) * len(job.blocks[0])
    quantizes = own.checkpoint is None
    return Outlook(
        stored=stored,
        blocks=done,
        wanted=len(own.blocks),
        needs_generate=not own.complete,
        needs_measure=needs_measure,
        needs_reduce=needs_reduce,
        seconds=_seconds(cell, images, quantizes, needs_measure, needs_reduce),
        disk=_disk(cell, images, quantizes),
    )


def _seconds(cell: Cell, images: int, quantizes: bool, measures: bool, reduces: bool) -> float | None:
    per_image = cell.setting.model.seconds_per_image
    if per_image is None and images:
        return None
    quantize = cell.quantize_seconds
    if quantize is None:
        quantize = QUANTIZE_SECONDS * cell.setting.model.slowness
    fixed = START_SECONDS * bool(images) + measures * MEASURE_SECONDS + reduces * REDUCE_SECONDS
    generating = images * (per_image or 0.0) * times_of(cell.identity.method)
    return generating + quantizes * quantize * (cell.method is not None) + fixed * cell.setting.model.slowness


def times_of(method: str) -> float:
    """Return how many times longer than the unquantized model's an image of a method is expected to take."""
    return 1.0 if method == REFERENCE else TIMES_REFERENCE.get(method, TIMES_OTHER)


def _disk(cell: Cell, images: int, quantizes: bool) -> int:
    model = cell.setting.model
    share = cell.identity.wbits / 16 + KEPT_SHARE
    checkpoint = round(model.weight_bytes * share) if quantizes and cell.method is not None else 0
    return checkpoint + images * model.bytes_per_image


def totals(plan: Plan, outlooks: Mapping[str, Outlook], workers: int) -> tuple[float | None, int]:
    """Return the estimated seconds (None when unknown) and bytes of all that is left."""
    generating = [cell for cell in plan.cells if outlooks[cell.key].needs_generate]
    calibrations = {cell.calibration: cell.setting.model for cell in generating if cell.calibration}
    most = plan.protocol.base.calibration_mib * 2**20
    disk = sum(outlook.disk for outlook in outlooks.values())
    disk += sum(min(most, model.calibration_bytes or most) for model in calibrations.values())
    known = [outlook.seconds for outlook in outlooks.values() if outlook.seconds is not None]
    if len(known) < len(outlooks):
        return None, disk
    models = {cell.key: cell.setting.model for cell in plan.cells}
    alone = sum(
        outlook.needs_measure * MEASURE_SECONDS * models[key].slowness for key, outlook in outlooks.items()
    )
    calibrating = sum(CALIBRATE_SECONDS * model.slowness for model in calibrations.values())
    return alone + (sum(known) - alone + calibrating) / workers, disk


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that `folder` is or would be on."""
    import shutil

    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
