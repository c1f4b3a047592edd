"""One run: survey what is stored, let the stages of the other cells run, and print what came out.

The order is: calibrations, references and all other cells; then, with nothing else running, one measurement
after the other; then the figures.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from rich.console import Console

from harness.cell import Job, write_failure
from harness.errors import UserError
from harness.execute import DISK_FULL, Event, Executor, LocalExecutor, Task, resolve
from harness.files import is_disk_full, replace_file
from harness.missing import check_there
from harness.outlook import Outlook, finished_record, make_jobs, survey, totals
from harness.plan import Cell, Plan, make_plan
from harness.progress import RunProgress
from harness.reports.record import Record, State
from harness.request import Request
from harness.store import RunStore
from harness.timings import Timings
from harness.world import World

DEFAULT_WORLD = "harness.project:WORLD"
"""Where every process of a run finds the world."""
T = TypeVar("T")
_POLL_SECONDS = 1.0
_CALIBRATE = " calibrate"
"""How the name of a calibration ends; no stage of a cell is called so."""

_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

OK, SOME_FAILED, INTERRUPTED = 0, 1, 130


class DiskFullError(Exception):
    """The run cannot go on; everything finished is kept."""


@dataclass
class _Run:
    """The state of one run while it goes on."""

    executor: Executor
    store: RunStore
    jobs: dict[str, Job]
    outlooks: dict[str, Outlook]
    progress: RunProgress
    timeout: float
    failed: set[str] = field(default_factory=set)
    left: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Count the steps of every cell."""
        self.left = {key: _steps(job.cell, self.outlooks[key]) for key, job in self.jobs.items()}

    def step(self, task: str, jobs: Sequence[Job]) -> None:
        """Count a finished step of a task; a calibration is no step of the cells that wait for it."""
        for job in () if _calibrates(task) else jobs:
            self.left[job.cell.key] -= 1
        self.progress.step()

    def alive(self, wanted: Callable[[Outlook], bool]) -> list[Job]:
        """Return the jobs of cells that have not failed and need a stage."""
        return [
            job for key, job in self.jobs.items() if key not in self.failed and wanted(self.outlooks[key])
        ]

    def fail(self, job: Job, state: str, message: str) -> None:
        """Write down that a cell failed."""
        if job.cell.key in self.failed:
            return
        self.failed.add(job.cell.key)
        write_failure(job, cast(State, state), message)
        self.progress.drop(self.left.pop(job.cell.key))
        self.progress.line(f"{job.cell.title}: {state}: {message}")


def run(request: Request, console: Console) -> int:
    """Carry out a request and return the exit code.

    Raises:
        UserError: the request, or the run folder it names, is not usable.
        KeyboardInterrupt: Ctrl-C; the run folder is left resumable.
        DiskFullError: there is no room left; the run folder is left resumable.
    """
    return _run_plan(request, console, lambda cell: True, finish)


def extend(
    request: Request,
    console: Console,
    wanted: Callable[[Cell], bool],
    check: Callable[[Plan], None] = lambda plan: None,
) -> list[Record]:
    """Carry out those cells of a request that are wanted, with their references, and return their records.

    Neither table nor pictures are made; errors are those of `run`, and what `check` raises about the plan
    before anything is made. Records of references come too.
    """

    def records(console: Console, plan: Plan, store: RunStore, jobs: dict[str, Job]) -> list[Record]:
        return [record for record in map(finished_record, jobs.values()) if record is not None]

    return _run_plan(request, console, wanted, records, check)


