"""A time limit that ends what runs, also where it does not look at a clock: inside a compiler, a child."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType

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

    def watch(self, keep: float = 0.0) -> AbstractContextManager[None]:
        """Return what runs the block of a `with` until the limit.

        Args:
            keep: seconds of the limit to be left after the block.

        Raises:
            OutOfTime: before the block or inside it, when no more than `keep` seconds are left.
        """
        return nullcontext() if self._end is None else _Watch(self._end - keep)


class _Watch(AbstractContextManager[None]):
    """Raises OutOfTime in the block of a `with`, and nowhere else.

    An alarm can arrive in `__enter__` and `__exit__` too. Raised there it would leave the timer running, to
    end what comes after the block. A generator would not do: `contextlib` runs code of its own around it.
    """

    def __init__(self, end: float) -> None:
        """Set the end: a reading of `time.monotonic()`."""
        self._end = end
        self._inside = self._missed = self._armed = False

    def __enter__(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise OutOfTime
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
            return
        self._handler = signal.getsignal(signal.SIGALRM)
        self._timer, self._began = signal.getitimer(signal.ITIMER_REAL), time.monotonic()
        try:
            self._armed = True
            signal.signal(signal.SIGALRM, self._alarm)
            signal.setitimer(signal.ITIMER_REAL, left, AGAIN)
        except BaseException:
            self._disarm()
            raise
        self._inside = True
        # Python looks at signals in calls: none follows unless an alarm came too early to be raised.
        if self._missed:
            self._inside = False
            self._disarm()
            raise OutOfTime

    def __exit__(self, *_: object) -> None:
        self._inside = False
        if self._armed:
            self._disarm()

    def _disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        left, again = self._timer
        if left:
            spent = time.monotonic() - self._began
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - spent), again)

    def _alarm(self, _number: int, frame: FrameType | None) -> None:
        """Raise, unless what was interrupted is this object: its first instruction may not have run yet."""
        if not self._inside:
            self._missed = True
        elif frame is None or frame.f_code is not _Watch.__exit__.__code__:
            raise OutOfTime
