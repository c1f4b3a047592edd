"""What one invocation is asked for, and the notes that its stages leave."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Limit(NamedTuple):
    """How long a stage may optimise: at most `steps`, and no longer than `seconds`.

    `settle` steps are let pass before, and as many used for, timing a step.
    """

    steps: int
    seconds: float
    settle: int = 100


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; everything that decides the result besides the code."""

    pool: int = 500_000
    reader_steps: int = 8000
    reader_seconds: int = 35
    recogniser_steps: int = 8000
    recogniser_seconds: int = 45
    recogniser_batch: int = 512
    vae_steps: int = 12_000
    vae_seconds: int = 180
    vae_batch: int = 256
    scenes: int = 700_000
    batch: int = 768
    text_steps: int = 800
    text_seconds: int = 40
    denoiser_steps: int = 40_000
    denoiser_seconds: int = 375
    reference: int = 20_480
    evaluated: int = 512

    def limit(self, stage: str) -> Limit:
        """Return the limit of a stage."""
        return Limit(getattr(self, f"{stage}_steps"), getattr(self, f"{stage}_seconds"))


SMOKE = Settings(64, 4, 60, 4, 60, 8, 4, 60, 4, 64, 8, 4, 60, 4, 60, 64, 4)


@dataclass(frozen=True)
class Run:
    """One invocation.

    Attributes:
        out: folder of the results.
        settings: sizes and lengths.
        device: where to train.
        compile: whether to compile the models.
        start: folder of pipelines to go on from instead of nothing.
        checkpoint_seconds: time between two checkpoints.
    """

    out: Path
    settings: Settings
    device: torch.device
    compile: bool
    start: Path | None = None
    checkpoint_seconds: float = 60.0

    @property
    def on_gpu(self) -> bool:
        """Whether training runs on a GPU."""
        return self.device.type == "cuda"

    @property
    def device_name(self) -> str:
        """Name of the training device."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu"

    def autocast(self) -> torch.autocast:
        """bfloat16 where a GPU runs it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.on_gpu)

    def maybe_compile(self, function: Any) -> Any:
        """Compile on a GPU."""
        return torch.compile(function) if self.compile else function

    def generator(self, seed: int) -> torch.Generator:
        """Return a generator on the training device."""
        return torch.Generator(self.device).manual_seed(seed)

    def default_generators(self) -> list[torch.Generator]:
        """Return the generators that draws without a generator of their own use."""
        if not self.on_gpu:
            return [torch.default_generator]
        index = self.device.index if self.device.index is not None else torch.cuda.current_device()
        return [torch.default_generator, torch.cuda.default_generators[index]]

    def checkpoint_path(self, stage: str, phase: str = "") -> Path:
        """Return the file of a checkpoint; a stage that optimises twice names a phase."""
        return self.out / f"{stage}{phase and '-'}{phase}.checkpoint.pt"

    def drop_checkpoints(self, stage: str) -> None:
        """Delete what a finished stage kept for being interrupted."""
        for kind in ("pt", "part"):
            for path in self.out.glob(f"{stage}*.checkpoint.{kind}"):
                path.unlink()

    def noted(self, stage: str) -> dict[str, Any] | None:
        """Return what a finished stage noted, None where it is not finished."""
        path = self.out / f"{stage}.json"
        figures: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return figures

    def note_training(self, stage: str, start: float, figures: dict[str, Any]) -> None:
        """Note that a stage has written its weights, when it started (Unix time) and what it did."""
        seconds = round(time.time() - start, 1)
        self.note(stage, {"seconds": seconds, "device": self.device_name} | figures)

    def note(self, stage: str, figures: dict[str, Any]) -> None:
        """Write what a stage did, replacing an earlier note as a whole."""
        unfinished = self.out / f"{stage}.json.part"
        unfinished.write_text(json.dumps(figures))
        os.replace(unfinished, self.out / f"{stage}.json")