def _run_plan(
    request: Request,
    console: Console,
    wanted: Callable[[Cell], bool],
    end: Callable[[Console, Plan, RunStore, dict[str, Job]], T],
    check: Callable[[Plan], None] = lambda plan: None,
) -> T:
    """Carry out the wanted cells of a request and return what `end` makes of them."""
    world = _ready(request)
    with LocalExecutor(world.preload) as executor:  # imports while the plan is made
        plan = make_plan(request, world)
        check(plan)
        kept = [cell for cell in plan.cells if wanted(cell)]
        needed = {cell.reference for cell in kept} | {cell.key for cell in kept}
        plan = replace(plan, cells=tuple(cell for cell in plan.cells if cell.key in needed))
        workers = worker_count(request, plan)
        store = RunStore(plan.out)
        announce(console, plan, workers)
        try:
            store.claim(plan.protocol.to_json(), plan.protocol.hash)
            with store.lock():
                store.sweep()
                jobs = make_jobs(plan, store, DEFAULT_WORLD, world)
                _carry_out(_Setup(executor, console, plan, store, jobs, workers, request))
                return end(console, plan, store, jobs)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(_disk_full_line(store)) from error
            if error.errno in _UNWRITABLE:
                raise UserError(f"cannot write to {error.filename or plan.out}: {error.strerror}") from error
            raise


def forecast(request: Request, seen: Timings) -> tuple[Plan, dict[str, Outlook], int]:
    """Return what `dry_run` does, with times and sizes per image as seen in a run."""
    world = _ready(request, downloads=False)
    plan = make_plan(request, world)
    plan = replace(plan, cells=tuple(seen.applied(cell) for cell in plan.cells))
    store = RunStore(plan.out)
    store.check(plan.protocol.to_json(), plan.protocol.hash)
    outlooks = survey(make_jobs(plan, store, DEFAULT_WORLD, world), request.latency)
    return plan, outlooks, worker_count(request, plan)


def dry_run(request: Request) -> tuple[Plan, dict[str, Outlook], int]:
    """Return the plan, how far each cell is, and the number of workers; nothing is written or downloaded.

    Raises:
        UserError: the request is not usable, or files of a model are missing: their digest is in the keys.
    """
    world = _ready(request, downloads=False)
    plan = make_plan(request, world)
    store = RunStore(plan.out)
    store.check(plan.protocol.to_json(), plan.protocol.hash)
    outlooks = survey(make_jobs(plan, store, DEFAULT_WORLD, world), request.latency)
    return plan, outlooks, worker_count(request, plan)


def _ready(request: Request, downloads: bool = True) -> World:
    """Set the environment, and check what can be checked before anything heavy is imported."""
    go_offline(request)
    world: World = resolve(DEFAULT_WORLD)
    check_there(request, world, models=request.offline or not downloads)
    return world


def go_offline(request: Request) -> None:
    """Keep the model libraries from the network, in this process and in those it starts."""
    if request.offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def worker_count(request: Request, plan: Plan) -> int:
    """Return how many cells run at a time: on CPU one per core by default, on a GPU one."""
    if request.workers is not None:
        return request.workers
    return 1 if plan.device == "cuda" else _cores()


def announce(console: Console, plan: Plan, workers: int) -> None:
    """Print what will run, first of all."""
    cells = len(plan.cells)
    bits = ", ".join(map(str, plan.bits)) if plan.methods else "-"
    methods = ", ".join(plan.methods) or "none"
    text = (
        f"{cells} cells: models {', '.join(plan.models)}; methods {methods}; bits {bits}; {plan.n} prompts\n"
        f"protocol {plan.protocol.base.name} ({plan.protocol.hash}), seed {plan.protocol.seed}; "
        f"device {plan.device}, {workers} worker{'s' if workers > 1 else ''}; run folder {plan.out}"
    )
    for name, leak in plan.leaks.items():
        if leak.ids:
            text += f"\ncalibration leak: {leak.line()} ({name})"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Setup:
    executor: Executor
    console: Console
    plan: Plan
    store: RunStore
    jobs: dict[str, Job]
    workers: int
    request: Request


