"""Progress on the terminal: a bar with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunProgress:
    """Counts finished steps of a run: blocks, checkpoints, measurements, records."""

    def __init__(self, console: Console, steps: int) -> None:
        """Expect `steps` steps."""
        self._console = console
        self._steps = steps
        self._done = 0
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=max(steps, 1))

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def phase(self, name: str) -> None:
        """Say what is being done now."""
        self._bar.update(self._task, description=name)

    def step(self, count: int = 1) -> None:
        """Count finished steps."""
        self._done = min(self._done + count, self._steps)
        self._bar.update(self._task, completed=self._done)

    def drop(self, count: int) -> None:
        """Expect `count` steps fewer: those of a cell that failed."""
        self._steps -= count
        self._bar.update(self._task, total=max(self._steps, 1))

    def line(self, text: str) -> None:
        """Print a line above the bar, with the share done and the time taken where there is no bar."""
        if self._console.is_terminal:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
            return
        share = 100 * self._done // max(self._steps, 1)
        seconds = time.monotonic() - self._started
        line = f"[{share:3d} % {seconds:5.0f} s] {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
