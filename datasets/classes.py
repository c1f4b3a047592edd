"""ImageNet's 1,000 classes, 50 images of each, for models that are given a class instead of a text."""

from __future__ import annotations

from pathlib import Path

from harness.datasets.contract import Prompt
from harness.errors import UserError

CLASSES, EACH = 1000, 50


class Classes:
    """The class ids 0 to 999, each 50 times: the 50,000 images that ADM's reference batch is compared with.

    Class by class would leave every prefix with other classes, and a split score such as the Inception Score
    with a few classes a split; here every class comes once before any comes again.
    """

    name = "classes"
    summary = "ImageNet class ids, 50 images each, every class once before any again; needs no download"
    takes_path = False

    def count(self, path: Path | None = None) -> int:
        """Return 50,000."""
        return CLASSES * EACH

    def prompts(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return the first `n` of: class 0 to 999, first image; class 0 to 999, second image; and so on."""
        if n > self.count():
            raise UserError(f"classes has {self.count()} prompts, not {n}")
        pairs = (divmod(index, CLASSES) for index in range(n))
        return [
            Prompt(f"{label:03d}-{copy:02d}", f"class {label}", {"class": label}) for copy, label in pairs
        ]

    def calibration(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Return `n` images' classes, evenly over the classes; their noise is no evaluation image's."""
        labels = [index * CLASSES // n % CLASSES if n < CLASSES else index % CLASSES for index in range(n)]
        return [Prompt(f"calibration-{i:05d}", f"class {c}", {"class": c}) for i, c in enumerate(labels)]

    def source(self, path: Path) -> None:
        """Return None: nothing is read."""
