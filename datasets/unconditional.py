"""No prompt at all: N seeds, for models that are given nothing but noise."""

from __future__ import annotations

from pathlib import Path

from harness.datasets.contract import Prompt
from harness.errors import UserError

LARGEST = 1_000_000


class Unconditional:
    """Empty prompts that differ by their id, and so by the seed of their noise."""

    name = "unconditional"
    summary = "N seeds and no prompt, for unconditional models; needs no download"
    takes_path = False

    def count(self, path: Path | None = None) -> int:
        """Return how many seeds are offered."""
        return LARGEST

    def prompts(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return `n` empty prompts."""
        if n > LARGEST:
            raise UserError(f"unconditional has {LARGEST} prompts, not {n}")
        return [Prompt(f"seed-{index:06d}", "") for index in range(n)]

    def calibration(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return `n` empty prompts whose noise is no evaluation image's."""
        return [Prompt(f"calibration-{index:06d}", "") for index in range(n)]

    def source(self, path: Path) -> None:
        """Return None: nothing is read."""
