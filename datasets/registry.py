"""The prompt sets by name."""

from __future__ import annotations

from harness.datasets.classes import Classes
from harness.datasets.coco import COCO
from harness.datasets.contract import PromptSet
from harness.datasets.file import FILE
from harness.datasets.mjhq import MJHQ
from harness.datasets.parti import PARTI
from harness.datasets.qdiff import QDIFF
from harness.datasets.scenes.prompts import Scenes
from harness.datasets.sdci import SDCI
from harness.datasets.unconditional import Unconditional
from harness.errors import unknown

_ALL: tuple[PromptSet, ...] = (
    Scenes(),
    MJHQ,
    SDCI,
    COCO,
    PARTI,
    QDIFF,
    FILE,
    Classes(),
    Unconditional(),
)
_SETS = {prompts.name: prompts for prompts in _ALL}


def names() -> list[str]:
    """Return the names of all prompt sets."""
    return sorted(_SETS)


def get(name: str) -> PromptSet:
    """Return the prompt set `name`; raises UserError naming the nearest ones."""
    if name not in _SETS:
        raise unknown("dataset", name, _SETS)
    return _SETS[name]
