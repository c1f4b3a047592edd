"""Keeps a result that grows in a file, so that what was measured outlives what ends the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.bench.report import merge, read
from harness.errors import UserError
from harness.files import check_replaceable


class KeptResult:
    """A section of a result file that is written again whenever there is more of it."""

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        """Look at the file, before anything is measured.

        Args:
            path: of the file, None to keep nothing.
            say: takes the line that says why the file could not be written; measuring goes on.

        Raises:
            UserError: the file is there and is no result, or it cannot be written.
        """
        self._path, self._say = path, say
        self._failed: UserError | None = None
        if path is None:
            return
        try:
            check_replaceable(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        if path.exists():
            read(path)

    def keep(
        self,
        section: str,
        content: Mapping[str, Any],
        figures: Mapping[str, Any],
        outdates: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Write a section and headline figures, see `harness.bench.report.merge`."""
        if self._path is None:
            return
        try:
            merge(self._path, section, content, figures, outdates)
            self._failed = None
        except UserError as error:
            if self._failed is None:
                self._say(str(error))
            self._failed = error

    def settle(self) -> None:
        """Raise the UserError of the last attempt, if it failed: once the result has been printed."""
        if self._failed is not None:
            raise self._failed
