"""The stages of one cell. Each runs in its own process, reads and writes the run folder, and can be repeated.

- calibrate: input statistics of the unquantized model
- generate: quantize, or load the checkpoint; then every missing block
- measure: times and memory, alone on the machine
- reduce: images and features to record.json
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.canonical import digest_json
from harness.datasets.contract import Prompt
from harness.errors import CellError
from harness.execute import Report, resolve
from harness.plan import Cell
from harness.prompting import prompt_digest
from harness.reports.record import Measured, Record, Result, State
from harness.reports.validation import finite
from harness.store import Block, CellStore, RunStore, StoredBlock
from harness.world import Session, World

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.metrics.images import Files

    Judged = tuple[Files, NDArray[np.float32] | None]

REFERENCE_BITS = 16.0
FEATURES = "features"
"""Folder of the run in which networks' features of images are kept."""
MEASURED_PROMPTS = 2
"""Prompts whose error is taken step by step. Of these the first is timed: latency, not throughput."""


@dataclass(frozen=True)
class Job:
    """What a stage is handed; picklable.

    Attributes:
        world: `module:attribute` of the world.
        root: the run folder.
        cell: which cell.
        n: images that count.
        blocks: prompts of every block.
        calibration_prompts: for the calibrate stage.
        data_digest: digest of the files that metrics were given.
        judge: digest of what images are judged by.
    """

    world: str
    root: Path
    cell: Cell
    n: int
    blocks: list[list[Prompt]]
    calibration_prompts: list[Prompt]
    data_digest: str
    judge: str

    @property
    def store(self) -> RunStore:
        """The run folder."""
        return RunStore(self.root)

    @property
    def files(self) -> CellStore:
        """The cell's files."""
        return self.store.cell(self.cell.key)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts that count."""
        return [prompt for block in self.blocks for prompt in block][: self.n]


def block_owner(prompts: Sequence[Prompt], checkpoint: str) -> str:
    """Return the digest of what a block's images depend on beyond the cell's key."""
    return digest_json({"prompts": [p.identity() for p in prompts], "checkpoint": checkpoint})


@dataclass(frozen=True)
class Held:
    """What the run folder holds of a cell, after every digest was checked.

    Attributes:
        checkpoint: digest of the checkpoint's files, empty for the reference, None when missing or damaged.
        blocks: digest of each block's files, None for those missing, damaged or made from something else.
    """

    checkpoint: str | None
    blocks: tuple[str | None, ...]

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to generate."""
        return self.checkpoint is not None and None not in self.blocks


def checkpoint_digest(job: Job) -> str | None:
    """Return `Held.checkpoint`."""
    if job.cell.method is None:
        return ""
    note = job.files.checkpoint_note()
    return None if note is None else str(note["digest"])


def held(job: Job) -> Held:
    """Check every file of a cell's checkpoint and blocks."""
    checkpoint = checkpoint_digest(job)
    if checkpoint is None:
        return Held(None, (None,) * len(job.blocks))
    owners = (block_owner(prompts, checkpoint) for prompts in job.blocks)
    return Held(checkpoint, tuple(job.files.block_digest(i, owner) for i, owner in enumerate(owners)))


def record_source(job: Job, own: Held, reference: Held | None) -> str:
    """Return the digest of everything a record is made from."""
    return digest_json(
        {
            "n": job.n,
            "judge": job.judge,
            "data": job.data_digest,
            "facts": digest_json([prompt.facts for prompt in job.prompts]),
            "checkpoint": own.checkpoint,
            "blocks": own.blocks,
            "reference": None if reference is None else reference.blocks,
        }
    )


def calibrate(report: Report, job: Job) -> None:
    """Record the input statistics that the cell needs."""
    world = _enter(job)
    key = job.cell.calibration
    if key is None:
        raise ValueError(f"{job.cell.title} needs no calibration")
    session = world.open(job.cell.setting)
    job.store.write_calibration(key, functools.partial(session.calibrate, job.calibration_prompts))
    report("calibrated")


def generate(report: Report, job: Job) -> None:
    """Quantize unless there is a checkpoint, then generate the missing blocks."""
    world = _enter(job)
    session = world.open(job.cell.setting)
    if job.cell.method is not None:
        if job.files.checkpoint_note() is None:
            _quantize(session, job)
        else:
            session.load(job.files.checkpoint)
        report("quantized")
    checkpoint = checkpoint_digest(job)
    if checkpoint is None:
        raise CellError("corrupt", "the checkpoint was damaged right after it was written")
    for index, prompts in enumerate(job.blocks):
        owner = block_owner(prompts, checkpoint)
        if job.files.block_digest(index, owner) is None:
            job.files.write_block(index, owner, _generate_block(world, session, job, prompts), job.judge)
        report("block")


def measure(report: Report, job: Job) -> None:
    """Take times and memory; the executor runs nothing beside it."""
    world = _enter(job)
    checkpoint = checkpoint_digest(job)
    if checkpoint is None:
        raise CellError("corrupt", "the checkpoint was damaged after the images were generated")
    session = world.open(job.cell.setting)
    if job.cell.method is not None:
        session.load(job.files.checkpoint)
    values = session.measure(job.prompts[:MEASURED_PROMPTS])
    job.files.write_measured(checkpoint, finite(asdict(values)))
    report("measured")