def _carry_out(setup: _Setup) -> None:
    outlooks = survey(setup.jobs, setup.request.latency)
    left = sum(outlook.needs_reduce for outlook in outlooks.values())
    finished = sum(outlook.stored == "finished" for outlook in outlooks.values())
    seconds, _ = totals(setup.plan, outlooks, setup.workers)
    stored = f"{finished} of {len(outlooks)} cells are stored"
    guess = f"; about {duration(seconds)} to go" if left and seconds is not None else ""
    setup.console.print(stored + guess, highlight=False)
    with RunProgress(setup.console, _all_steps(setup.plan, outlooks)) as progress:
        timeout = setup.request.timeout
        state = _Run(setup.executor, setup.store, setup.jobs, outlooks, progress, timeout)
        for job in setup.jobs.values():
            if job.cell.unsupported is not None:
                job.files.write_identity(job.cell.hashed)
                state.fail(job, "unsupported", job.cell.unsupported)
        _generate(state, setup.workers)
        _measure(state)
        _reduce(state, setup.workers)


def _steps(cell: Cell, outlook: Outlook) -> int:
    """Return how many times the stages of a cell will report."""
    generating = outlook.wanted + (cell.method is not None) if outlook.needs_generate else 0
    return generating + outlook.needs_measure + outlook.needs_reduce


def _all_steps(plan: Plan, outlooks: dict[str, Outlook]) -> int:
    """Return how many times a stage will report."""
    return sum(_steps(cell, outlooks[cell.key]) for cell in plan.cells) + len(
        {c.calibration for c in plan.cells if c.calibration and outlooks[c.key].needs_generate}
    )


def _generate(state: _Run, workers: int) -> None:
    """Run the calibrations that some cell waits for, the references, and all other cells.

    A cell starts as soon as its calibration is there; for the reference's images it need not wait.
    """
    waiting = state.alive(lambda outlook: outlook.needs_generate)
    by_calibration: dict[str, list[Job]] = {}
    for job in waiting:
        key = job.cell.calibration
        note_missing = job.cell.method is not None and job.files.checkpoint_note() is None
        if key is not None and note_missing and not state.store.has_calibration(key):
            by_calibration.setdefault(key, []).append(job)
    tasks = [(_calibration_task(state, key, jobs[0]), jobs) for key, jobs in by_calibration.items()]
    references_first = sorted(waiting, key=lambda job: job.cell.method is not None)
    tasks += [(_task(state, "generate", job, (job,)), [job]) for job in references_first]
    _phase(state, "quantizing and generating", tasks, workers)


def _measure(state: _Run) -> None:
    jobs = state.alive(lambda outlook: outlook.needs_measure)
    _phase(state, "measuring", [(_task(state, "measure", job, (job,)), [job]) for job in jobs], 1)


def _reduce(state: _Run, workers: int) -> None:
    jobs = state.alive(lambda outlook: outlook.needs_reduce)
    tasks = [(_task(state, "reduce", job, (job, state.jobs[job.cell.reference])), [job]) for job in jobs]
    _phase(state, "forming figures", tasks, workers)


def _task(state: _Run, stage: str, job: Job, args: tuple[Any, ...]) -> Task:
    several = len({other.cell.setting.dataset for other in state.jobs.values()}) > 1
    where = f" on {job.cell.setting.dataset}" if several else ""
    name = f"{job.cell.title}{where} {stage}"
    return Task(name, f"harness.cell:{stage}", args, job.files.log, state.timeout)


def _calibration_task(state: _Run, key: str, job: Job) -> Task:
    name = f"{job.cell.identity.model} on {job.cell.identity.dataset}{_CALIBRATE}"
    return Task(name, "harness.cell:calibrate", (job,), job.files.log, state.timeout)


