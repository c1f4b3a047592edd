"""Errors that reach the user: one clear line, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's. Its text is one line; the command line prints it and exits with 2."""


class CellError(Exception):
    """A cell cannot go on; `state` is the typed result the record carries.

    Attributes:
        state: one of the failure states of `harness.reports.record.State`.
    """

    def __init__(self, state: str, message: str) -> None:
        """Keep `state` beside the one-line `message`."""
        super().__init__(message)
        self.state = state


def not_installed(distribution: str) -> str:
    """Return what to say of a distribution that a cell needs and that is not installed."""
    return f"{distribution} is not installed (pip install {distribution})"


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Build the error for a name that is not registered, naming the nearest valid ones.

    Args:
        kind: what was asked for, e.g. "method".
        name: the name given.
        valid: every name that would have been accepted.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
