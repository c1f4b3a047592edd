"""What the harness must know of a model before it loads anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Sampling:
    """How a model samples unless the protocol says otherwise.

    Attributes:
        steps: sampling steps of the pipeline's own scheduler.
        guidance: classifier-free guidance scale; 1 or less turns guidance off.
        height: image height in pixels.
        width: image width in pixels.
        call: further keyword arguments of the pipeline's call.
    """

    steps: int
    guidance: float
    height: int
    width: int
    call: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """One model of the grid.

    Attributes:
        name: the name on the command line.
        pipeline: name of its pipeline class in diffusers.
        denoiser: attribute of the pipeline that holds the denoiser.
        family: key of its role table in `harness.models.roles`.
        sampling: default sampling.
        embedded: whether its weights ship with the package; any other model needs `--model-path`.
        summary: one line for `harness list models`.
    """

    name: str
    pipeline: str
    denoiser: Literal["unet", "transformer"]
    family: str
    sampling: Sampling
    embedded: bool
    summary: str
