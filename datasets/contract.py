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
        facts: what an image of it must show, for sets that can check it (JSON types), else empty.
    """

    id: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


class PromptSet(Protocol):
    """A named source of prompts. One file or folder under datasets/ each."""

    name: str
    summary: str
    takes_path: bool
    """Whether `--data-path NAME=PATH` is required; a set that ships with the package refuses one."""

    def prompts(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return the first `n` evaluation prompts in nesting order: prompts(m) is a prefix of prompts(n).

        Raises:
            harness.errors.UserError: the set has fewer than `n`, or its file is missing or malformed.
        """
        ...

    def calibration(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return `n` prompts for calibration, disjoint from the evaluation prompts."""
        ...
