"""The prompt sets by name."""

from __future__ import annotations

from harness.datasets.contract import PromptSet
from harness.datasets.scenes.prompts import Scenes
from harness.errors import unknown

_SETS: dict[str, PromptSet] = {"scenes": Scenes()}


def names() -> list[str]:
    """Return the names of all prompt sets."""
    return sorted(_SETS)


def get(name: str) -> PromptSet:
    """Return the prompt set `name`; raises UserError naming the nearest ones."""
    if name not in _SETS:
        raise unknown("dataset", name, _SETS)
    return _SETS[name]