def reduce(report: Report, job: Job, reference: Job) -> None:
    """Form the figures and write the record."""
    world = _enter(job)
    own = held(job)
    against = None if job.cell.method is None else held(reference)
    if own.checkpoint is None or not own.complete:
        raise CellError("corrupt", f"{job.cell.title} was damaged after it was generated")
    blocks = _read(job, own.checkpoint)
    pictures = _pictures(world, job, blocks)
    reference_blocks = _read(reference, "") if against is not None and against.complete else None
    metrics, per_prompt = world.reduce(
        replace(job.cell.setting, cache=job.root / FEATURES),
        job.prompts,
        pictures,
        None if reference_blocks is None else _pictures(world, reference, reference_blocks),
    )
    note = job.files.checkpoint_note() or {}
    model = job.cell.setting.model
    is_reference = job.cell.method is None
    result = Result(
        state="ok",
        execution="reference" if is_reference else "packed",
        n=job.n,
        effective_bits=REFERENCE_BITS if is_reference else note["effective_bits"],
        weight_bytes=model.weight_bytes if is_reference else note["weight_bytes"],
        checkpoint_bytes=model.file_bytes if is_reference else note["checkpoint_bytes"],
        metrics=metrics,
        per_prompt=per_prompt,
        prompts=[prompt_digest(prompt) for prompt in job.prompts],
        slices=_slices(job.prompts),
    )
    counted = blocks[: -(-job.n // len(job.blocks[0]))]
    seconds = round(sum(block.seconds for block in counted), 3)
    values = job.files.measured(own.checkpoint) or {}
    roads = _joined([block.roads for block in counted])
    measured = Measured(quantize_s=note.get("quantize_s"), generate_s=seconds, roads=roads, **values)
    record = Record(identity=job.cell.identity, result=result, measured=measured)
    source = record_source(job, own, against)
    job.files.write_record(finite(record.to_json()), source)
    report("reduced")


def _slices(prompts: Sequence[Prompt]) -> list[str]:
    """Return the slice of every prompt, or nothing where the set has none."""
    slices = [prompt.slice for prompt in prompts]
    return slices if any(slices) else []


def write_failure(job: Job, state: State, message: str) -> None:
    """Write the record of a cell that failed; it is retried on the next run."""
    note = (job.files.checkpoint_note() if job.cell.method is not None else None) or {}
    result = Result(
        state=state,
        execution="reference" if job.cell.method is None else "packed",
        n=0,
        message=message,
        effective_bits=note.get("effective_bits"),
        weight_bytes=note.get("weight_bytes"),
        checkpoint_bytes=note.get("checkpoint_bytes"),
    )
    measured = Measured(quantize_s=note.get("quantize_s"), log_tail=job.files.log_tail())
    record = Record(identity=job.cell.identity, result=result, measured=measured)
    job.files.write_record(finite(record.to_json()), source="")


def _enter(job: Job) -> World:
    """Prepare the process; cell.json is written first, so that a folder always says what it is."""
    world: World = resolve(job.world)
    world.start_worker()
    job.files.write_identity(job.cell.hashed)
    return world


def _quantize(session: Session, job: Job) -> None:
    if job.cell.method is None:
        raise ValueError("the reference is not quantized")
    calibration = None if job.cell.calibration is None else job.store.calibration(job.cell.calibration)
    bits = job.cell.bits
    workspace = job.files.training
    seconds = session.quantize(job.cell.method, (bits.weight, bits.act), calibration, workspace)
    note: dict[str, Any] = {"quantize_s": round(seconds, 4)}

    def fill(folder: Path) -> None:
        note.update(finite(asdict(session.save(folder))))

    job.files.write_checkpoint(fill, lambda: note)
    job.files.drop_training_state()


def _generate_block(world: World, session: Session, job: Job, prompts: Sequence[Prompt]) -> Block:
    started = time.perf_counter()
    images = session.generate(prompts)
    seconds = time.perf_counter() - started
    if images.dtype != "uint8" or images.ndim != 4 or len(images) != len(prompts):
        raise CellError("crashed", f"the model gave {images.dtype} {images.shape} for {len(prompts)} prompts")
    return Block(images, world.features(job.cell.setting, images), seconds, roads=session.roads())


def _joined(blocks: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the kernels by layer over all blocks; several of one layer by comma, sorted."""
    found: dict[str, set[str]] = {}
    for roads in blocks:
        for layer, road in roads.items():
            found.setdefault(layer, set()).add(road)
    return {layer: ", ".join(sorted(seen)) for layer, seen in found.items()}


def _read(job: Job, checkpoint: str) -> list[StoredBlock]:
    blocks = []
    for index, prompts in enumerate(job.blocks):
        block = job.files.stored_block(index, block_owner(prompts, checkpoint))
        if block is None:
            raise CellError("corrupt", f"{job.cell.title}: block {index} was damaged after generation")
        blocks.append(block)
    return blocks


def _pictures(world: World, job: Job, blocks: Sequence[StoredBlock]) -> Judged:
    """Return the images that count and their features; features of an older recogniser are formed anew."""
    import numpy as np

    from harness.metrics.images import Files

    def features(block: StoredBlock) -> NDArray[np.float32] | None:
        if block.judge == job.judge:
            return block.features
        (images,) = Files(block.images).runs(len(block.images))
        return world.features(job.cell.setting, images)

    parts = [features(block) for block in blocks]
    known = [part for part in parts if part is not None]
    images = Files([file for block in blocks for file in block.images][: job.n])
    return images, np.concatenate(known)[: job.n] if len(known) == len(blocks) else None
