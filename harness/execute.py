"""Executors: where the stages of cells run, and how the runner hears of their end.

State lives in the run folder, never in an executor, so that another one (a cluster's) can take its place.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from harness.errors import CellError, UserError
from harness.files import is_disk_full

DISK_FULL = "disk full"
"""A state of outcomes only: it ends the run rather than a cell."""

Report = Callable[[str], None]
"""How a running task tells of progress: one word naming the finished step."""


@dataclass(frozen=True)
class Task:
    """One call to be made in a process of its own.

    Attributes:
        name: unique among the tasks that are under way.
        function: `module:function`, called as `function(report, *args)`.
        args: picklable arguments.
        log: file that the process's output is appended to.
        timeout: seconds after which it is killed.
    """

    name: str
    function: str
    args: tuple[Any, ...]
    log: Path
    timeout: float


@dataclass(frozen=True)
class Event:
    """News of a task.

    Attributes:
        task: its name.
        kind: `progress` or `end`.
        step: for progress, the step that was finished.
        state: at the end: `ok`, a failure state of `harness.reports.record.State`, or `disk full`.
        message: for a failure, one line.
    """

    task: str
    kind: str
    step: str = ""
    state: str = "ok"
    message: str = ""


class Executor(Protocol):
    """Runs tasks somewhere and tells of their end."""

    def submit(self, task: Task) -> None:
        """Start `task` now."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Return the news of the last `timeout` seconds at most; earlier when there is some."""
        ...

    def close(self) -> None:
        """Kill what is under way."""
        ...


@dataclass
class _Running:
    task: Task
    process: ForkServerProcess
    receiver: connection.Connection
    deadline: float
    ended: Event | None = None


_SERVER_ENVIRONMENT = {
    # glibc gives each large tensor back and faults it in anew; with memory kept, a step takes 15 % less.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    # Or the server would look for modules in the current folder first and find folders of their names.
    "PYTHONSAFEPATH": "1",
    # Libraries ask for a GPU while they are imported. Asked through the driver's runtime, torch would refuse
    # the device to every process forked afterwards; through NVML it does not.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for as long as the block lasts."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@dataclass
class LocalExecutor:
    """One process per task, forked from a server that has imported `preload` and holds no device context.

    Attributes:
        preload: modules the server imports first. The server is one per Python process: the first wins.
    """

    preload: Sequence[str] = ()
    _running: dict[str, _Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start the server, so that it imports while the caller plans."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(self.preload))
        from multiprocessing import forkserver

        with _environment(_SERVER_ENVIRONMENT):
            forkserver.ensure_running()

    def submit(self, task: Task) -> None:
        """Start `task` now; raises ValueError when one of its name is under way."""
        if task.name in self._running:
            raise ValueError(f"task {task.name} is under way")
        task.log.parent.mkdir(parents=True, exist_ok=True)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(sender, task), daemon=True, name=task.name)
        process.start()
        sender.close()
        self._running[task.name] = _Running(task, process, receiver, time.monotonic() + task.timeout)

    def wait(self, timeout: float) -> list[Event]:
        """Return the news, waiting for it up to `timeout` seconds."""
        runs = list(self._running.values())
        soonest = min((run.deadline for run in runs), default=time.monotonic())
        patience = max(0.0, min(timeout, soonest - time.monotonic()))
        handles = [handle for run in runs for handle in (run.receiver, run.process.sentinel)]
        connection.wait(handles, patience)
        return [event for run in runs for event in self._news(run)]

    def close(self) -> None:
        """Kill what is under way. Safe at any moment: unfinished files are beside their place."""
        for run in self._running.values():
            run.process.kill()
        for run in self._running.values():
            run.process.join()
            run.receiver.close()
        self._running.clear()

    def __enter__(self) -> Self:
        """Return the executor."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what is under way."""
        self.close()

    def _news(self, run: _Running) -> list[Event]:
        events = _received(run)
        end = run.ended or self._verdict(run)
        if end is None:
            return events
        # The verdict may have been formed before the last message was read.
        events += _received(run)
        end = run.ended or end
        run.process.kill()
        run.process.join()
        run.receiver.close()
        del self._running[run.task.name]
        return [*events, end]

    def _verdict(self, run: _Running) -> Event | None:
        name = run.task.name
        if time.monotonic() > run.deadline:
            return Event(name, "end", state="timeout", message=f"took longer than {run.task.timeout:g} s")
        if run.process.is_alive():
            return None
        return Event(name, "end", state="crashed", message=_cause_of_death(run.process.exitcode))


def _received(run: _Running) -> list[Event]:
    """Read what the child has sent, keeping its end apart."""
    events: list[Event] = []
    with contextlib.suppress(EOFError, OSError):  # the child is gone; its exit code says how
        while run.ended is None and run.receiver.poll():
            event = run.receiver.recv()
            if event.kind == "end":
                run.ended = event
            else:
                events.append(event)
    return events


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (the system may have run out of memory)" if -code == signal.SIGKILL else ""
        return f"the process was killed by {name}{hint}"
    return f"the process ended with code {code} before it was done"


def resolve(reference: str) -> Any:
    """Return what `module:attribute` names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _child(sender: connection.Connection, task: Task) -> None:
    """Run `task` in a forked process and send its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _die_with_parent()
    _redirect_output(task.log)
    print(f"--- {task.name}", flush=True)
    try:
        resolve(task.function)(lambda step: sender.send(Event(task.name, "progress", step=step)), *task.args)
        end = Event(task.name, "end")
    except BaseException as error:  # whatever a method raises, SystemExit included, is this cell's failure
        traceback.print_exc()
        state, message = classify(error)
        end = Event(task.name, "end", state=state, message=message)
    sys.stdout.flush()
    sys.stderr.flush()
    sender.send(end)
    sender.close()


def classify(error: BaseException) -> tuple[str, str]:
    """Return the state and the one-line message that stand for an exception."""
    first_line = (str(error).strip().splitlines() or [""])[0][:500]
    text = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    if isinstance(error, CellError):
        return error.state, first_line
    if is_disk_full(error):
        return DISK_FULL, text
    # By name, since this module must not import torch: torch.OutOfMemoryError is not a MemoryError, and the
    # CPU allocator raises a bare RuntimeError.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "can't allocate memory" in str(error):
        return "oom", text
    if isinstance(error, UserError) or type(error).__name__ == "SafetensorError":
        return "corrupt", text  # a file the user gave turned out to be damaged after planning
    return "crashed", text


def _die_with_parent() -> None:
    """End this process when the runner's is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable(sys.stderr)
