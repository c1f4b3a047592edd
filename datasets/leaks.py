"""The calibration-leak audit: what the prompts a model was calibrated on share with those it is judged on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.datasets.contract import Prompt

_COCO_NUMBER = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})")


@dataclass(frozen=True)
class Overlap:
    """What two lists of prompts have in common.

    Attributes:
        calibration: prompts calibrated on.
        evaluation: prompts judged on.
        prompts: evaluation prompts whose text, by `same_text`, is that of a calibration prompt.
        images: evaluation prompts of an image that a calibration prompt describes; None when nothing says
            which image the calibration prompts describe.
        ids: of the evaluation prompts counted in either, in order.
    """

    calibration: int
    evaluation: int
    prompts: int
    images: int | None
    ids: tuple[str, ...]

    def line(self) -> str:
        """Return the overlap as one sentence without an end."""
        judged, known = f"{self.evaluation} evaluation prompts", f"{self.calibration} calibrated on"
        line = f"{self.prompts} of {judged} are among the {known}"
        return line if self.images is None else f"{line}, and {self.images} are of images described there"


def same_text(text: str) -> str:
    """Return what two texts have in common that differ by case and white space only."""
    return " ".join(text.casefold().split())


def coco_number(name: str) -> int | None:
    """Return the number of a COCO image, the same in the 2014 and the 2017 release; None for another name."""
    found = _COCO_NUMBER.fullmatch(name)
    return int(found[1]) if found else None


def described_images(path: Path) -> dict[str, set[int]]:
    """Return, for every caption of a COCO caption file, the numbers of the images it was written for.

    Raises:
        UserError: the file is no COCO caption file.
    """
    from harness.datasets.coco import images

    found: dict[str, set[int]] = {}
    for image in images(path):
        number = coco_number(image.name)
        if number is None:
            raise image.place.refuse(f"{image.name!r} is not the name of a COCO image")
        for caption in image.captions:
            found.setdefault(same_text(str(caption)), set()).add(number)
    return found


def overlap(
    calibration: Sequence[Prompt],
    evaluation: Sequence[Prompt],
    described: Mapping[str, Iterable[int]] | None = None,
) -> Overlap:
    """Count what two lists of prompts have in common.

    Args:
        calibration: prompts calibrated on.
        evaluation: prompts judged on.
        described: `described_images` of the file that the calibration captions come from, or None.

    Returns:
        The counts. A caption written for several images counts for all of them.
    """
    texts = {same_text(prompt.text) for prompt in calibration}
    shared = [prompt for prompt in evaluation if same_text(prompt.text) in texts]
    if described is None:
        return Overlap(len(calibration), len(evaluation), len(shared), None, tuple(p.id for p in shared))
    seen = {number for text in texts for number in described.get(text, ())}
    pictured = [prompt for prompt in evaluation if coco_number(prompt.id) in seen]
    counted = {prompt.id for prompt in (*shared, *pictured)}
    ids = tuple(prompt.id for prompt in evaluation if prompt.id in counted)
    return Overlap(len(calibration), len(evaluation), len(shared), len(pictured), ids)