def _phase(state: _Run, name: str, tasks: Sequence[tuple[Task, list[Job]]], workers: int) -> None:
    """Run tasks, at most `workers` at a time; a task that fails fails all its jobs."""
    state.progress.phase(name)
    waiting, under_way = list(tasks), dict[str, list[Job]]()
    started: dict[str, float] = {}
    while waiting or under_way:
        waiting = [
            (task, jobs) for task, jobs in waiting if any(j.cell.key not in state.failed for j in jobs)
        ]
        while len(under_way) < workers and (ready := _next_ready(waiting, under_way)) is not None:
            task, jobs = waiting.pop(ready)
            under_way[task.name] = jobs
            started[task.name] = time.monotonic()
            state.executor.submit(task)
        for event in state.executor.wait(_POLL_SECONDS):
            if event.kind == "progress":
                state.step(event.task, under_way[event.task])
                continue
            _settle(state, event, under_way.pop(event.task), time.monotonic() - started[event.task])


def _next_ready(waiting: Sequence[tuple[Task, list[Job]]], under_way: Mapping[str, list[Job]]) -> int | None:
    """Return the first waiting task that is no job of a calibration still to end, or None."""
    calibrating = [(task.name, jobs) for task, jobs in waiting] + list(under_way.items())
    blocked = {job.cell.key for name, jobs in calibrating if _calibrates(name) for job in jobs}
    for index, (task, jobs) in enumerate(waiting):
        if _calibrates(task.name) or jobs[0].cell.key not in blocked:
            return index
    return None


def _settle(state: _Run, event: Event, jobs: Iterable[Job], seconds: float) -> None:
    """Take note of the end of a task."""
    if event.state == "ok":
        state.progress.line(f"{event.task}: {seconds:.1f} s")
        return
    if event.state == DISK_FULL:
        raise DiskFullError(_disk_full_line(state.store))
    message = event.message
    if _calibrates(event.task):
        message = f"calibration failed: {message}"
        state.progress.drop(1)
    for job in jobs:
        state.fail(job, event.state, message)


def _calibrates(task: str) -> bool:
    return task.endswith(_CALIBRATE)


def finish(console: Console, plan: Plan, store: RunStore, jobs: dict[str, Job]) -> int:
    """Print the table, write the pictures, and return the exit code."""
    records = [record for record in map(finished_record, jobs.values()) if record is not None]
    console.print()
    write_reports(console, plan, store, records)
    console.print(f"tables and pictures: {plan.out}", highlight=False, markup=False, soft_wrap=True)
    return print_failures(console, store, plan.cells, records)


def write_reports(console: Console, plan: Plan, store: RunStore, records: Sequence[Record]) -> None:
    """Print the table of this run's cells; write table and pictures of all cells of the run folder."""
    from harness.reports import formats, pictures
    from harness.reports.record import read_records

    if console.is_terminal:
        formats.render_terminal(records, console)
    else:
        console.file.write(formats.render(records, "table"))
    try:
        everything: Sequence[Record] = read_records(store.root)
    except ValueError as error:
        everything = records
        line = f"table and pictures show this run's cells only: {error}; remove the folder of that cell"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    replace_file(store.root / "table.md", formats.render(everything, "markdown").encode())
    captions = {name: [prompt.text for prompt in prompts] for name, prompts in plan.prompts.items()}
    pictures.write_pictures(store.root, everything, captions)


def print_failures(
    console: Console, store: RunStore, cells: Sequence[Cell], records: Sequence[Record]
) -> int:
    """Say how to read more of each cell that failed than its line under the table; return the exit code."""
    failed = [record for record in records if record.result.state != "ok"]
    if not failed and len(records) == len(cells):
        return OK
    titles = {cell.key: cell.title for cell in cells}
    console.print(f"{len(failed)} of {len(cells)} cells failed; their logs:", highlight=False)
    for record in failed:
        key = record.identity.cell
        line = f"  {titles[key]}: harness show {store.root} {key}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return SOME_FAILED


def _disk_full_line(store: RunStore) -> str:
    return (
        f"the disk of {store.root} is full; everything finished is kept: "
        "free some space and run the same command again"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def duration(seconds: float) -> str:
    """Return a time span for people to read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
