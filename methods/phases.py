"""Where the time of a long computation goes: named phases, added up while a clock is running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch


@dataclass
class PhaseClock:
    """Seconds by phase.

    Attributes:
        device: whose queued work is waited for at both ends of a phase.
        seconds: total by name. Phases nest: an inner phase is contained in the outer one's time.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


_running: ContextVar[PhaseClock | None] = ContextVar("phase_clock", default=None)


@contextmanager
def clocked(device: torch.device) -> Iterator[PhaseClock]:
    """Collect the phases that run inside the block."""
    clock = PhaseClock(device)
    token = _running.set(clock)
    try:
        yield clock
    finally:
        _running.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the block's time under `name`; without a running clock this does nothing."""
    clock = _running.get()
    if clock is None:
        yield
        return
    clock.wait()
    started = time.perf_counter()
    try:
        yield
    finally:
        clock.wait()
        clock.seconds[name] = clock.seconds.get(name, 0.0) + time.perf_counter() - started
