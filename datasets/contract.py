"""What a prompt set is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: stable within its set; names files, so it holds letters, digits, `-` and `_` only.
        text: what the text encoder reads.
        facts: what an image of it must show (JSON types): for sets that can check it, or `class`, the number
            of the ImageNet class, for models that are given a class instead of a text.
        slice: the part of the set it belongs to, such as a category; empty where a set has none.
        seed: of its noise, where the protocol derives it by a published rule; None for the harness's own.
        image: its reference image, relative to the set's folder; empty where the set has none.
    """

    id: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    slice: str = ""
    seed: int | None = None
    image: str = ""

    def identity(self) -> list[Any]:
        """Return what its image depends on: id and text, and its own seed where it has one."""
        return [self.id, self.text, *([] if self.seed is None else [self.seed])]


class PromptSet(Protocol):
    """A named source of prompts. One file or folder under datasets/ each."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        ...

    @property
    def summary(self) -> str:
        """One line for `harness list datasets`."""
        ...

    @property
    def takes_path(self) -> bool:
        """Whether `--data-path NAME=PATH` is required; a set that ships with the package refuses one."""
        ...

    def count(self, path: Path | None = None) -> int:
        """Return how many evaluation prompts there are.

        Raises:
            harness.errors.UserError: the set's file is missing or malformed.
        """
        ...

    def prompts(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return the first `n` evaluation prompts in the set's own order.

        prompts(m) is a prefix of prompts(n).

        Raises:
            harness.errors.UserError: the set has fewer than `n`, or its file is missing or malformed.
        """
        ...

    def calibration(self, n: int, path: Path | None = None) -> list[Prompt] | None:
        """Return `n` prompts for calibration, disjoint from the evaluation prompts.

        None when the set makes no such distinction; the last of its prompts in selection order are then used.
        """
        ...

    def source(self, path: Path) -> Path | None:
        """Return the file that `path`, as given with `--data-path`, is read from; None when there is none.

        Raises:
            harness.errors.UserError: the set reads a file and `path` holds none, or more than one.
        """
        ...
