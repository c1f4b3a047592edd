"""The prompt set `scenes`: captions of held-out scenes, which the recogniser can check."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from harness.datasets.contract import Prompt
from harness.datasets.scenes.grammar import caption
from harness.datasets.scenes.world import scenes
from harness.errors import UserError

LARGEST = 50_000
"""Distinct captions each split offers; the world has millions, but a request for them is a slip."""


def _take(n: int, split: str, *, held_out: bool) -> list[Prompt]:
    if n > LARGEST:
        raise UserError(f"scenes has {LARGEST} prompts, not {n}")
    return list(islice(_captions(split, held_out), n))


def _captions(split: str, held_out: bool) -> Iterator[Prompt]:
    """Yield distinct captions of a split, without end."""
    seen: set[str] = set()
    phrasing = random.Random(f"{split} phrasing")
    for scene in scenes(split, held_out=held_out):
        text = caption(scene, phrasing)
        if text not in seen:
            seen.add(text)
            yield Prompt(f"{split}-{len(seen) - 1:05d}", text, scene.facts())


class Scenes:
    """Captions of one to three coloured shapes. Ships with the package; images of it can be checked."""

    name = "scenes"
    summary = (
        "captions of one to three coloured shapes on a background; needs no download, answers are checked"
    )
    takes_path = False

    def count(self, path: Path | None = None) -> int:
        """Return how many captions are offered."""
        return LARGEST

    def prompts(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return the first `n` captions of held-out scenes."""
        return _take(n, "scene", held_out=True)

    def calibration(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return `n` captions of scenes that are not held out."""
        return _take(n, "calibration", held_out=False)

    def source(self, path: Path) -> None:
        """Return None: nothing is read."""
