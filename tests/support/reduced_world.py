"""The project with the published models at reduced size; processes find it by this module's name.

The environment variable REDUCED names the folder that holds one pipeline per model (`reduced.save_reduced`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.project import Project
from harness.world import Missing, ModelFacts


class ReducedProject(Project):
    """The project, its published models replaced by reduced ones."""

    preload = ("harness.preload", "reduced")

    def missing_models(self, names: Sequence[str], paths: Mapping[str, Path]) -> dict[str, Missing]:
        """None: they lie in a folder of the test's."""
        return {}

    def model(self, name: str, protocol: Mapping[str, Any], paths: Mapping[str, Path]) -> ModelFacts:
        """The facts of a reduced model, with its sampling."""
        import reduced

        facts = super().model(name, protocol, {name: Path(os.environ["REDUCED"]) / name})
        return replace(facts, sampling=asdict(reduced.reduced_card(name).sampling))


WORLD = ReducedProject()
