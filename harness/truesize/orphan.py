"""Lets a child process end with its parent, so that no orphan holds memory of a GPU."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, or end now where it has; on Linux alone.

    Called by the child: code between fork and exec is no place for it where the parent has threads.

    Args:
        parent: the parent's process id.

    Raises:
        OSError: the system refused.
        SystemExit: the parent is gone.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:  # it ended before the system had been asked
        raise SystemExit("the process that asked for this has ended")
