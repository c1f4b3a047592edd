"""The project with the published models at reduced size; processes find it by this module's name.

The environment variable REDUCED names the folder that holds one pipeline per model (`reduced.save_reduced`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.datasets.contract import Prompt, PromptSet
from harness.project import Project
from harness.world import ModelFacts


class Classes:
    """Classes by number, as a class-conditional set gives them."""

    name = "classes"
    summary = "class numbers"
    takes_path = False

    def prompts(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Classes 0, 1, ..."""
        return [Prompt(f"class-{i:03d}", str(i), {"class": i}) for i in range(n)]

    def calibration(self, n: int, path: Path | None = None) -> list[Prompt]:
        """Classes from the other end."""
        return [Prompt(f"class-{i:03d}", str(i), {"class": i}) for i in range(999, 999 - n, -1)]


class ReducedProject(Project):
    """The project, its published models replaced by reduced ones."""

    preload = ("harness.preload", "reduced")

    def check_models(self, names: Sequence[str], paths: Mapping[str, Path]) -> None:
        """They lie in a folder of the test's."""

    def dataset(self, name: str) -> PromptSet:
        """A set of classes beside the project's sets."""
        return Classes() if name == "classes" else super().dataset(name)

    def model(self, name: str, protocol: Mapping[str, Any], paths: Mapping[str, Path]) -> ModelFacts:
        """The facts of a reduced model, with its sampling."""
        import reduced

        facts = super().model(name, protocol, {name: Path(os.environ["REDUCED"]) / name})
        return replace(facts, sampling=asdict(reduced.reduced_card(name).sampling))


WORLD = ReducedProject()
