"""A prompt set that is one file of the user's: found, read once, and served in file order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.datasets.contract import Prompt
from harness.errors import UserError

Reader = Callable[[Path], Sequence[Prompt]]


@dataclass(frozen=True)
class FileSet:
    """A prompt set read from a published file.

    Attributes:
        name: the name on the command line.
        summary: one line for `harness list datasets`.
        reader: reads the file; the prompts are in file order, their ids unique.
        file_names: what the file is called where a folder is given, relative to it; one must be there.
        image_folders: where reference images may lie, relative to the folder of the file.
    """

    name: str
    summary: str
    reader: Reader
    file_names: tuple[str, ...] = ()
    image_folders: tuple[str, ...] = ()
    takes_path: bool = True

    def source(self, path: Path) -> Path:
        """Return the file itself, or the one known by its name in a folder."""
        if not path.is_dir():
            return path
        found = [path / name for name in self.file_names if (path / name).is_file()]
        if not found:
            wanted = " or ".join(self.file_names)
            raise UserError(
                f"{path} holds no {wanted}" if wanted else f"{path} is a folder: give the file in it"
            )
        if len(found) > 1:
            names = ", ".join(str(file.relative_to(path)) for file in found)
            raise UserError(f"{path} holds {names}: give the one to use, --data-path {self.name}=FILE")
        return found[0]

    def everything(self, path: Path | None) -> tuple[Prompt, ...]:
        """Return all prompts in file order.

        Raises:
            UserError: the file is not given, missing, malformed or holds no prompt.
        """
        if path is None:
            raise UserError(f"dataset {self.name} needs its file: give --data-path {self.name}=PATH")
        file = self.source(path).absolute()
        try:
            stat = file.stat()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
        return _read(self.reader, file, stat.st_size, stat.st_mtime_ns)

    def count(self, path: Path | None = None) -> int:
        """Return how many prompts the file holds."""
        return len(self.everything(path))

    def prompts(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return the first `n` prompts in file order."""
        found = self.everything(path)
        if n > len(found):
            raise UserError(f"{self.name} has {len(found)} prompts, not {n}")
        return list(found[:n])

    def calibration(self, n: int, path: Path | None = None) -> None:
        """Return None: the published sets have no part of their own for calibration."""


@lru_cache(maxsize=8)
def _read(reader: Reader, file: Path, _size: int, _mtime: int) -> tuple[Prompt, ...]:
    """Read a file, once as long as its size and time stay the same."""
    found = tuple(reader(file))
    if not found:
        raise UserError(f"{file} holds no prompt")
    return found
