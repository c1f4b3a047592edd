"""A time limit that ends what runs, also where it does not look at a clock: inside a compiler, a child."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

AGAIN = 5.0
"""Seconds after which it is raised once more, should something have swallowed it."""


class OutOfTime(BaseException):
    """The time limit was reached.

    Not an `Exception`: whoever makes a failure of one model a row and goes on must not go on.
    """


class TimeLimit:
    """A limit on the seconds of a command.

    It is raised from SIGALRM in the main thread; elsewhere, and where there is no such signal, only between
    the blocks that are watched.
    """

    def __init__(self, seconds: float | None, started: float | None = None) -> None:
        """Set the limit, None for none, from `started`: a reading of `time.monotonic()`, by default now."""
        begun = time.monotonic() if started is None else started
        self._end = None if seconds is None else begun + seconds

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self._end is not None and time.monotonic() >= self._end

    @contextmanager
    def watch(self, keep: float = 0.0) -> Iterator[None]:
        """Run the block until the limit.

        Args:
            keep: seconds of the limit to be left after the block.

        Raises:
            OutOfTime: before the block or inside it, when no more than `keep` seconds are left.
        """
        if self._end is None:
            yield
            return
        left = self._end - keep - time.monotonic()
        if left <= 0:
            raise OutOfTime
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
            yield
            return
        handler = signal.signal(signal.SIGALRM, _out_of_time)
        timer = signal.setitimer(signal.ITIMER_REAL, left, AGAIN)
        began = time.monotonic()
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            if timer[0]:
                spent = time.monotonic() - began
                signal.setitimer(signal.ITIMER_REAL, max(1e-3, timer[0] - spent), timer[1])


def _out_of_time(_number: int, _frame: FrameType | None) -> NoReturn:
    raise OutOfTime
